"""The two named actors: what they are made of. Apart from the deployments, which must not load what only these need."""

from __future__ import annotations

import secrets
import threading
import time
import traceback
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from feature_repo.features import BARS, MINUTE_MS
from feature_repo.frames import GroupFrame
from hub.code_hash import code_hash
from hub.config import HubConfig
from hub.embedding_use import EmbeddingFollower
from hub.home import Home
from hub.market import MarketChoice
from hub.scores import LedgerScores
from hub.state import HubState
from policies.errors import HubError
from policies.rows import NewRow
from sentry.actor import SentryParts

if TYPE_CHECKING:
    from feature_repo.feeder import Fed
    from feature_repo.live_source import LiveSource
    from feature_repo.sentiment import FearGreedApi

POLL_S, PAUSE_S = 1.0, 0.05  # at the latest, and at the earliest, until the exchange is looked at again
REFRESH_MOOD_S, MOOD_AGAIN_S = 3_600.0, 60.0  # after an answer, after none
PREPARED_MS = 6 * 60 * MINUTE_MS
KEEP_EVERY_MS = 5 * MINUTE_MS
KEPT_MS = 150 * MINUTE_MS  # of the time before the start, live, that is kept as well: what the exchange is asked for


def sentry_parts(config: HubConfig) -> SentryParts:
    """What PolicySentry may not import: the fold, and what begins a ledger."""
    seed = config.ledger.seed if config.ledger.seed is not None else secrets.randbits(53)
    body: dict[str, Any] = {"seed": seed, "schema": 1, "config": config.configuration(),
                            "config_hash": config.configuration_hash, "code_hash": code_hash()}
    return SentryParts(lambda: HubState(remembers=False), NewRow("genesis", "genesis", body), config.sentry)


