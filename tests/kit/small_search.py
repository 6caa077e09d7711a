"""A search for better heads in seconds: few bars, small models, no Ray; for tests of what comes of one."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from feature_repo.generated import GeneratedMarket
from feature_repo.market import Market
from feature_repo.store import FeatureRepo
from policies.bars import Bars
from train import timesnet_learner
from train.candidates import Retrained
from train.catboost import CatBoostLearner
from train.learners import Setting, Space
from train.linear import LinearLearner
from train.mae_settings import MaeSettings
from train.pool import HerePool, Job, Pool
from train.retrain import Retraining
from train.retrain_settings import RetrainSettings
from train.steps import Steps
from train.sweep import FINISHED, SweepSettings, Trial
from train.tabnet import TabNetLearner
from train.timesnet_learner import TimesNetLearner

SYMBOLS = ("BTC", "ETH")
BARS, WINDOW = 3_000, 30
MAE = MaeSettings(seq_len=WINDOW, d_model=8, nhead=2, encoder_layers=1, decoder_layers=1, embedding=4, epochs=1,
                  windows_per_epoch=256, batch=64, threads=1)
SETTINGS = RetrainSettings(SYMBOLS, window_bars=WINDOW, lookback_bars=BARS, trials=2, folds=1, mae=MAE,
                           heads=("catboost", "linear_mae", "catboost_mae", "ensemble"))
PLAIN = replace(SETTINGS, heads=("linear", "catboost"), mae=None, trials=1)
CODE = "c" * 64
OFFLINE_ONLY = "redis://127.0.0.1:1/0"

Told = Callable[[str, float], None]


def market(bars: int = BARS, seed: int = 3, signal: float = 1.0) -> GeneratedMarket:
    return GeneratedMarket(seed, signal, SYMBOLS, bars)


def repo_of(home: Path, origin: str) -> FeatureRepo:
    """Ready to be filled. Nothing listens at its online store: a search needs none."""
    repo = FeatureRepo(home, OFFLINE_ONLY, origin)
    repo.apply()
    return repo


class GarbledMarket:
    """Another market's bars, with other prices and volumes in each bar that opens in [from_ms, until_ms)."""

    def __init__(self, of: Market, from_ms: int, until_ms: int | None = None) -> None:
        self.name, self.symbols, self.origin, self.folder = of.name, of.symbols, of.origin, of.folder
        self._of, self._from_ms, self._until_ms = of, from_ms, until_ms

    def bars(self, symbol: str, start_ms: int | None = None, stop_ms: int | None = None) -> Bars:
        return garbled(self._of.bars(symbol, start_ms, stop_ms), self._from_ms, self._until_ms)

    def describe(self) -> str:
        return self._of.describe()


def garbled(run: Bars, from_ms: int, until_ms: int | None = None) -> Bars:
    """Bars from from_ms to until_ms, None for the end, jump about by several percent; their times are as they were."""
    later = (run.open_time_ms >= from_ms) & (until_ms is None or run.open_time_ms < until_ms)
    rng = np.random.default_rng(5)
    factor = np.where(later, np.exp(rng.normal(0, 0.03, len(run))), 1.0)
    volume = np.where(later, run.volume * rng.uniform(0.1, 10, len(run)), run.volume)
    prices = {name: getattr(run, name) * factor for name in ("open", "high", "low", "close")}
    return replace(run, **prices, volume=volume).check()


class WatchedPool(HerePool):
    """Remembers what it has done."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}

    def each(self, jobs: Mapping[str, Job], waits: bool = False) -> Iterator[tuple[str, Any]]:
        for name, result in super().each(jobs, waits):
            assert name not in self.jobs, f"{name} was made before"
            if not isinstance(result, Exception):
                self.jobs[name] = jobs[name]
            yield name, result


def search_here(objective: Any, space: Mapping[str, Space], first: Mapping[str, Setting], settings: SweepSettings,
                folder: Path) -> list[Trial]:
    """In place of `train.sweep.search`: first the given settings, then the ends of the space, in this process."""
    trials = []
    for number in range(settings.trials):
        chosen = dict(first) if number == 0 else {name: _end(one, number) for name, one in space.items()}
        loss, found = objective(chosen, lambda step, loss: None)
        trials.append(Trial(number, chosen, FINISHED, 1, loss, found))
    return trials


def _end(space: Space, number: int) -> Setting:
    if space.choices:
        return space.choices[number % len(space.choices)]
    value = space.low if number % 2 else space.high
    return int(value) if space.whole else value


@contextmanager
def small_learners() -> Iterator[None]:
    """Every learner fits in a second."""
    makers = {"linear": lambda size: LinearLearner(), "catboost": lambda size: CatBoostLearner(25, 10, 1),
              "tabnet": partial(TabNetLearner, max_epochs=2), "timesnet": partial(TimesNetLearner)}
    profile = timesnet_learner.Profile(blocks=1, kernels=2, batch=256, epochs=1, patience=1)
    with mock.patch.dict("train.supervised._MAKERS", makers), \
            mock.patch.dict(timesnet_learner.PROFILES, {"small": profile}):
        yield


@contextmanager
def without_ray() -> Iterator[None]:
    """Searches of this process take place in it, with small learners and a code version that nobody changes."""
    with ExitStack() as stack:
        stack.enter_context(small_learners())
        stack.enter_context(mock.patch("train.jobs.search", search_here))
        stack.enter_context(mock.patch("train.retrain.code_version", return_value=CODE))
        yield


def retraining(home: Path, settings: RetrainSettings = SETTINGS, of: Market | None = None,
               until_ms: int | None = None, pool: Pool | None = None,
               told: Told = lambda step, share: None) -> Retraining:
    """Within `without_ray`."""
    of = of or market()
    repo = FeatureRepo(home, OFFLINE_ONLY, of.origin)
    return Retraining(of, repo, home, settings, until_ms, pool or HerePool(), told)


@dataclass(frozen=True)
class Searched:
    """A search that is over. jobs: everything that its pool did, by step. told: (step, share) in the order of time."""

    home: Path
    retrained: Retrained
    jobs: Mapping[str, Job]
    told: tuple[tuple[str, float], ...]

    @property
    def steps(self) -> Steps:
        return Steps(self.home / "retrain" / self.retrained.key)


@cache
def searched() -> Searched:
    """One search with an embedder and an ensemble; nobody writes to its home."""
    home, pool, told = Path(tempfile.mkdtemp(prefix="small-search-")), WatchedPool(), list[tuple[str, float]]()
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    with without_ray():
        retrained = retraining(home, pool=pool, told=lambda step, share: told.append((step, share))).run()
    return Searched(home, retrained, pool.jobs, tuple(told))
