"""The two named actors: what they are made of. Apart from the deployments, which must not load what only these need."""

from __future__ import annotations

import secrets
import threading
import time
from typing import Any

from feature_repo.features import MINUTE_MS
from hub.code_hash import code_hash
from hub.config import HubConfig
from hub.home import Home
from hub.market import MarketChoice
from hub.state import HubState
from policies.errors import HubError
from policies.rows import NewRow
from sentry.actor import SentryParts

POLL_S = 2.0
PREPARED_MS = 6 * 60 * MINUTE_MS


def sentry_parts(config: HubConfig) -> SentryParts:
    """What PolicySentry may not import: the fold, and what begins a ledger."""
    seed = config.ledger.seed if config.ledger.seed is not None else secrets.randbits(53)
    body: dict[str, Any] = {"seed": seed, "schema": 1, "config": config.configuration(),
                            "config_hash": config.configuration_hash, "code_hash": code_hash()}
    return SentryParts(lambda: HubState(remembers=False), NewRow("genesis", "genesis", body), config.sentry)


class FeederShell:
    """The actor that applies the feature repo and brings bars into the online store.

    In live mode it polls by itself. In replay it is told the time, and computes the features of a few hours at once.
    """

    def __init__(self, home: Home, choice: MarketChoice, redis_url: str, start_ms: int) -> None:
        # Feast takes seconds to import; the process that starts this actor can do without.
        from feature_repo.feeder import BarFeeder
        from feature_repo.store import FeatureRepo

        repo = FeatureRepo(home.root, redis_url)
        repo.apply()
        self._feeder = BarFeeder(choice.open(), repo, choice.symbols)
        self._live = not choice.recorded
        self._prepared_until_ms = 0
        if self._live:
            threading.Thread(target=self._poll_forever, daemon=True).start()
        else:
            self.advance(start_ms)

    def advance(self, now_ms: int) -> None:
        if self._live:
            return
        if now_ms > self._prepared_until_ms:
            self._prepared_until_ms = now_ms + PREPARED_MS
            self._feeder.prepare(now_ms - MINUTE_MS, self._prepared_until_ms)
        self._feeder.advance(now_ms)

    def ready(self) -> bool:
        return True

    def _poll_forever(self) -> None:
        """A feed that fails is seen by the age of what it last wrote, so a failure here only waits for the next try."""
        while True:
            try:
                self._feeder.poll(time.time_ns() // 1_000_000)
            except HubError as error:
                print(f"feeder: {error}", flush=True)
            time.sleep(POLL_S)
