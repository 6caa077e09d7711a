"""One training of one seed, in looks, between which it may be interrupted; the best on the validation range counts.

At each look the deterministic actor plays the validation range, bar by bar and as it is served. Its figure is the mean
of both net returns per symbol: the first is what is learnt and has less noise, the second is what a hub would do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from train.rl.checkpoint import is_checkpoint, load_checkpoint, read_checkpoint, save_checkpoint
from train.rl.evaluate import Act, play, serve, stretches_in
from train.rl.experience import Experience
from train.rl.export import actor_of
from train.rl.market_rows import MarketRows, TimeRange
from train.rl.rows import load_rows
from train.rl.settings import SAC, RlSettings

LOOKS = "looks"

Figures = dict[str, float]
Told = Callable[[Mapping[str, Any]], None]  # hears of every look
Prepared = Callable[[Any, bool], None]  # (algorithm, whether it begins here): before the first step


@dataclass(frozen=True)
class Trained:
    """module: RLlib's weights by name, of the best look. looks: all of them, in order; `figure` is what chose.
    steps: environment steps until the end. updates: gradient steps of SAC, None for PPO. seconds: of this process.
    """

    module: Mapping[str, Any]
    looks: tuple[Mapping[str, Any], ...]
    steps: int
    updates: int | None
    seconds: float

    @property
    def best(self) -> Mapping[str, Any]:
        return max(self.looks, key=lambda look: (look["figure"], -look["steps"]))


def figures_of(act: Act, market: list[MarketRows], within: TimeRange, settings: RlSettings) -> Figures:
    """Of one range, every bar and served, in percent of equity. Played is the mean over symbols, served their sum;
    `figure` weighs both alike, whatever the number of symbols.
    """
    played = play(act, market, stretches_in(market, within, settings.env.episode_bars), settings.env).figures()
    served = serve(act, market, within, settings.env, settings.brackets).metrics()
    return {"figure": (played["net_return_percent"] + served["net_return_percent"] / len(market)) / 2.0,
            **{f"played_{name}": value for name, value in played.items()},
            **{f"served_{name}": value for name, value in served.items()}}


def train(settings: RlSettings, folder: Path, seed: int, last: Path, prepared: Prepared,
          told: Told = lambda look: None, about: Mapping[str, Any] = MappingProxyType({})) -> Trained:
    """folder: the job's steps, with its rows. last: of its checkpoint, from which it goes on after an interruption.
    about: plain JSON that the checkpoint says besides.
    """
    from train.rl.algorithms import built, weights_of  # imports Ray, whose variables must be set before

    began, rows = time.perf_counter(), load_rows(folder)
    market, standard = rows.market, {"mean": rows.standard.mean, "scale": rows.standard.scale}
    held = read_checkpoint(last) if is_checkpoint(last) else None
    looks: list[dict[str, Any]] = [] if held is None else held.about[LOOKS]
    best: Mapping[str, Any] = {} if held is None else held.best
    before = looks[-1]["steps"] if looks else 0
    algorithm = built(settings, folder, seed, before)
    try:
        if held is not None:
            load_checkpoint(held, algorithm)
        prepared(algorithm, not looks)
        steps, each = before, max(1, settings.steps // settings.evaluations)
        while not _over(looks, steps, settings):
            result = algorithm.train()
            steps = before + int(result["num_env_steps_sampled_lifetime"])
            if steps < min(settings.steps, (len(looks) + 1) * each):
                continue
            module = weights_of(algorithm)
            act = actor_of(module, settings.algo).act
            look = {"steps": steps, "seconds": round(time.perf_counter() - began, 1), "reward": _reward(result),
                    **figures_of(act, market, rows.ranges.validation, settings)}
            looks.append(look)
            if look is max(looks, key=lambda one: (one["figure"], -one["steps"])):
                best = module
            save_checkpoint(last, algorithm, {**about, LOOKS: looks, "algo": settings.algo, "size": settings.size},
                            standard, best)
            told(look)
        return Trained(best, tuple(looks), steps, getattr(algorithm, "updates", None),
                       time.perf_counter() - began)
    finally:
        algorithm.stop()


def remembers(algorithm: Any) -> Experience | None:
    """What SAC remembers, to add to; None for PPO."""
    return getattr(algorithm, "experience", None)


def updates_of(settings: RlSettings) -> str:
    """In words, for people."""
    if settings.algo != SAC:
        return f"{settings.ppo.epochs} passes over each {settings.ppo.envs * settings.ppo.rollout} steps"
    return f"1 update per {settings.steps_per_update} steps, on {settings.sac.batch_rows} transitions each"


def _over(looks: list[dict[str, Any]], steps: int, settings: RlSettings) -> bool:
    if not looks:
        return False
    best = max(range(len(looks)), key=lambda place: (looks[place]["figure"], -place))
    # Whoever has just begun loses by trading, and flat looks best: that is no reason to end.
    tired = len(looks) - 1 - best >= settings.patience and steps >= settings.steps / 2
    return steps >= settings.steps or tired


def _reward(result: Mapping[str, Any]) -> float | None:
    """Mean summed reward of the episodes that ended since the last look, with exploration; None if none did."""
    found = result.get("env_runners", {}).get("episode_return_mean")
    return None if found is None or not np.isfinite(found) else round(float(found), 4)
