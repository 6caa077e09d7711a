"""What one step of the trading environment is rewarded with: the definition, which the compiled step repeats.

Fees, slippage and funding are in equity already, so nothing is taken off for them again.
"""

from __future__ import annotations

from policies.actor import DRAWDOWN_UNIT
from train.rl.env_settings import EnvSettings


def drawdown_fraction(equity: float, peak: float) -> float:
    """The fall from the peak of the episode over that peak, 0..1."""
    return 1.0 - equity / peak


def step_reward(equity_before: float, equity: float, drawdown_before: float, drawdown: float,
                settings: EnvSettings) -> float:
    """The change of equity in trade risks, less a penalty for what the drawdown has risen by, cut to +-reward_clip.

    equity_before, equity: USD at two closes that follow each other, > 0. drawdown_before, drawdown: the fall from the
    peak at each, as fractions. A drawdown that shrinks is no reward: the gain that shrinks it is one already.
    """
    reward = (equity / equity_before - 1.0) / settings.limits.risk_per_trade
    reward -= settings.drawdown_penalty * max(drawdown - drawdown_before, 0.0) / DRAWDOWN_UNIT
    return min(max(reward, -settings.reward_clip), settings.reward_clip)
