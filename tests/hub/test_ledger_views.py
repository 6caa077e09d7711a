from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from plain_hub import EQUITY, PlainHub

from feature_repo.features import DECISION_V1, MINUTE_MS
from feature_repo.store import FeatureRepo
from hub.episodes import EMBEDDER, episode_vector
from hub.ledger_views import LedgerViews


@pytest.fixture
def repo(tmp_path: Path) -> FeatureRepo:
    made = FeatureRepo(tmp_path / "features", "redis://127.0.0.1:1/0")  # only its offline store is used
    made.apply()
    return made


def as_of(keys: dict[str, list[str]], time_ms: int) -> pd.DataFrame:
    stamps = pd.to_datetime([time_ms] * len(next(iter(keys.values()))), unit="ms", utc=True)
    return pd.DataFrame({**keys, "event_timestamp": stamps})


async def test_outcomes_are_joined_as_they_were_known_parts_and_revisions_included(
        hub: PlainHub, repo: FeatureRepo, production: str) -> None:
    trade = await hub.trade(production)
    first = await hub.report(trade, 0.002, part=0, final=False)
    assert first["accepted"] == "recorded"
    known_ms = hub.time_ms
    LedgerViews(hub.reader, repo).write()
    await hub.decide_later(minutes=30)
    await hub.report(trade, 0.001, part=1)
    await hub.report(trade, 0.005, part=1, revision=1)
    added = LedgerViews(hub.reader, repo).write()
    assert added["outcomes"] >= 1
    asked = {"decision_id": [trade["decision_id"]]}
    returns = [repo.historical(as_of(asked, time), ["outcomes:net_return"])["net_return"][0]
               for time in (known_ms - 1, known_ms, hub.time_ms)]
    assert np.isnan(returns[0])
    assert returns[1:] == pytest.approx([0.002, 0.007])
    late = FeatureRepo(repo.home.parent / "late", repo.redis_url)
    late.apply()
    LedgerViews(hub.reader, late).write()
    then = late.historical(as_of(asked, known_ms), ["outcomes:net_return"])["net_return"][0]
    assert then == pytest.approx(0.002), "who writes all of it at once writes each row as it was known then"


async def test_account_weights_and_embedding_of_a_decision_are_joined_at_its_time(
        hub: PlainHub, repo: FeatureRepo) -> None:
    account = {"equity": EQUITY, "current_leverage": 3.0, "unrealised_pnl": 0.01 * EQUITY}
    answer = await hub.decide_later(symbol="ETH", portfolio=account)
    added = LedgerViews(hub.reader, repo).write()
    assert added["portfolio"] == added["weights"] == added["embeddings"] == 1
    asked = as_of({"symbol": ["ETH"]}, answer["time_ms"])
    features = ["portfolio:current_leverage", "portfolio:unrealised_pnl_pct", "weights:weight_momentum",
                "embeddings:embedding", "embeddings:embedding_version"]
    joined = repo.historical(asked, features).iloc[0]
    assert (joined["current_leverage"], joined["unrealised_pnl_pct"]) == (3.0, 0.01)
    assert joined["weight_momentum"] == answer["weights"]["momentum"]
    row = hub.reader.get("decision", answer["decision_id"])
    assert row is not None
    assert joined["embedding_version"] == EMBEDDER
    assert np.array_equal(joined["embedding"], episode_vector(row.body["features"]["values"]))
    assert len(joined["embedding"]) == len(DECISION_V1)


async def test_what_was_written_is_not_written_again_and_another_ledger_begins_anew(
        hub: PlainHub, repo: FeatureRepo) -> None:
    await hub.decide_later()
    views = LedgerViews(hub.reader, repo)
    assert views.write()["embeddings"] == 1
    assert views.write() == {}
    await hub.decide_later(minutes=2)
    assert views.write()["embeddings"] == 1
    marker = repo.offline.folder / "ledger_views.json"
    marker.write_text(marker.read_text().replace('"ledger":"', '"ledger":"other '))
    assert views.write()["embeddings"] == 0, "read again from the start, and all of it was there"
    marker.write_text("torn")
    assert views.write()["embeddings"] == 0
    assert hub.time_ms % MINUTE_MS == 0
