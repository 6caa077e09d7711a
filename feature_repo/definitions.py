"""What Feast is told: one entity, one view per feature group, one service in the order of the feature list.

Built by a function, because the files lie under a home that is known only when the hub starts; importing does nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, String

from feature_repo.features import DECISION_V1, FeatureList

ENTITY = "symbol"


@dataclass(frozen=True)
class Definitions:
    """views: by group, required groups first."""

    symbol: Entity
    views: dict[str, FeatureView]
    service: FeatureService

    def everything(self) -> list[Any]:
        """What `apply` takes."""
        return [self.symbol, *self.views.values(), self.service]


def offline_folder(home: Path, group: str) -> Path:
    """Where the parquet files of a group lie, one per symbol."""
    return home / "features" / group


def build_definitions(home: Path, features: FeatureList = DECISION_V1) -> Definitions:
    symbol = Entity(name=ENTITY, join_keys=[ENTITY], value_type=ValueType.STRING, description="perpetual, such as BTC")
    views = {group: _view(home, symbol, group, features) for group in features.groups}
    service = FeatureService(name=features.name, features=list(views.values()))
    return Definitions(symbol, views, service)


def _view(home: Path, symbol: Entity, group: str, features: FeatureList) -> FeatureView:
    source = FileSource(name=f"{group}_files", path=str(offline_folder(home, group) / "*.parquet"),
                        timestamp_field="event_timestamp", created_timestamp_column="created")
    described = [Field(name=spec.name, dtype=Float64, description=f"{spec.formula} [{spec.unit}]")
                 for spec in features.specs if spec.group == group]
    return FeatureView(name=group, entities=[symbol], ttl=timedelta(milliseconds=features.ttl_ms[group]),
                       schema=[Field(name=ENTITY, dtype=String), *described], source=source)
