"""A whole hub of plain parts in one process: real ledger, audit, sentry, folds, bundles and heads; no Ray, no HTTP.

What lies outside is replaced: features are a keyed draw of symbol and minute, the clock replays, the feeder does
nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import io
import math
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from feature_repo.features import ARRAYS, DECISION_V1, MARKET_EMBEDDING, MINUTE_MS
from hub.api import build_api
from hub.config import HubConfig, parse
from hub.decide import Answer, Features
from hub.embedding_use import embedders_of
from hub.head_rack import HeadRack
from hub.home import Home
from hub.intake import Asked, Taken, take_in
from hub.rack_loading import load_registered
from hub.registration import registrar_of
from hub.service import HubService
from hub.state import HubState, folded
from hub.webhook import PolicyWebhook
from policies.bundle import Bundle, Manifest, make_bundle, pack_bundle
from policies.clock import Clock, ReplayClock
from policies.errors import HubError, WriterUnavailable
from policies.keyed_random import generator
from policies.registry import PolicyFolder
from policies.rows import NewRow, Row
from policies.types import Context, Role
from sentry.actor import SentryParts, SentryShell
from sentry.ledger import LedgerReader

START_MS = 1_760_000_000_000 // MINUTE_MS * MINUTE_MS
SYMBOLS = ("BTC", "ETH", "SOL", "HYPE")
EQUITY = 10_000.0
PRICE = 100.0
TOKENS = {"bot": "bot-secret-0123456789", "ops": "ops-secret-9876543210"}
WEBHOOK_SECRET = "whsec_" + "dGVzdHMgb25seQ" * 2
MARKET = "a keyed draw for tests"

_SERVED: dict[str, Any] = {
    "features": DECISION_V1.names, "required_groups": DECISION_V1.required_groups,
    "optional_groups": DECISION_V1.optional_groups, "optional_features": DECISION_V1.may_be_missing}


@cache
def momentum_bundle(alias: str = "momentum_v1", threshold: float = 0.2, **manifest: Any) -> Bundle:
    return make_bundle(Manifest(kind="momentum_rule", alias=alias, inputs={"momentum": "ret_15"},
                                parameters={"threshold": threshold}, **{**_SERVED, **manifest}), {})


@cache
def onnx_bundle(alias: str = "linear_v1", seed: int = 0, most_ret_1: float = 1e30) -> Bundle:
    """softmax(x W) over short, flat, long, missing values read as 0; NaN probabilities where ret_1 > most_ret_1."""
    count = len(DECISION_V1)
    weights = np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)
    first = np.zeros((count, 1), np.float32)
    first[DECISION_V1.names.index("ret_1")] = 1.0
    constants = {"w": weights, "first": first, "zeros": np.zeros((1, count), np.float32),
                 "most": np.full((1, 1), most_ret_1, np.float32), "zero": np.zeros((1, 1), np.float32)}
    steps = [("IsNaN", ["x"], "missing"), ("Where", ["missing", "zeros", "x"], "known"),
             ("MatMul", ["known", "w"], "scores"), ("MatMul", ["known", "first"], "ret_1"),
             ("Sub", ["most", "ret_1"], "left"), ("Sqrt", ["left"], "root"), ("Mul", ["root", "zero"], "nothing"),
             ("Add", ["scores", "nothing"], "checked")]
    nodes = [helper.make_node(kind, inputs, [output]) for kind, inputs, output in steps]
    nodes.append(helper.make_node("Softmax", ["checked"], ["probabilities"], axis=1))
    graph = helper.make_graph(
        nodes, "classifier", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, count])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 3])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    manifest = Manifest(kind="onnx_classifier", alias=alias, parameters={"max_p_flat": 0.9}, **_SERVED)
    return make_bundle(manifest, {"model.onnx": model.SerializeToString()})


class KeyedFeatures:
    """Standard normal features, times their scale, of the minute that has just closed on the clock.

    Settable: `age_ms` of the row, `failed` (why nothing can be read), `fixed` values by feature name,
    `event_time_ms` of single groups, `episode` values, `embedding_version` and `embedding_size` of the stored
    embedding. Arrays are keyed draws, too; one that is stale is left out, as the reader does. `read_arrays` holds the
    groups of every read.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.age_ms = 0
        self.failed = ""
        self.fixed: dict[str, float] = {}
        self.event_time_ms: dict[str, int] = {}
        self.episode: dict[str, float] | None = {"median_price": 100.0, "mid_price": math.nan}
        self.embedding_version, self.embedding_size = "", 4
        self.read_arrays: list[tuple[str, ...]] = []

    async def read(self, symbol: str, now_ms: int, arrays: tuple[str, ...] = ()) -> Features:
        self.read_arrays.append(arrays)
        if self.failed:
            return Features(None, {}, self.failed)
        event_ms = self._clock.now_ms() // MINUTE_MS * MINUTE_MS - self.age_ms
        values = generator(5, symbol, event_ms).normal(size=len(DECISION_V1)) * DECISION_V1.scales
        for name, value in self.fixed.items():
            values[DECISION_V1.names.index(name)] = value
        held = [group for group in arrays if group != MARKET_EMBEDDING or self.embedding_version]
        read = {group: time_ms for group, time_ms in self.event_time_ms.items() if group in held or group not in ARRAYS}
        times = dict.fromkeys((*DECISION_V1.groups, *held), event_ms) | read
        drawn = {group: self._array(group, symbol, times[group]) for group in held
                 if 0 <= now_ms - times[group] <= ARRAYS[group].ttl_ms}
        return Features(tuple(map(float, values)), times, episode=self.episode, arrays=drawn,
                        embedding_version=self.embedding_version if MARKET_EMBEDDING in arrays else "")

    def _array(self, group: str, symbol: str, event_ms: int) -> NDArray[np.float32]:
        """Another one for each version of an embedding."""
        size = self.embedding_size if group == MARKET_EMBEDDING else ARRAYS[group].most
        version = self.embedding_version if group == MARKET_EMBEDDING else ""
        return generator(5, group, version, symbol, event_ms).normal(size=size).astype(np.float32)


