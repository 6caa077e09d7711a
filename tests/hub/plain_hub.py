"""A whole hub of plain parts in one process: real ledger, audit, sentry, folds, bundles and heads; no Ray, no HTTP.

What lies outside is replaced (`local_parts`): features are a keyed draw of symbol and minute, the clock replays, the
feeder does nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
from local_parts import KeyedFeatures, LocalExtras, LocalHeads, LocalIntake, LocalWriter, StillFeeder

from feature_repo.features import MINUTE_MS
from hub.api import build_api
from hub.config import HubConfig, parse
from hub.embedding_use import embedders_of
from hub.head_rack import HeadRack
from hub.home import Home
from hub.rack_loading import load_registered
from hub.registration import registrar_of
from hub.service import HubService
from hub.state import HubState, folded
from hub.webhook import PolicyWebhook
from policies.bundle import Bundle, pack_bundle
from policies.clock import Clock, ReplayClock
from policies.registry import PolicyFolder
from policies.rows import NewRow, Row
from sentry.actor import SentryParts, SentryShell
from sentry.ledger import LedgerReader

START_MS = 1_760_000_000_000 // MINUTE_MS * MINUTE_MS
SYMBOLS = ("BTC", "ETH", "SOL", "HYPE")
EQUITY = 10_000.0
PRICE = 100.0
TOKENS = {"bot": "bot-secret-0123456789", "ops": "ops-secret-9876543210"}
WEBHOOK_SECRET = "whsec_" + "dGVzdHMgb25seQ" * 2
MARKET = "a keyed draw for tests"


class PlainHub:
    """Opened on a home; opened again on the same home it knows what it knew.

    settings: blocks of the configuration; rollout is `full` unless they say otherwise.
    """

    def __init__(self, root: Path, settings: Mapping[str, Any] | None = None, clock: Clock | None = None,
                 seed: int = 3) -> None:
        self.home = Home(root)
        self.home.create()
        self.config: HubConfig = parse({"rollout": {"mode": "full"}, **(settings or {})})
        body = {"seed": seed, "schema": 1, "config": self.config.configuration(),
                "config_hash": self.config.configuration_hash, "code_hash": "e" * 64}
        parts = SentryParts(lambda: HubState(remembers=False), NewRow("genesis", "genesis", body), self.config.sentry)
        self.shell = SentryShell(str(root), self.config, lambda _: parts, START_MS)
        self.reader = LedgerReader(self.home.ledger)
        state = folded(self.reader)
        self.clock = clock or ReplayClock(max(START_MS, state.latest_ms))
        self.folder = PolicyFolder(self.home.policies)
        self.rack = HeadRack(self.folder)
        load_registered(self.rack, self.home.ledger)
        self.features, self.heads = KeyedFeatures(self.clock), LocalHeads(self.rack)
        self.writer = LocalWriter(self.shell)
        self.service = HubService(self.reader, state, self.clock, self.config.market.symbols, self.features,
                                  self.heads, self.writer, StillFeeder(), self.config.server,
                                  embedders_of(self.home))
        self.intake = LocalIntake()
        self.registrar = registrar_of(self.home, self.config, self.service, self.intake)
        self.wall_s = 1_800_000_000.0  # of the webhook's clock
        self.webhook = PolicyWebhook(self.registrar, self.reader, WEBHOOK_SECRET, lambda: self.wall_s)
        self._opened_at, self._requests = self.reader.head(), 0

    @property
    def state(self) -> HubState:
        """The service's fold, brought up to date."""
        self.service.catch_up()
        return self.service.state

    @property
    def writers_state(self) -> HubState:
        fold = self.shell._sentry.fold
        assert isinstance(fold, HubState)
        return fold

    @property
    def time_ms(self) -> int:
        return self.clock.now_ms()

    def api(self) -> Any:
        return build_api(self.service, LocalExtras(), TOKENS, self.config.server, MARKET, self.registrar, self.webhook)

    async def register(self, bundle: Bundle) -> str:
        self.folder.add(pack_bundle(bundle))
        await self.service.register(bundle.policy_id, bundle.manifest.alias, _manifest_of(bundle))
        return bundle.policy_id

    async def command(self, command: str, policy: str, command_id: str | None = None) -> dict[str, Any]:
        return await self.service.command(command, policy, "a test", command_id or f"{command}-{self.reader.head()}")

    async def judge(self, judgement: str, policy_id: str) -> None:
        """An operator's verdict, by one of the sentry's own names."""
        sentry = self.shell._sentry
        call = {"approve": sentry.approve_policy, "reduce": sentry.reduce_traffic,
                "throttle": sentry.throttle_policy, "halt": sentry.emergency_halt}[judgement]
        self.shell._commits.submit(lambda: call(policy_id, self.time_ms)).result()

    def request(self, **changes: Any) -> dict[str, Any]:
        """A request at the clock's time, with every field of the wire."""
        self._requests += 1
        asked = {"request_id": f"r{self._opened_at}-{self._requests}", "symbol": "BTC", "strategy": "momentum",
                 "time_ms": self.time_ms, "portfolio": portfolio(), "llm": None, "parent_decision_id": None}
        return {**asked, **changes}

    async def decide(self, **changes: Any) -> dict[str, Any]:
        return await self.service.decide(self.request(**changes))

    async def decide_later(self, minutes: int = 1, **changes: Any) -> dict[str, Any]:
        return await self.decide(time_ms=self.time_ms + minutes * MINUTE_MS, **changes)

    async def trade(self, policy_id: str | None = None, tries: int = 400, **changes: Any) -> dict[str, Any]:
        """Ask minute by minute until a decision opens a trade (of that policy)."""
        for _ in range(tries):
            answer = await self.decide_later(**changes)
            if opens(answer) and policy_id in (None, answer["policy_id"]):
                return answer
            if opens(answer):
                await self.report(answer, 0.0, exit_reason="not_filled")
        raise AssertionError(f"no trade of {policy_id or 'anybody'} in {tries} decisions")

    async def report(self, answer: dict[str, Any], net_return: float, **changes: Any) -> dict[str, Any]:
        return await self.service.learn(self.outcome(answer, net_return, **changes))

    def outcome(self, answer: dict[str, Any], net_return: float, sign: int = 0, **changes: Any) -> dict[str, Any]:
        """The report of a decision's trade. net_return: over EQUITY. sign: of the trade, where it is not the hub's."""
        action = answer["action"]
        sign = sign or {"long": 1, "short": -1, "flat": 0}[action["direction"]]
        size = max(action["size_fraction"] * action["leverage"], 0.1) * EQUITY / PRICE
        return report_of(answer["decision_id"], sign, size, net_return * EQUITY, answer["time_ms"], **changes)

    async def own_trade(self, net_pnl: float, equity: float, decision_id: str = "own-1",
                        **changes: Any) -> dict[str, Any]:
        own = {"origin": "bot", "symbol": "BTC", "strategy": "momentum", "direction": "long", "equity": equity}
        return await self.service.learn(report_of(decision_id, 1, 10.0, net_pnl, self.time_ms, **{**own, **changes}))

    async def close(self) -> None:
        self.shell.close()
        self.reader.close()


