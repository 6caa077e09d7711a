"""The hub's configuration: typed, with ranges, unknown keys refused.

One YAML file (`HUB_CONFIG`, else the `hub.yaml` beside this module), single values by environment as
`HUB_<BLOCK>__<KEY>=value` (`HUB_ROLLOUT__MODE=full`, deeper keys with further `__`). The rooms own the settings that
they use; this module only gathers and checks them. `configuration` is the part that decisions depend on: it is
recorded in the ledger, and the folds read it from there.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import math
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
import pydantic
import yaml
from annotated_types import Ge, Gt, Le, Lt, MinLen

from policies.errors import InvalidInput
from policies.types import STRATEGIES, Rollout
from router.evidence import EvidenceSettings
from router.ladder import LadderSettings
from router.thompson import RouterSettings
from sentry.gates import GateSettings
from sentry.shield import ShieldSettings

Fraction = Annotated[float, Ge(0), Le(1)]
Port = Annotated[int, Gt(0), Lt(65536)]

DEFAULT_FILE = Path(__file__).with_name("hub.yaml")
NOT_SETTINGS = {"HUB_HOME", "HUB_CONFIG", "HUB_DATA_DIR"}


@dataclass(frozen=True)
class GridConfig:
    """A strategy's grids; an empty one is taken from `default`."""

    leverage_grid: tuple[Annotated[float, Ge(1), Le(50)], ...] = ()
    tp_grid_pct: tuple[Annotated[float, Gt(0), Le(0.5)], ...] = ()
    sl_grid_pct: tuple[Annotated[float, Gt(0), Le(0.5)], ...] = ()
    min_conf_grid: tuple[Fraction, ...] = ()


@dataclass(frozen=True)
class MemoryConfig:
    enabled: bool = True
    knn_k: Annotated[int, Ge(1), Le(64)] = 8
    max_episodes: Annotated[int, Ge(1), Le(5_000_000)] = 50_000
    embedder: Literal["none", "sbert-mini", "openai-text-ada"] = "none"


@dataclass(frozen=True)
class BanditsConfig:
    update_cadence_sec: Annotated[int, Ge(1), Le(86_400)] = 60
    reward_cvar_alpha: Annotated[float, Gt(0), Lt(1)] = 0.2
    reward_scale: Annotated[float, Gt(0), Le(1e6)] = 1.0
    per_strategy: dict[str, GridConfig] = field(default_factory=dict)


@dataclass(frozen=True)
class BoConfig:
    """The online optimiser of target and stop. It always learns; enabled: /v1/params shows what it suggests, and
    param_mode `bo` may have decisions made with it. min_samples: trades of a strategy in a bucket of the market, before
    which the bandit is asked. update_cadence_sec: for which its model stands, by the ledger's time.
    """

    enabled: bool = False
    min_samples: Annotated[int, Ge(1)] = 100
    update_cadence_sec: Annotated[int, Ge(1)] = 180


@dataclass(frozen=True)
class RlConfig:
    """A say in sizes for a reinforcement-learning policy. policy_path: of its bundle, relative to HUB_HOME; registered
    at start. blend_weight: by how much it can lower the size of another head (`policies.sizing`).
    """

    enabled: bool = False
    policy_path: str = "models/policy_rl.pt"
    blend_weight: Fraction = 0.25


@dataclass(frozen=True)
class LearningConfig:
    """The user's contract: names and defaults are fixed."""

    enabled: bool = True
    allocation_mode: Literal["llm_only", "bandit_only", "hybrid"] = "hybrid"
    allocation_hybrid_blend: Fraction = 0.5
    param_mode: Literal["static", "bandit", "bo"] = "bandit"
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    bandits: BanditsConfig = field(default_factory=BanditsConfig)
    bo: BoConfig = field(default_factory=BoConfig)
    rl: RlConfig = field(default_factory=RlConfig)


@dataclass(frozen=True)
class RolloutConfig:
    mode: Rollout = Rollout.SHADOW
    blend: Fraction = 0.5


@dataclass(frozen=True)
class ClockConfig:
    """mode `auto`: live with Hyperliquid's bars, replay with recorded or generated ones."""

    mode: Literal["auto", "live", "replay"] = "auto"


@dataclass(frozen=True)
class MarketConfig:
    """kind `auto`: files if HUB_DATA_DIR is set, else Hyperliquid's public API if it answers, else generated.

    hyperliquid_url: of its API; empty is the main net's. fear_greed_url: asked once an hour while live; empty is never.
    """

    kind: Literal["auto", "files", "hyperliquid", "generated"] = "auto"
    symbols: Annotated[tuple[str, ...], MinLen(1)] = ("BTC", "ETH", "SOL", "HYPE")
    seed: int = 7
    signal: Annotated[float, Ge(0), Le(10)] = 1.0
    generated_bars: Annotated[int, Ge(2_000), Le(1_000_000)] = 43_200
    hyperliquid_url: str = ""
    fear_greed_url: str = "https://api.alternative.me/fng/"


