"""`hub features`: applies the feature repo, fills the offline store from the market and the ledger, counts the days
for drift, embeds the market by the embedder in use, and brings the newest rows into the online store.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from rich import box
from rich.table import Table

from feature_repo.back_fill import BackFill
from feature_repo.drift import DriftReport
from feature_repo.embedding_fill import EmbeddingFill
from feature_repo.features import DECISION_V1
from feature_repo.market import Market
from feature_repo.offline import Extent
from feature_repo.online import OnlineReader
from feature_repo.redis_server import EmbeddedRedis
from feature_repo.sources import sources_of
from feature_repo.statistics import FeatureStatistics
from feature_repo.store import FeatureRepo
from hub.config import HubConfig
from hub.embedding_use import LedgerEmbedding, embedders_of
from hub.home import Home, HomeInUse
from hub.ledger_views import LedgerViews
from hub.market import MarketChoice, settle
from policies.errors import HubError, WriterUnavailable
from policies.types import NO_EMBEDDING
from sentry.ledger import LedgerReader

Say = Callable[[str], None]

CHECK_DEADLINE_S = 5.0


@dataclass(frozen=True)
class FeatureRun:
    """What the job leaves. extents: of every view and part. drift: of each symbol's last day."""

    extents: list[Extent]
    drift: list[DriftReport]


def fill_features(home: Home, config: HubConfig, data_dir: str | None, say: Say) -> FeatureRun:
    """Interrupted at any point, it goes on there when it is called again."""
    with ExitStack() as stack:
        choice, market = settle(config, data_dir)
        say(f"market: {market.describe()}")
        redis_url = _redis_of_this_run(home, config, stack)
        repo = FeatureRepo(home.root, redis_url or f"redis://127.0.0.1:{config.storage.redis_port}/0", market.origin,
                           timeout_s=1.0)
        repo.apply()
        say(f"applied: {len(repo.definitions.views)} views, services {', '.join(repo.definitions.services)}")
        statistics = FeatureStatistics(repo.offline.folder / "statistics.duckdb")
        _back_fill(choice, market, repo, statistics, say)
        _embed(home, choice, market, repo, say)
        _write_ledger_views(home, repo, say)
        if redis_url is None:
            say("online store: left to the running hub, whose feeder is its one writer")
        else:
            _materialize(choice, market, repo, say)
        return FeatureRun(repo.offline.extents(), _last_days(statistics, choice.symbols))


def extents_table(extents: list[Extent]) -> Table:
    table = Table("view", "of", "rows", "first", "last", box=box.SIMPLE)
    for extent in extents:
        table.add_row(extent.view, extent.part, f"{extent.rows:,}", _stamp(extent.first_ms), _stamp(extent.last_ms))
    return table


def drift_table(reports: list[DriftReport]) -> Table:
    table = Table("symbol", "day", "drift", "level", "days of reference", "", box=box.SIMPLE)
    for report in reports:
        table.add_row(report.symbol, report.date, _nats(report.figure), _nats(report.level_figure),
                      str(report.reference_days), report.reason or "")
    return table


def _redis_of_this_run(home: Home, config: HubConfig, stack: ExitStack) -> str | None:
    """Where the newest rows go: the configured Redis, or an embedded one for this run; None while a hub runs here."""
    try:
        stack.enter_context(home.lock())
    except HomeInUse:
        return None
    if config.storage.redis_url:
        return config.storage.redis_url
    return stack.enter_context(EmbeddedRedis(home.run / "redis", config.storage.redis_port)).url


def _back_fill(choice: MarketChoice, market: Market, repo: FeatureRepo, statistics: FeatureStatistics,
               say: Say) -> None:
    job = BackFill(market, sources_of(market), repo, statistics)
    for symbol in choice.symbols:
        for filled in job.run(symbol, time.time_ns() // 1_000_000):
            say(f"{symbol}: {filled.added:,} new rows until {_stamp(filled.until_ms)} ({filled.share:.0%})")


def _embed(home: Home, choice: MarketChoice, market: Market, repo: FeatureRepo, say: Say) -> None:
    """By the version that the ledger says is in use; without one, nothing."""
    version = LedgerEmbedding(home.ledger).catch_up()
    if version == NO_EMBEDDING:
        return
    job = EmbeddingFill(market, repo, embedders_of(home).load(version))
    for symbol in choice.symbols:
        for filled in job.run(symbol, time.time_ns() // 1_000_000):
            say(f"{symbol}: {filled.added:,} new embeddings by {version} until {_stamp(filled.until_ms)} "
                f"({filled.share:.0%})")


def _write_ledger_views(home: Home, repo: FeatureRepo, say: Say) -> None:
    try:
        reader = LedgerReader(home.ledger)
    except WriterUnavailable:
        return  # no hub has run here yet
    added = LedgerViews(reader, repo).write()
    reader.close()
    if any(added.values()):
        say("ledger: " + ", ".join(f"{count:,} {view}" for view, count in added.items()))


def _materialize(choice: MarketChoice, market: Market, repo: FeatureRepo, say: Say) -> None:
    """As of the last bar that all symbols have, and read back as the hub reads it."""
    now_ms = min(int(market.bars(symbol).close_time_ms[-1]) for symbol in choice.symbols)
    started = time.monotonic()
    repo.materialize(now_ms)
    took_s = time.monotonic() - started
    table = repo.training_frame(choice.symbols, [now_ms])
    offline = table[list(DECISION_V1.names)].to_numpy(np.float64)
    online = asyncio.run(_read(repo.redis_url, choice.symbols, now_ms))
    if not np.array_equal(offline, online, equal_nan=True):
        raise HubError("what the online store serves is not what the offline store joins")
    say(f"online store: materialised as of {_stamp(now_ms)} in {took_s:.2f} s; "
        f"{len(choice.symbols)} vectors read back equal to the offline join")


async def _read(redis_url: str, symbols: tuple[str, ...], now_ms: int) -> np.ndarray:
    reader = OnlineReader(redis_url, deadline_s=CHECK_DEADLINE_S)
    try:
        return np.array([(await reader.read(symbol, now_ms)).values for symbol in symbols])
    finally:
        await reader.close()


def _last_days(statistics: FeatureStatistics, symbols: tuple[str, ...]) -> list[DriftReport]:
    """Of the last whole day of each symbol."""
    last = {symbol: statistics.history(symbol)[-2:] for symbol in symbols}
    return [reports[0] for reports in last.values() if reports]


def _stamp(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1_000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _nats(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.3f}"