def opens(answer: dict[str, Any]) -> bool:
    return bool(answer["acts"] and answer["role"] != "llm_only" and answer["action"]["direction"] != "flat")


def portfolio(equity: float = EQUITY) -> dict[str, float]:
    return {"equity": equity, "current_leverage": 0.0, "unrealised_pnl": 0.0}


def llm_view(direction: str = "long", **changes: Any) -> dict[str, Any]:
    view = {"direction": direction, "confidence": 0.6, "size_fraction": 0.02, "leverage": 5.0, "tp_pct": 0.01,
            "sl_pct": 0.01, "limit_offset_pct": 0.0, "min_conf": 0.5, "strategy_weights": {}}
    return {**view, **changes}


def report_of(decision_id: str, sign: int, size: float, net_pnl: float, entry_ms: int,
              **changes: Any) -> dict[str, Any]:
    """A report whose prices, size and PnL agree, closed a minute after its entry, without fees."""
    exit_price = PRICE + (0.0 if changes.get("exit_reason") == "not_filled" else sign * net_pnl / size)
    report = {"decision_id": decision_id, "part": 0, "revision": 0, "entry_time_ms": entry_ms,
              "exit_time_ms": entry_ms + MINUTE_MS, "entry_price": PRICE, "exit_price": exit_price, "size": size,
              "pnl": (exit_price - PRICE) * size * sign, "fees": 0.0, "funding": 0.0, "exit_reason": "target",
              "drawdown_proxy": 0.0, "equity": None, "final": True, "origin": "hub", "symbol": None, "strategy": None,
              "direction": None}
    return {**report, **changes}


def rows_of(hub: PlainHub, *kinds: str) -> list[Row]:
    return list(hub.reader.rows(kinds=set(kinds) or None))


def _manifest_of(bundle: Bundle) -> dict[str, Any]:
    return dict(orjson.loads(bundle.manifest.canonical_json()))