@dataclass(frozen=True)
class FeaturesConfig:
    deadline_ms: Annotated[int, Ge(1), Le(10_000)] = 50


@dataclass(frozen=True)
class StorageConfig:
    """redis_url: empty for the embedded server on `redis_port`. mlflow_url: empty for the one on `mlflow_port`.

    artefacts_url: where policies are registered from by URL, a folder or s3://bucket/prefix; empty is HUB_HOME's own.
    s3_endpoint_url: of an S3 other than Amazon's; empty is AWS_ENDPOINT_URL, else Amazon's.
    """

    redis_url: str = ""
    artefacts_url: str = ""
    s3_endpoint_url: str = ""
    mlflow_url: str = ""
    redis_port: Port = 6380
    mlflow_port: Port = 5000
    dashboard_port: Port = 8265


@dataclass(frozen=True)
class RegistrationConfig:
    """trusted_keys: Ed25519 public keys, 64 hex digits each; with any, a bundle that none of them signed is refused."""

    trusted_keys: tuple[Annotated[str, pydantic.StringConstraints(pattern=r"^[0-9a-f]{64}$")], ...] = ()


@dataclass(frozen=True)
class LedgerConfig:
    """seed: of every draw, fixed when the ledger begins; by default one that nobody can guess."""

    seed: Annotated[int, Ge(0), Lt(2**53)] | None = None


@dataclass(frozen=True)
class ServerConfig:
    """Deadlines are of one part each; a decision is answered within their sum."""

    host: str = "127.0.0.1"
    port: Port = 8000
    head_deadline_ms: Annotated[int, Ge(1), Le(10_000)] = 250
    commit_deadline_ms: Annotated[int, Ge(1), Le(60_000)] = 500
    max_body_bytes: Annotated[int, Ge(1_024)] = 65_536
    max_bundle_bytes: Annotated[int, Ge(1_024)] = 64 * 1024 * 1024


@dataclass(frozen=True)
class HubConfig:
    learning: LearningConfig = field(default_factory=LearningConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    clock: ClockConfig = field(default_factory=ClockConfig)
    market: MarketConfig = field(default_factory=MarketConfig)
    router: RouterSettings = field(default_factory=RouterSettings)
    ladder: LadderSettings = field(default_factory=LadderSettings)
    evidence: EvidenceSettings = field(default_factory=EvidenceSettings)
    sentry: GateSettings = field(default_factory=GateSettings)
    shield: ShieldSettings = field(default_factory=ShieldSettings)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    registration: RegistrationConfig = field(default_factory=RegistrationConfig)
    ledger: LedgerConfig = field(default_factory=LedgerConfig)
    server: ServerConfig = field(default_factory=ServerConfig)

    # Blocks that a decision depends on, and so belong to the ledger.
    RECORDED = ("learning", "rollout", "market", "router", "ladder", "evidence", "sentry", "shield", "features")

    def configuration(self) -> dict[str, Any]:
        """The recorded part as JSON values."""
        return {name: orjson.loads(orjson.dumps(getattr(self, name))) for name in self.RECORDED}

    @property
    def configuration_hash(self) -> str:
        return hashlib.sha256(orjson.dumps(self.configuration(), option=orjson.OPT_SORT_KEYS)).hexdigest()


# What decisions were made by before a key existed: configurations that were recorded then lack it.
_BEFORE: dict[str, dict[str, Any]] = {"router": {"first_decisions": 0}}

_ADAPTER = pydantic.TypeAdapter(HubConfig)


def parse(values: Mapping[str, Any]) -> HubConfig:
    """A checked configuration from nested mappings; InvalidInput names the key, the legal range and the value."""
    _refuse_unknown(values, HubConfig, "")
    try:
        config = _ADAPTER.validate_python(dict(values))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InvalidInput(name, first["msg"][0].lower() + first["msg"][1:], first.get("input")) from None
    _refuse_infinite(dataclasses.asdict(config), "")
    _refuse_unavailable(config)
    _refuse_addresses(config)
    _refuse_ignored(config)
    return config


def parse_recorded(values: Mapping[str, Any]) -> HubConfig:
    """A configuration that a ledger holds. Keys that this version no longer has are left out, as an older ledger must
    open; of keys that it does not have yet, those that change decisions are what they were by then.
    """
    known = _known_part(values, HubConfig)
    for block, before in _BEFORE.items():
        if isinstance(known.get(block), Mapping):
            known[block] = {**before, **known[block]}
    return parse(known)


def load(path: Path | None = None, environment: Mapping[str, str] | None = None) -> HubConfig:
    """The configuration of `path` (default: `HUB_CONFIG`, else the file beside this module) and the environment."""
    environment = os.environ if environment is None else environment
    path = path or Path(environment.get("HUB_CONFIG") or DEFAULT_FILE)
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise InvalidInput("HUB_CONFIG", "a readable YAML file", str(path), error.strerror or "") from None
    except yaml.YAMLError as error:
        raise InvalidInput("HUB_CONFIG", "valid YAML", str(path), str(error).replace("\n", " ")) from None
    if not isinstance(values, dict):
        raise InvalidInput("HUB_CONFIG", "a mapping of blocks", str(path))
    for name, text in sorted(environment.items()):
        if name.startswith("HUB_") and name not in NOT_SETTINGS and "__" in name:
            _set(values, name.removeprefix("HUB_").lower().split("__"), yaml.safe_load(text))
    return parse(values)


def grids_of(config: LearningConfig, strategy: str) -> GridConfig:
    """The strategy's grids, each missing one taken from `default`, each missing there from the built-in default."""
    built_in = GridConfig((2, 4, 6, 8, 10), (0.006, 0.008, 0.010, 0.012, 0.015),
                          (0.004, 0.005, 0.006, 0.008, 0.010), (0.50, 0.55, 0.60, 0.65, 0.70))
    layers = [config.bandits.per_strategy.get(strategy), config.bandits.per_strategy.get("default"), built_in]
    chosen = {f.name: next(v for layer in layers if layer is not None and (v := getattr(layer, f.name)))
              for f in dataclasses.fields(GridConfig)}
    return GridConfig(**chosen)


def home_of(environment: Mapping[str, str] | None = None) -> Path:
    environment = os.environ if environment is None else environment
    return Path(environment.get("HUB_HOME") or "var").resolve()


def _refuse_unknown(values: Mapping[str, Any], kind: type, prefix: str) -> None:
    hints = typing.get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind)]
    for name, value in values.items():
        path = f"{prefix}{name}"
        if name not in known:
            raise _unknown_key(path, str(name), known)
        if path == "learning.bandits.per_strategy" and isinstance(value, Mapping):
            for strategy, grids in value.items():
                if strategy not in (*STRATEGIES, "default"):
                    raise _unknown_key(f"{path}.{strategy}", str(strategy), [*STRATEGIES, "default"])
                if isinstance(grids, Mapping):
                    _refuse_unknown(grids, GridConfig, f"{path}.{strategy}.")
        elif dataclasses.is_dataclass(hints[name]) and isinstance(value, Mapping):
            _refuse_unknown(value, typing.cast(type, hints[name]), f"{path}.")