class LocalHeads:
    """Heads in this process. Settable: what each policy does instead of answering, and `during`: run once while the
    heads are being asked. `asked` holds the policies of every call.
    """

    def __init__(self, rack: HeadRack) -> None:
        self._rack = rack
        self.asked: list[list[str]] = []
        self.instead: dict[str, Answer] = {}
        self.latency_ms = 2.0
        self.during: Callable[[], Awaitable[Any]] | None = None

    async def propose(self, ask: dict[str, Role], context: Context, deadline_s: float) -> dict[str, Answer]:
        self.asked.append(list(ask))
        if self.during is not None:
            interruption, self.during = self.during, None
            await interruption()
        found = self._rack.propose([policy_id for policy_id in ask if policy_id not in self.instead], context)
        answers = {policy_id: Answer(proposal, self.latency_ms, failed)
                   for policy_id, (proposal, _, failed) in found.items()}
        return {policy_id: self.instead[policy_id] if policy_id in self.instead else answers[policy_id]
                for policy_id in ask}

    async def load(self, policy_id: str) -> None:
        self._rack.load(policy_id)


class LocalWriter:
    """The sentry without Ray. Settable: `away`, and `before_commit`: run once between the heads and the commit."""

    def __init__(self, shell: SentryShell) -> None:
        self._shell = shell
        self.away = False
        self.before_commit: Callable[[], Awaitable[Any]] | None = None

    async def commit_decision(self, body: dict[str, Any], now_ms: int) -> dict[str, Any]:
        if self.before_commit is not None:
            interruption, self.before_commit = self.before_commit, None
            await interruption()
        await asyncio.sleep(0)  # as with a real hop, others are served meanwhile
        return _raised(self._there().commit_decisions([body], now_ms)[0])

    async def record_outcome(self, outcome: dict[str, Any], now_ms: int) -> dict[str, Any]:
        return _raised(self._there().record_outcomes([outcome], now_ms)[0])

    async def command(self, command: dict[str, Any], now_ms: int) -> dict[str, Any]:
        return self._there().command(**command, now_ms=now_ms)

    async def register(self, registration: dict[str, Any], now_ms: int) -> dict[str, Any]:
        return self._there().register(**registration, now_ms=now_ms)

    async def expire_epoch(self, now_ms: int) -> None:
        self._there().expire_epoch(now_ms)

    async def observe(self, observation: dict[str, Any], now_ms: int) -> dict[str, Any]:
        return self._there().observe(**observation, now_ms=now_ms)

    async def ping(self) -> dict[str, Any]:
        return self._there().ping()

    async def audit(self, limit: int) -> dict[str, Any]:
        return self._there().audit(limit)

    def _there(self) -> SentryShell:
        if self.away:
            raise WriterUnavailable("the ledger's writer did not answer within 1 s")
        return self._shell


class StillFeeder:
    async def advance(self, now_ms: int) -> bool:
        """The features of every minute are there already."""
        return True

    async def take_in(self, now_ms: int) -> bool:
        """There is no store to bring anything into."""
        return True


class LocalExtras:
    """What the other deployments answer, from the service's own fold."""

    async def params(self, strategy: str, symbol: str | None) -> dict[str, Any]:
        return {"strategy": strategy, "symbol": symbol}

    async def knn(self, symbol: str, k: int) -> dict[str, Any]:
        return {"symbol": symbol, "k": k, "neighbours": []}


class LocalIntake:
    """Candidates are read and checked in this process. `taken`: of every one. `before`: run before each."""

    def __init__(self) -> None:
        self.taken: list[Taken] = []
        self.before: Callable[[], Awaitable[Any]] | None = None

    async def take_in(self, asked: Asked, upload: IO[bytes] | None) -> Taken:
        if self.before is not None:
            await self.before()
        if upload is not None:
            upload.seek(0)
        self.taken.append(await asyncio.to_thread(take_in, asked, upload or io.BytesIO()))
        return self.taken[-1]


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


def everything(value: Any) -> Any:
    """A state down to its last private number, as plain values that compare equal exactly if the states do."""
    if isinstance(value, float):
        return repr(value)
    if value is None or isinstance(value, str | int | bytes):
        return value
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {repr(name): everything(part) for name, part in value.items()}
    if isinstance(value, list | tuple | deque):
        return [everything(part) for part in value]
    if dataclasses.is_dataclass(value) and not hasattr(value, "__dict__"):
        return everything(dataclasses.asdict(value))  # type: ignore[arg-type]
    return {name: everything(part) for name, part in vars(value).items() if name not in _MEMOS}


# Not states: a cache that is filled by asking, and whether there is a memory at all.
_MEMOS = {"_tables", "_weights", "_remembers"}


def learnt(state: HubState, memory: bool = True) -> dict[str, Any]:
    """Everything of a state; without its memory for comparison with the writer's, which keeps none."""
    found = everything(state)
    assert isinstance(found, dict)
    return found if memory else {name: part for name, part in found.items() if name != "memory"}


def rows_of(hub: PlainHub, *kinds: str) -> list[Row]:
    return list(hub.reader.rows(kinds=set(kinds) or None))


def _manifest_of(bundle: Bundle) -> dict[str, Any]:
    return dict(orjson.loads(bundle.manifest.canonical_json()))


def _raised(answer: dict[str, Any] | HubError) -> dict[str, Any]:
    if isinstance(answer, HubError):
        raise answer
    return answer
