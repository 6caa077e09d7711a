"""The two named actors: what they are made of. Apart from the deployments, which must not load what only these need."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from feature_repo.features import BARS, MINUTE_MS
from feature_repo.frames import GroupFrame
from hub.code_hash import code_hash
from hub.config import HubConfig
from hub.home import Home
from hub.market import MarketChoice
from hub.scores import LedgerScores
from hub.state import HubState
from policies.errors import HubError
from policies.rows import NewRow
from sentry.actor import SentryParts

if TYPE_CHECKING:
    from feature_repo.feeder import Fed
    from feature_repo.sentiment import FearGreedApi
    from feature_repo.sources import FrameSource

POLL_S = 1.0
REFRESH_MOOD_S = 3_600.0
PREPARED_MS = 6 * 60 * MINUTE_MS
KEEP_EVERY_MS = 5 * MINUTE_MS


def sentry_parts(config: HubConfig) -> SentryParts:
    """What PolicySentry may not import: the fold, and what begins a ledger."""
    seed = config.ledger.seed if config.ledger.seed is not None else secrets.randbits(53)
    body: dict[str, Any] = {"seed": seed, "schema": 1, "config": config.configuration(),
                            "config_hash": config.configuration_hash, "code_hash": code_hash()}
    return SentryParts(lambda: HubState(remembers=False), NewRow("genesis", "genesis", body), config.sentry)


class FeederShell:
    """The actor that applies the feature repo and is the one writer of its stores.

    In live mode it polls by itself. In replay it is told the time, and computes the features of a few hours at once.
    What the bot pushed comes from the ledger, where it was acknowledged. Rows go to the offline store in a thread of
    their own: no decision waits for a file.
    """

    def __init__(self, home: Home, choice: MarketChoice, redis_url: str, start_ms: int) -> None:
        # Feast takes seconds to import; the process that starts this actor can do without.
        from feature_repo.feeder import Feeder
        from feature_repo.sources import sources_of
        from feature_repo.store import FeatureRepo

        repo = FeatureRepo(home.root, redis_url)
        repo.apply()
        self._scores, self._turn = LedgerScores(home.ledger), threading.Lock()
        self._live = not choice.recorded
        sources = _live_sources(choice) if self._live else sources_of(choice.open())
        self._feeder = Feeder([*sources, self._scores], repo, choice.symbols)
        self._keeper = ThreadPoolExecutor(1, thread_name_prefix="offline")
        self._prepared_until_ms = self._kept_ms = 0
        if self._live:
            threading.Thread(target=self._poll_forever, daemon=True).start()
        else:
            self.advance(start_ms)

    def advance(self, now_ms: int) -> None:
        """Bring the online store to now_ms. In live mode only what was pushed: the rest comes by itself."""
        with self._turn:
            if not self._live and now_ms > self._prepared_until_ms:
                self._prepared_until_ms = now_ms + PREPARED_MS
                self._keep(self._feeder.prepare(now_ms - MINUTE_MS, self._prepared_until_ms), now_ms)
            for symbol, group in sorted(self._scores.catch_up()):
                frame = self._scores.frame(symbol, group)
                self._feeder.put(symbol, frame)
                self._keep({(symbol, group): frame}, now_ms)
            self._fed(self._feeder.advance(now_ms))

    def ready(self) -> bool:
        return True

    def _poll_forever(self) -> None:
        """A feed that fails is seen by the age of what it last wrote, so a failure here only waits for the next try."""
        while True:
            now_ms = time.time_ns() // 1_000_000
            try:
                with self._turn:
                    self._fed(self._feeder.poll(now_ms))
                    held = self._feeder.held()
                    if now_ms - self._kept_ms >= KEEP_EVERY_MS and any(group == BARS for _, group in held):
                        self._kept_ms = now_ms
                        self._keep(held, now_ms)
            except HubError as error:
                print(f"feeder: {error}", flush=True)
            time.sleep(POLL_S)

    def _keep(self, frames: Mapping[tuple[str, str], GroupFrame], now_ms: int) -> None:
        self._keeper.submit(self._kept, dict(frames), now_ms)

    def _kept(self, frames: dict[tuple[str, str], GroupFrame], now_ms: int) -> None:
        try:
            self._feeder.keep(frames, now_ms)
        except Exception as error:  # a full disk must not end the thread; the rows are added with the next ones
            print(f"feeder: offline rows were not kept: {error!r}", flush=True)

    @staticmethod
    def _fed(fed: Fed) -> None:
        if fed.restore_s is not None:
            print(f"feeder: the online store had lost its content; rebuilt from the offline store in "
                  f"{fed.restore_s:.2f} s", flush=True)


def _live_sources(choice: MarketChoice) -> list[FrameSource]:
    from feature_repo.live_source import follow
    from feature_repo.sentiment import FearGreedApi

    sources: list[FrameSource] = [follow(choice.symbols, choice.hyperliquid_url)]
    if choice.fear_greed_url:
        mood = FearGreedApi(choice.fear_greed_url)
        threading.Thread(target=_refresh_forever, args=(mood,), name="fear-greed", daemon=True).start()
        sources.append(mood)
    return sources


def _refresh_forever(mood: FearGreedApi) -> None:
    """In a thread of its own: a source of moods that does not answer must not keep bars waiting."""
    while True:
        try:
            mood.refresh()
        except HubError as error:
            print(f"feeder: {error}", flush=True)
        time.sleep(REFRESH_MOOD_S)
