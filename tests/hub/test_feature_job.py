from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from encoder_bundles import encoder_bundle
from plain_hub import PlainHub

from feature_repo.features import DEPTH, FEAR_GREED, FUNDING, QUOTE
from feature_repo.generated import START_MS
from hub.config import HubConfig, parse
from hub.embedding_use import embedders_of
from hub.feature_job import FeatureRun, fill_features
from hub.home import Home
from policies.bundle import pack_bundle
from policies.embedder import load_embedder
from policies.free_ports import free_port

BARS_COUNT = 4_000


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    made.create()
    return made


@pytest.fixture
def config() -> HubConfig:
    return parse({"market": {"kind": "generated", "symbols": ["BTC", "ETH"], "generated_bars": BARS_COUNT},
                  "storage": {"redis_port": free_port()}})


def rows(run: FeatureRun) -> dict[tuple[str, str], int]:
    return {(extent.view, extent.part): extent.rows for extent in run.extents}


def test_the_stores_are_filled_read_back_and_filled_further_without_repeating(home: Home, config: HubConfig) -> None:
    said: list[str] = []
    first = fill_features(home, config, None, said.append)
    assert rows(first)["bars", "BTC"] == rows(first)["price", "ETH"] == BARS_COUNT - 121
    assert rows(first)["funding", "BTC"] == 67
    assert any("2 vectors read back equal to the offline join" in line for line in said)
    again: list[str] = []
    assert rows(fill_features(home, config, None, again.append)) == rows(first)
    assert sum("0 new rows" in line for line in again) == 2
    longer = replace(config, market=replace(config.market, generated_bars=BARS_COUNT + 10))
    assert rows(fill_features(home, longer, None, again.append))["bars", "BTC"] == BARS_COUNT - 111


async def test_a_market_is_embedded_by_the_version_that_the_ledger_says_is_in_use(
        home: Home, config: HubConfig, open_hub: Callable[..., PlainHub]) -> None:
    version = embedders_of(home).add(pack_bundle(encoder_bundle()), load_embedder)
    hub = open_hub(name=home.root.name)
    await hub.service.embeddings.use(version, "")
    short = replace(config, market=replace(config.market, generated_bars=300))
    said: list[str] = []
    run = await asyncio.to_thread(fill_features, home, short, None, said.append)
    assert rows(run)["market_embedding", "BTC"] == rows(run)["bars", "BTC"] == 300 - 121
    assert any(f"179 new embeddings by {version}" in line for line in said)


def test_beside_a_running_hub_the_online_store_is_left_alone(home: Home, config: HubConfig) -> None:
    said: list[str] = []
    with home.lock():
        fill_features(home, config, None, said.append)
    assert any("left to the running hub" in line for line in said)
    assert not any("materialised" in line for line in said)


def test_drift_of_a_short_history_says_what_is_lacking(home: Home, config: HubConfig) -> None:
    run = fill_features(home, config, None, lambda _: None)
    assert {report.symbol for report in run.drift} == {"BTC", "ETH"}
    assert all(report.figure is None and "14 days" in (report.reason or "") for report in run.drift)
    assert run.drift[0].day == START_MS // 86_400_000 + 1


def test_recorded_bars_funding_moods_and_books_come_in(home: Home) -> None:
    folder = os.environ.get("HUB_DATA_DIR")
    if not folder:
        pytest.skip("about recorded data: HUB_DATA_DIR is not set")
    config = parse({"market": {"symbols": ["BTC", "ETH", "SOL", "HYPE"]}, "storage": {"redis_port": free_port()}})
    held = rows(fill_features(home, config, folder, lambda _: None))
    assert held["bars", "HYPE"] > 6_000
    assert held[FUNDING, "SOL"] > 18_000
    assert held[FEAR_GREED, "ETH"] > 2_800
    assert held[QUOTE, "BTC"] > 900
    assert held[DEPTH, "SOL"] > 50
