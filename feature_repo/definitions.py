"""What Feast is told: entities, one view per feature group, labels, outcomes and embeddings, and the services.

The market's embedding has two views over the same files. Online, a symbol has the embedding of the version in use. In
the offline store every version that ever embedded a bar is kept, and a training set joins one of them: there the
version is a key. A window has no rows offline, since the bars give it: `feature_repo.transforms.window_frame`.

Built by a function, because the files lie under a home that is known only when the hub starts; importing does nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pyarrow as pa
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Array, FeastType, Float32, Float64, Int64, String

from feature_repo.features import (
    ARRAYS,
    GROUPS,
    MARKET_EMBEDDING,
    SERVICES,
    VERSION_FEATURE,
    ArrayGroup,
    FeatureGroup,
    FeatureList,
)
from feature_repo.offline import CREATED, EVENT, OfflineFiles

ENTITY = "symbol"
LABELS, OUTCOMES, EMBEDDINGS = "labels", "outcomes", "embeddings"
EMBEDDINGS_BY_VERSION = "market_embedding_by_version"
LABEL_NAMES = ("long_return", "short_return")
OUTCOME_NAMES = ("net_return", "pnl", "fees", "funding", "horizon_s", "drawdown_proxy")

_ARROW: dict[FeastType, pa.DataType] = {Float64: pa.float64(), Int64: pa.int64(), String: pa.string(),
                                        Array(Float32): pa.list_(pa.float32())}


@dataclass(frozen=True)
class Definitions:
    """views: by name. columns: by view, what its files hold beside the event time and `created`."""

    entities: tuple[Entity, ...]
    views: dict[str, FeatureView]
    services: dict[str, FeatureService]
    columns: dict[str, pa.Schema]

    def everything(self) -> list[Any]:
        """What `apply` takes."""
        return [*self.entities, *self.views.values(), *self.services.values()]


def build_definitions(files: OfflineFiles) -> Definitions:
    symbol = Entity(name=ENTITY, join_keys=[ENTITY], value_type=ValueType.STRING, description="perpetual, such as BTC")
    decided = Entity(name="decided", join_keys=["decided_ms"], value_type=ValueType.INT64,
                     description="when a decision could have been made, ms since 1970 UTC")
    decision = Entity(name="decision", join_keys=["decision_id"], value_type=ValueType.STRING,
                      description="a decision of the hub's ledger")
    bracket = Entity(name="bracket", join_keys=["bracket"], value_type=ValueType.STRING,
                     description="levels, horizon and costs of the trade that a label is of")
    version = Entity(name="embedder", join_keys=[VERSION_FEATURE], value_type=ValueType.STRING,
                     description="version of the embedder that made an embedding")
    builder = _Builder(files)
    for group in GROUPS.values():
        builder.group(group, symbol)
    for array in ARRAYS.values():
        builder.array(array, symbol)
    embedding = ARRAYS[MARKET_EMBEDDING]
    builder.view(EMBEDDINGS_BY_VERSION, [symbol, version], [ENTITY, VERSION_FEATURE],
                 {embedding.feature: Array(Float32)}, timedelta(milliseconds=embedding.ttl_ms),
                 "the market's embedding by one embedder, for training", of=MARKET_EMBEDDING)
    builder.view(LABELS, [symbol, decided, bracket], [ENTITY, "decided_ms", "bracket"],
                 dict.fromkeys(LABEL_NAMES, Float64), timedelta(0),
                 "what a long and a short bracket entered then have earned; known when both are over")
    builder.view(OUTCOMES, [decision], ["decision_id"], dict.fromkeys(OUTCOME_NAMES, Float64), timedelta(0),
                 "what came of a decision; known when its last part was reported")
    builder.view(EMBEDDINGS, [symbol], [ENTITY], {"embedding": Array(Float32), "embedding_version": String},
                 timedelta(minutes=3), "the market at a decision, as the memory sees it, and by which embedder")
    services = {service.name: _service(service, builder.views) for service in SERVICES}
    return Definitions((symbol, decided, bracket, decision, version), builder.views, services, builder.columns)


class _Builder:
    def __init__(self, files: OfflineFiles) -> None:
        self._files = files
        self.views: dict[str, FeatureView] = {}
        self.columns: dict[str, pa.Schema] = {}

    def group(self, group: FeatureGroup, symbol: Entity) -> None:
        described = {spec.name: f"{spec.formula} [{spec.unit}], from {spec.source}" for spec in group.specs}
        self.view(group.name, [symbol], [ENTITY], dict.fromkeys(group.names, Float64),
                  timedelta(milliseconds=group.ttl_ms), group.description, described, group.online)

    def array(self, group: ArrayGroup, symbol: Entity) -> None:
        features: dict[str, FeastType] = {group.feature: Array(Float32)}
        if group.versioned:
            features[VERSION_FEATURE] = String
        self.view(group.name, [symbol], [ENTITY], features, timedelta(milliseconds=group.ttl_ms), group.description,
                  {group.feature: group.description}, online=True)

    def view(self, name: str, entities: list[Entity], keys: list[str], features: dict[str, FeastType], ttl: timedelta,
             description: str, described: dict[str, str] | None = None, online: bool = False,
             of: str | None = None) -> None:
        """of: the view whose files these are, if they are another's."""
        types: dict[str, FeastType] = {key: Int64 if key.endswith("_ms") else String for key in keys}
        types |= features
        source = FileSource(name=f"{name}_files", path=self._files.pattern(of or name), timestamp_field=EVENT,
                            created_timestamp_column=CREATED)
        fields = [Field(name=field, dtype=dtype, description=(described or {}).get(field, ""))
                  for field, dtype in types.items()]
        self.views[name] = FeatureView(name=name, entities=entities, ttl=ttl, schema=fields, source=source,
                                       online=online, description=description)
        if of is None:
            self.columns[name] = pa.schema([pa.field(field, _ARROW[dtype]) for field, dtype in types.items()])


def _service(service: FeatureList, views: dict[str, FeatureView]) -> FeatureService:
    return FeatureService(name=service.name, features=[views[group][list(names)]
                                                       for group, names in service.groups.items()])
