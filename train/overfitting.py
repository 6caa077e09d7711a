"""How much of a Sharpe ratio is luck: standard error, probabilistic and deflated Sharpe, and backtest overfitting.

A Sharpe ratio here is always mean / standard deviation of returns per block of time, never per trade (trades overlap
and are correlated) and never annualised: sqrt(blocks a year) times it is the annual one. Returns of blocks are taken
as independent; blocks must be several horizons long for that.

Sources: Lo 2002, The statistics of Sharpe ratios; Mertens 2002, variance of the IID estimator; Bailey and Lopez de
Prado 2012, The Sharpe ratio efficient frontier; the same 2014, The deflated Sharpe ratio; Bailey, Borwein, Lopez de
Prado and Zhu 2017, The probability of backtest overfitting.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from policies.errors import InvalidInput

Floats = NDArray[np.float64]
FEWEST_SHARPES = 5  # from fewer, the spread of the trials' Sharpe ratios is not estimated
MOST_PARTS = 16  # 12,870 ways to choose half of them
SHARPE_DECIMALS = 9  # ranks must not hang on the order of a summation


@dataclass(frozen=True)
class Moments:
    """Of returns per block: count of blocks, Sharpe ratio per block, skewness (0 of a normal), kurtosis (3 of a
    normal), with population moments. NaN without any spread.
    """

    blocks: int
    sharpe: float
    skewness: float
    kurtosis: float

    @property
    def unit_variance(self) -> float:
        """1 - skewness SR + (kurtosis - 1) / 4 SR^2: the variance of the estimated SR, times the blocks (Mertens)."""
        return 1 - self.skewness * self.sharpe + (self.kurtosis - 1) / 4 * self.sharpe**2


def moments(block_returns: Floats) -> Moments:
    """block_returns: (T,) net returns over equity; blocks without a trade are 0 and count. T >= 2.

    The Sharpe ratio divides by the sample standard deviation (T - 1).
    """
    returns = np.asarray(block_returns, dtype=np.float64)
    if returns.ndim != 1 or len(returns) < 2 or not np.isfinite(returns).all():
        raise InvalidInput("block_returns", "at least 2 finite numbers", returns)
    around = returns - returns.mean()
    spread = math.sqrt(float((around**2).mean()))
    if not spread > 1e-12 * float(np.abs(returns).max()):
        return Moments(len(returns), math.nan, math.nan, math.nan)
    scaled = around / spread
    return Moments(len(returns), sharpe_ratios(returns[:, None]).item(), float((scaled**3).mean()),
                   float((scaled**4).mean()))


def sharpe_ratios(performance: Floats) -> Floats:
    """(N,) Sharpe ratio per block of each column of (T, N) block returns; NaN for a column without spread."""
    spread = performance.std(axis=0, ddof=1)
    known = spread > 1e-12 * np.abs(performance).max(axis=0)
    return np.divide(performance.mean(axis=0), spread, out=np.full(spread.shape, math.nan), where=known)


def autocorrelation(block_returns: Floats) -> float:
    """Of returns from one block to the next, -1..1; NaN without spread. About 1 / sqrt(T) is noise."""
    around = block_returns - block_returns.mean()
    total = float(around @ around)
    return float(around[1:] @ around[:-1]) / total if total > 0 else math.nan


def standard_error(of: Moments) -> float:
    """Of the Sharpe ratio per block: sqrt(unit_variance / (T - 1)) (Bailey and Lopez de Prado 2012, equation 8)."""
    return math.sqrt(of.unit_variance / (of.blocks - 1)) if of.unit_variance > 0 else math.nan


def probabilistic_sharpe(of: Moments, benchmark: float = 0.0) -> float:
    """Confidence in 0..1 that the true Sharpe ratio per block exceeds `benchmark`: Phi((SR - benchmark) / error).

    NaN where there is no standard error. (2012, equation 11.)
    """
    return float(norm.cdf((of.sharpe - benchmark) / standard_error(of)))


def minimum_track_record(of: Moments, benchmark: float = 0.0, confidence: float = 0.95) -> float:
    """Blocks after which these moments would be believed to beat `benchmark`: 1 + unit_variance (z / (SR - b))^2.

    Infinite if SR <= benchmark. (2012, equation 13.)
    """
    if not 0.5 < confidence < 1:
        raise InvalidInput("confidence", "> 0.5 and < 1", confidence)
    if math.isnan(of.sharpe):
        return math.nan
    if of.sharpe <= benchmark:
        return math.inf
    return 1 + of.unit_variance * float(norm.ppf(confidence) / (of.sharpe - benchmark)) ** 2


def expected_maximum(trials: float) -> float:
    """Of `trials` independent standard normals, >= 1: (1 - g) z(1 - 1/N) + g z(1 - 1/(N e)), g = 0.5772 (2014,
    equation 1, from extreme value theory). 0 for one trial.

    The approximation is 8 % low at N = 2 and at most 3 % high from N = 3 on.
    """
    if not trials >= 1:
        raise InvalidInput("trials", ">= 1", trials)
    if trials <= 1:
        return 0.0
    return float((1 - np.euler_gamma) * norm.isf(1 / trials) + np.euler_gamma * norm.isf(1 / (trials * math.e)))


def expected_maximum_sharpe(trials: float, trial_sharpes: Floats, blocks: int) -> float:
    """What the best of `trials` worthless ones would show: sqrt(V) * expected_maximum(trials), per block.

    V is the variance of the Sharpe ratios of those trials that have one. From fewer than FEWEST_SHARPES of them it is
    not taken below 1 / (blocks - 1), that of independent worthless trials: two trials that happen to agree say nothing.
    """
    known = np.asarray(trial_sharpes, dtype=np.float64)
    known = known[np.isfinite(known)]
    variance = float(known.var(ddof=1)) if len(known) > 1 else 0.0
    if len(known) < FEWEST_SHARPES:
        variance = max(variance, 1 / (blocks - 1))
    return math.sqrt(variance) * expected_maximum(trials)


def deflated_sharpe(of: Moments, trials: float, trial_sharpes: Floats) -> float:
    """Confidence in 0..1 that the true Sharpe ratio exceeds what the best of `trials` worthless ones would show
    (2014, equation 2). trial_sharpes: per block, of blocks of the same length. NaN as `probabilistic_sharpe`.
    """
    return probabilistic_sharpe(of, expected_maximum_sharpe(trials, trial_sharpes, of.blocks))


def effective_trials(trials: int, performance: Floats) -> float:
    """As many independent trials as these: r + (1 - r) N, r the mean correlation between trials, cut to 0..1 (2014,
    appendix 3). performance: (T, M) block returns, M <= N. N itself with fewer than two trials that have a spread.

    A figure to report. Deflation uses the raw count: the spread of correlated trials is smaller already.
    """
    with_spread = performance[:, np.isfinite(sharpe_ratios(performance))]
    columns = with_spread.shape[1]
    if columns < 2:
        return float(trials)
    correlations = np.corrcoef(with_spread, rowvar=False)
    mean = float((correlations.sum() - columns) / (columns * (columns - 1)))
    mean = min(max(mean, 0.0), 1.0)
    return mean + (1 - mean) * trials


@dataclass(frozen=True)
class Overfitting:
    """Of choosing the best trial by its Sharpe ratio. logits: (ways,), of the chosen trial's rank among the others
    where it was not chosen; <= 0 is the worse half. probability: share of logits <= 0. loss_probability: share of ways
    in which the chosen trial then loses money.

    Worthless trials have a probability around one half or above. So have trials that are all equally good: then
    nothing is gained or lost by choosing, and loss_probability, which is low, tells them from the worthless.
    """

    probability: float
    loss_probability: float
    logits: Floats
    parts: int


def backtest_overfitting(performance: Floats, parts: int = MOST_PARTS) -> Overfitting | None:
    """Probability of backtest overfitting by combinatorially symmetric cross-validation (2017, section 2.2).

    performance: (T, N) block returns of N trials on one grid of blocks. The blocks are cut into `parts` (even, 2 to
    16) runs of equal length; a remainder of blocks at the start is left out. For every half of the parts, the trial
    with the best Sharpe ratio there is ranked by its Sharpe ratio on the other half, ties by the mean rank; among
    equally good ones the first is chosen. A trial without spread in a half has a Sharpe ratio of 0 there. None for
    fewer than 2 trials: nothing was chosen.
    """
    performance = np.asarray(performance, dtype=np.float64)
    if not (parts % 2 == 0 and 2 <= parts <= MOST_PARTS):
        raise InvalidInput("parts", f"even, 2 to {MOST_PARTS}", parts)
    if performance.ndim != 2 or len(performance) < 2 * parts or not np.isfinite(performance).all():
        raise InvalidInput("performance", f"finite, at least {2 * parts} blocks for {parts} parts", performance.shape)
    trials = performance.shape[1]
    if trials < 2:
        return None
    length = len(performance) // parts
    cut = performance[len(performance) - length * parts:].reshape(parts, length, trials)
    halves = np.zeros((math.comb(parts, parts // 2), parts))
    for row, chosen in enumerate(itertools.combinations(range(parts), parts // 2)):
        halves[row, list(chosen)] = 1.0
    within, without = (_half_sharpes(part, cut) for part in (halves, 1 - halves))
    chosen_there = without[np.arange(len(halves)), within.argmax(axis=1)]
    worse, equal = (without < chosen_there[:, None]).sum(axis=1), (without == chosen_there[:, None]).sum(axis=1)
    ranks = (worse + (equal + 1) / 2) / (trials + 1)
    logits = np.log(ranks / (1 - ranks))
    return Overfitting(float((ranks <= 0.5).mean()), float((chosen_there < 0).mean()), logits, parts)


def _half_sharpes(halves: Floats, cut: Floats) -> Floats:
    """(ways, N) for (ways, parts) of zeros and ones and (parts, length, N) block returns."""
    blocks = halves[0].sum() * cut.shape[1]
    mean = halves @ cut.sum(axis=1) / blocks
    spread = np.sqrt(np.maximum(halves @ (cut**2).sum(axis=1) / blocks - mean**2, 0.0))
    scale = np.abs(cut).max(axis=(0, 1))
    sharpes = np.divide(mean, spread, out=np.zeros_like(mean), where=spread > 1e-7 * scale)
    return sharpes.round(SHARPE_DECIMALS)