def _known_part(values: Mapping[str, Any], kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {name: _known_part(value, typing.cast(type, hints[name]))
            if dataclasses.is_dataclass(hints[name]) and isinstance(value, Mapping) else value
            for name, value in values.items() if name in hints}


def _unknown_key(path: str, name: str, known: list[str]) -> InvalidInput:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return InvalidInput(path, f"one of {', '.join(known)}", name, f"did you mean {near[0]}?" if near else "")


def _refuse_infinite(values: Mapping[str, Any], prefix: str) -> None:
    """A range without an upper end lets infinity in, which a recorded configuration cannot hold: JSON has none."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            _refuse_infinite(value, f"{prefix}{name}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise InvalidInput(f"{prefix}{name}", "finite", value)


def _refuse_unavailable(config: HubConfig) -> None:
    """What the contract names and this version does not have yet is refused, never silently ignored."""
    learning = config.learning
    for name, value, legal in (
        ("learning.memory.embedder", learning.memory.embedder, ("none",)),
    ):
        if value not in legal:
            choices = " or ".join(str(choice).lower() for choice in legal)
            raise InvalidInput(name, f"{choices} in this version", value)


def _refuse_addresses(config: HubConfig) -> None:
    """What an address must begin with, before a part that needs it fails later with less to say."""
    storage = config.storage
    for name, value, begins in (("artefacts_url", storage.artefacts_url, ("s3://", "file:///", "/")),
                                ("s3_endpoint_url", storage.s3_endpoint_url, ("http://", "https://")),
                                ("mlflow_url", storage.mlflow_url, ("http://", "https://"))):
        if value and not value.startswith(begins):
            raise InvalidInput(f"storage.{name}", f"empty, or an address that begins with {' or '.join(begins)}", value)
    if storage.artefacts_url.startswith("s3://") and not storage.artefacts_url.removeprefix("s3://").strip("/"):
        raise InvalidInput("storage.artefacts_url", "s3://bucket or s3://bucket/prefix", storage.artefacts_url)


def _refuse_ignored(config: HubConfig) -> None:
    """What would be ignored is refused: one thing has one name, and is switched on where it is used."""
    if config.learning.param_mode == "bo" and not config.learning.bo.enabled:
        raise InvalidInput("learning.param_mode", "static or bandit while learning.bo.enabled is false", "bo")
    if config.evidence.horizon_ms != EvidenceSettings().horizon_ms:
        raise InvalidInput("evidence.horizon_ms", "left out: it follows router.horizon_s", config.evidence.horizon_ms)


def _set(values: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        child = values.setdefault(part, {})
        if not isinstance(child, dict):
            raise InvalidInput(".".join(path), "a key inside a block", part)
        values = child
    values[path[-1]] = value