class FeederShell:
    """The actor that applies the feature repo and is the one writer of its stores.

    In live mode it polls by itself. In replay it is told the time, and computes the features of a few hours at once.
    What the bot pushed, and which embedder is in use, come from the ledger, where they were acknowledged. Rows go to
    the offline store in a thread of their own: no decision waits for a file.
    """

    def __init__(self, home: Home, choice: MarketChoice, redis_url: str, start_ms: int) -> None:
        # Feast takes seconds to import; the process that starts this actor can do without.
        from feature_repo.array_feed import ArrayFeed
        from feature_repo.feeder import Feeder
        from feature_repo.sources import sources_of
        from feature_repo.store import FeatureRepo

        market = choice.open()
        repo = FeatureRepo(home.root, redis_url, market.origin)
        repo.apply()
        self._live = not choice.recorded
        self._scores, self._turn = LedgerScores(home.ledger, choice.symbols), threading.Lock()
        sources: list[Any] = _live_sources(choice) if self._live else sources_of(market)
        self._feeder = Feeder([*sources, self._scores], repo, choice.symbols, ArrayFeed(sources[0], choice.symbols))
        self._embedding, self._embedding_problem = EmbeddingFollower(home, self._feeder.use_embedder), ""
        self._keeper = ThreadPoolExecutor(1, thread_name_prefix="offline")
        self._now_ms = self._prepared_until_ms = self._kept_ms = self._keep_due_ms = 0
        if self._live:
            threading.Thread(target=self._poll_forever, args=(sources[0],), daemon=True).start()
        else:
            self.advance(start_ms)

    def advance(self, now_ms: int) -> None:
        """Bring the online store to now_ms; never back. In live mode only what was pushed: the rest comes by itself."""
        with self._turn:
            self._now_ms = now_ms = max(now_ms, self._now_ms)
            if not self._live and now_ms > self._prepared_until_ms:
                self._prepared_until_ms = now_ms + PREPARED_MS
                self._keep(self._feeder.prepare(now_ms - MINUTE_MS, self._prepared_until_ms))
            self._take_in()
            self._fed(self._feeder.advance(now_ms), now_ms)

    def ready(self) -> bool:
        return True

    def _poll_forever(self, live: LiveSource) -> None:
        """A feed that fails is seen by the age of what it last wrote, so a failure here only waits for the next try."""
        problem = ""
        while True:
            now_ms = _wall_ms()
            try:
                with self._turn:
                    self._now_ms = now_ms
                    self._take_in()
                    self._fed(self._feeder.poll(now_ms), now_ms)
                if now_ms >= self._keep_due_ms:
                    self._keep_due_ms = now_ms + KEEP_EVERY_MS
                    since_ms = self._kept_ms or now_ms - KEPT_MS
                    self._keep(self._feeder.known(since_ms, now_ms), until_ms=now_ms)
                if live.problem != problem:
                    problem = live.problem
                    print(f"feeder: the exchange: {problem}", flush=True)
            except HubError as error:
                print(f"feeder: {error}", flush=True)
            except Exception:  # whatever it was, features that stop for good are worse
                traceback.print_exc()
            live.wait(POLL_S)
            time.sleep(PAUSE_S)

    def _take_in(self) -> None:
        """What the ledger has recorded for the feeder since."""
        self._embedding.follow()
        problem = self._embedding.problem or self._feeder.embedding_problem
        if problem and problem != self._embedding_problem:
            print(f"feeder: the market's embedding: {problem}", flush=True)
        self._embedding_problem = problem
        news = self._scores.catch_up()
        for symbol, group in sorted(news):
            self._feeder.put(symbol, self._scores.frame(symbol, group))
        if news:
            self._keep(news)

    def _keep(self, frames: Mapping[tuple[str, str], GroupFrame], until_ms: int | None = None) -> None:
        self._keeper.submit(self._kept, dict(frames), until_ms)

    def _kept(self, frames: dict[tuple[str, str], GroupFrame], until_ms: int | None) -> None:
        """until_ms: of live rows; from there on they are kept the next time, and from before if this fails."""
        try:
            self._feeder.keep(frames, _wall_ms())
            if any(group == BARS for _, group in frames):
                self._feeder.keep_embeddings(_wall_ms())
        except Exception as error:  # a full disk must not end the thread
            print(f"feeder: offline rows were not kept: {error!r}", flush=True)
            return
        if until_ms is not None and any(group == BARS for _, group in frames):
            self._kept_ms = until_ms
        elif until_ms is not None:
            self._keep_due_ms = 0  # the exchange had not said anything yet

    def _fed(self, fed: Fed, now_ms: int) -> None:
        if fed.lost:
            self._keeper.submit(self._restored, now_ms)

    def _restored(self, now_ms: int) -> None:
        started = time.monotonic()
        try:
            rows = self._feeder.restore(now_ms)
            with self._turn:  # what was restored may be a moment older than what had been written since
                self._feeder.advance(max(now_ms, self._now_ms))
        except Exception as error:  # Redis may be gone again; the next advance sees that it holds nothing
            print(f"feeder: the online store could not be rebuilt: {error!r}", flush=True)
            return
        print(f"feeder: the online store had lost its content; rebuilt from the offline store in "
              f"{time.monotonic() - started:.2f} s, {rows} rows", flush=True)


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def _live_sources(choice: MarketChoice) -> list[Any]:
    """The exchange first."""
    from feature_repo.live_source import follow
    from feature_repo.sentiment import FearGreedApi

    sources: list[Any] = [follow(choice.symbols, choice.hyperliquid_url)]
    if choice.fear_greed_url:
        mood = FearGreedApi(choice.fear_greed_url)
        threading.Thread(target=_refresh_forever, args=(mood,), name="fear-greed", daemon=True).start()
        sources.append(mood)
    return sources


def _refresh_forever(mood: FearGreedApi) -> None:
    """In a thread of its own: a source of moods that does not answer must not keep bars waiting."""
    while True:
        pause_s = REFRESH_MOOD_S
        try:
            mood.refresh()
        except HubError as error:
            print(f"feeder: {error}", flush=True)
            pause_s = MOOD_AGAIN_S
        time.sleep(pause_s)
