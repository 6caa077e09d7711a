"""The discrete-continuous form of an action: the same orders in their own units."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from market_frames import jumpy_market

from policies.actor import ActorLimits, wanted
from policies.errors import InvalidInput
from train.rl.env import HyperliquidTradingEnv
from train.rl.env_settings import EnvSettings
from train.rl.hybrid_actions import LONG, SHORT, HybridActions


def made(limits: ActorLimits | None = None) -> HybridActions:
    told = EnvSettings(limits or ActorLimits(), episode_bars=20)
    return HybridActions(HyperliquidTradingEnv(jumpy_market(0), settings=told))


def said(execute: int = 1, direction: int = LONG, leverage: float = 1.0, tp: float = 0.0,
         sl: float = 0.0) -> dict[str, Any]:
    return {"execute": execute, "direction": direction, **{
        name: np.array([value], np.float32) for name, value in (("leverage", leverage), ("tp", tp), ("sl", sl))}}


def test_gymnasiums_own_check_finds_nothing_to_say() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*different from the unwrapped version")  # it is a wrapper: that is meant
        check_env(made(), skip_render_check=True)


@pytest.mark.parametrize(("direction", "sign"), [(SHORT, -1), (LONG, 1)])
@pytest.mark.parametrize(("place", "leverage"), [(-1.0, 1.0), (0.0, 3.0), (1.0, 5.0), (7.0, 5.0)])
def test_leverage_is_a_share_of_the_risk_of_a_trade(direction: int, sign: int, place: float, leverage: float) -> None:
    asked = wanted(made().action(said(1, direction, place)), ActorLimits())
    assert asked.exposure * asked.stop == pytest.approx(sign * 0.002 * leverage / 5, rel=1e-5)


@pytest.mark.parametrize(("place", "stop", "target"), [(-1.0, 0.004, 0.15), (0.0, 0.027, 0.077), (1.0, 0.05, 0.004)])
def test_levels_reach_over_the_documented_ranges(place: float, stop: float, target: float) -> None:
    asked = wanted(made().action(said(tp=-place, sl=place)), ActorLimits())
    assert (float(asked.stop), float(asked.target)) == (pytest.approx(stop), pytest.approx(target))


def test_not_to_execute_is_to_ask_for_flat() -> None:
    assert wanted(made().action(said(0)), ActorLimits()).exposure == 0.0


def test_the_order_that_meets_the_bar_is_the_one_that_was_said() -> None:
    env = made()
    env.reset(seed=0)
    order = env.step(said(1, SHORT, 1.0, tp=-1.0, sl=-1.0))[4]["order"]
    assert (order.amount, order.stop_pct, order.target_pct) == (pytest.approx(-0.5), 0.004, 0.004)


@pytest.mark.parametrize("bad", [{"execute": 2}, {"direction": -1}])
def test_a_class_that_is_none_is_refused_by_name(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(bad))):
        made().action(said(**bad))


@pytest.mark.parametrize("bad", [{"tp": np.nan}, {"leverage": np.nan}])
def test_a_number_that_is_none_is_refused(bad: dict[str, Any]) -> None:
    env = made()
    env.reset(seed=0)
    with pytest.raises(InvalidInput, match="action"):
        env.step(said(**bad))


def test_a_dead_zone_that_swallows_the_least_leverage_is_refused() -> None:
    with pytest.raises(InvalidInput, match="dead_zone"):
        made(ActorLimits(leverage=20.0))
