"""Searches of `make retrain_sup` as experiments run them: many seeds, each in a home of its own, each resumable."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from feature_repo.market import Market, replay_range
from feature_repo.store import OFFLINE_ONLY, FeatureRepo
from train.candidates import Retrained
from train.cluster import ray_cluster
from train.pool import Pool, RayPool
from train.retrain import Retraining
from train.retrain_settings import RetrainSettings

Say = Callable[[str], None]


@dataclass(frozen=True)
class Search:
    """One search. name: of its folder and in what is said of it. until_ms: None for the part that is for training."""

    name: str
    market: Market
    settings: RetrainSettings
    until_ms: int | None = None


@contextmanager
def searching() -> Iterator[Pool]:
    """A pool for as long as searches run."""
    with ray_cluster():
        yield RayPool()


def found_by(searches: Sequence[Search], folder: Path, pool: Pool, say: Say) -> Iterator[tuple[Search, Retrained]]:
    """Each search with its result. What was finished before an interruption is read, not made again."""
    for number, search in enumerate(searches):
        home = folder / search.name
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        until_ms = search.until_ms
        if until_ms is None:
            until_ms = replay_range(search.market, search.settings.symbols)[1]
        repo = FeatureRepo(home, OFFLINE_ONLY, search.market.origin)
        job = Retraining(search.market, repo, home, search.settings, until_ms, pool)
        done, of = len(job.finished_steps), len(job.steps)
        say(f"({number + 1}/{len(searches)}) {search.name}: {done} of {of} steps are done")
        yield search, job.run()


def quiet() -> None:
    """Libraries' own chatter; ours is the progress and the table."""
    for library in ("alembic", "mlflow", "ray"):
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
