"""Steps of the trading environment: many accounts in one compiled call, against the same environment by itself.

All sides play the same market. Before anything is timed, single environments, the vectorised twin and the engine's
backtest of the recorded orders must give the same equity for the same actions, to the last bit, and both environments
the same observations; else nothing is measured.

Actions are drawn at random, in one row anew at every bar, so that nearly every bar is a trade, and in the other held
for as many bars as a trade's horizon. The floor is numpy gathering the observations of all accounts from a table that
holds one for each bar: each stands at a bar of its own, so they lie together nowhere before. What it takes to copy
them once they do is shown beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ci.bench.load import NotMeasured
from feature_repo.generated import GeneratedMarket
from feature_repo.transforms import compute_features
from policies.actor import observations
from policies.engine.columns import Orders, simulate_accounts
from policies.engine.rules import Sizing
from reports.report import Aim, BenchRow, Side, compared
from train.dataset import FeatureRows
from train.rl.env import HyperliquidTradingEnv
from train.rl.env_settings import EnvSettings
from train.rl.market_rows import MarketRows, market_rows
from train.rl.vector_env import VectorTradingEnv

WORK = "Trading environment steps"
AIM = Aim(least_to_peer=100.0, most_to_floor=3.0)
OURS, SINGLE, DUMMY = "train.rl.vector_env.VectorTradingEnv", "the single environment by itself", "DummyVecEnv"
FLOOR, BLOCK = "numpy gathering the same observations", "numpy copying one block of as many observations"
HELD_BARS = 15
DUMMY_ENVS, COMPARED_ENVS = 16, 8

Say = Callable[[str], None]
Actions = NDArray[np.float32]
Work = Callable[[], int]  # returns how many steps of an account it made


@dataclass(frozen=True)
class Task:
    """actions: (steps, N, 3), for a whole episode and the step that begins the next one."""

    name: str
    rows: Sequence[MarketRows]
    settings: EnvSettings
    actions: Actions

    @property
    def envs(self) -> int:
        return self.actions.shape[1]


def run(say: Say, rounds: int = 5, envs: int = 256, bars: int = 20_000, seed: int = 1,
        settings: EnvSettings | None = None) -> list[BenchRow]:
    """Two rows: actions that trade at nearly every bar, and actions that are held."""
    return [_measure(say, task, rounds) for task in tasks(generated(bars, seed), envs, seed, settings or EnvSettings())]


def generated(bars: int, seed: int) -> list[MarketRows]:
    """Two symbols of the generated market."""
    market = GeneratedMarket(seed, 1.0, ("SOL", "BTC"), bars)
    runs = {symbol: market.bars(symbol) for symbol in market.symbols}
    found = {symbol: compute_features(run) for symbol, run in runs.items()}
    return market_rows(runs, {name: FeatureRows(one.event_time_ms, one.values) for name, one in found.items()})[0]


def tasks(rows: Sequence[MarketRows], envs: int, seed: int, settings: EnvSettings) -> list[Task]:
    rng, steps = np.random.default_rng(seed), settings.episode_bars + 1
    anew = rng.uniform(-1.0, 1.0, (steps, envs, 3)).astype(np.float32)
    held = anew[np.arange(steps) // HELD_BARS * HELD_BARS]
    return [Task("random actions at every bar", rows, settings, anew),
            Task(f"random actions held for {HELD_BARS} bars", rows, settings, held)]


def _measure(say: Say, task: Task, rounds: int) -> BenchRow:
    say(f"{task.name}: the same actions in all forms")
    steps_compared = check_equal(task)
    works = {OURS: ours(task), SINGLE: single(task), DUMMY: dummy(task), FLOOR: gathering(task), BLOCK: block(task)}
    say(f"{task.name}: {steps_compared:,} steps equal in every bit; {rounds} rounds")
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        there = list(works)[::1 if number % 2 == 0 else -1]
        for name in [*there, *reversed(there)]:
            times[name].append(_us_a_step(works[name]))
    return _row(task, times, steps_compared)


def _row(task: Task, times: Mapping[str, list[float]], steps_compared: int) -> BenchRow:
    sides = {name: Side(name, found) for name, found in times.items()}
    mine = sides[OURS].median
    return compared(
        f"{WORK}, {task.envs} accounts, {task.name}", "us", sides[OURS], sides[SINGLE], sides[FLOOR], AIM,
        [Side(f"{DUMMY} of {min(DUMMY_ENVS, task.envs)}, Stable-Baselines3", times[DUMMY]), sides[BLOCK]],
        {"steps_equal_in_every_bit": steps_compared, "dummy_vec_env_over_ours": sides[DUMMY].median / mine,
         "ours_over_copying_one_block": mine / sides[BLOCK].median, "trades_a_step": _trades_a_step(task)})


def ours(task: Task) -> Work:
    env = VectorTradingEnv(task.rows, task.envs, task.settings, seed=0)
    env.reset()
    actions = list(task.actions)

    def work() -> int:
        for action in actions:
            env.step(action)
        return task.actions.shape[0] * task.envs

    return work


def single(task: Task) -> Work:
    env, actions = HyperliquidTradingEnv(task.rows[0], settings=task.settings), list(task.actions[1:, 0])

    def work() -> int:
        env.reset()
        for action in actions:
            if any(env.step(action)[2:4]):
                env.reset()
        return len(actions)

    return work


def dummy(task: Task) -> Work:
    from stable_baselines3.common.vec_env import DummyVecEnv

    def made() -> HyperliquidTradingEnv:
        return HyperliquidTradingEnv(task.rows[0], settings=task.settings)

    count = min(DUMMY_ENVS, task.envs)
    env, actions = DummyVecEnv([made] * count), list(task.actions[:60, :count])
    env.reset()

    def work() -> int:
        for action in actions:
            env.step(action)
        return len(actions) * count

    return work


def gathering(task: Task) -> Work:
    """The observation of each bar, of an account that is flat, from one table; accounts at random bars."""
    table = np.concatenate([observations(one.features, np.zeros(8, np.float32)) for one in task.rows])
    steps = len(task.actions)
    first = np.random.default_rng(0).integers(0, len(table) - steps, task.envs)
    places, into = [first + step for step in range(steps)], np.empty((task.envs, table.shape[1]), np.float32)

    def work() -> int:
        for place in places:
            np.take(table, place, axis=0, out=into, mode="clip")
        return steps * task.envs

    return work


def block(task: Task) -> Work:
    """The observations of a step lie together, those of all steps after each other."""
    steps = len(task.actions)
    recorded = np.ones((steps, task.envs, 100), np.float32)
    into = np.empty_like(recorded[0])

    def work() -> int:
        for one in recorded:
            np.copyto(into, one)
        return steps * task.envs

    return work


def check_equal(task: Task) -> int:
    """How many steps of an account were compared; NotMeasured if one differs in a bit."""
    count, rows = min(COMPARED_ENVS, task.envs), task.rows[0]
    actions = task.actions[1:, :count]
    starts = rows.starts(task.settings.episode_bars)
    first = starts[np.linspace(0, len(starts) - 1, count).astype(np.int64)]
    begin_ms = rows.bars.close_time_ms[first]
    twin = VectorTradingEnv([rows], count, task.settings)
    singles = [HyperliquidTradingEnv(rows, settings=task.settings) for _ in range(count)]
    seen = [twin.reset(options={"start_ms": begin_ms})[0]]
    alone = [[env.reset(options={"start_ms": int(at)})[0] for env, at in zip(singles, begin_ms, strict=True)]]
    equity, orders = np.full((count, len(actions)), np.nan), np.full((3, count, len(actions)), np.nan)
    for step, action in enumerate(actions):
        observed, rewards, terminated, _, _ = twin.step(action)
        if terminated.any():
            raise NotMeasured("an episode was ruined: these settings can't be compared")
        stepped = [env.step(one) for env, one in zip(singles, action, strict=True)]
        seen.append(observed)
        alone.append([one[0] for one in stepped])
        equity[:, step], orders[:, :, step] = twin.accounts.equity, twin.accounts.orders.T
        if [(one[1], one[4]["equity"]) for one in stepped] != list(zip(rewards, equity[:, step], strict=True)):
            raise NotMeasured(f"{task.name}: the twin earns something else than the single environment at step {step}")
    if np.array(seen).tobytes() != np.array(alone).tobytes():
        raise NotMeasured(f"{task.name}: the twin observes something else than the single environment")
    for number, bar in enumerate(first.tolist()):
        if not np.array_equal(_backtest(task, bar, orders[:, number]), equity[number]):
            raise NotMeasured(f"{task.name}: the backtest of the orders earns something else")
    return int(equity.size)


def _backtest(task: Task, bar: int, orders: NDArray[np.float64]) -> NDArray[np.float64]:
    """The engine's equity at each close for the orders of an episode that began at the close of `bar`."""
    bars = task.rows[0].bars.slice(bar + 1, bar + 1 + orders.shape[1])
    found = simulate_accounts(bars, Orders(orders[0], Sizing.TARGET_FRACTION, leverage=task.settings.limits.leverage,
                                           stop_pct=orders[1], target_pct=orders[2]), 10_000.0, task.settings.costs)
    assert found.curves is not None
    return found.curves[0]


def _trades_a_step(task: Task) -> float:
    env = VectorTradingEnv(task.rows, task.envs, task.settings, seed=0)
    env.reset()
    return float(np.mean([~np.isnan(env.accounts.orders[:, 0]) for action in task.actions[:-1] if env.step(action)]))


def _us_a_step(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    steps = work()
    return (time.perf_counter() - start) / steps * 1e6
