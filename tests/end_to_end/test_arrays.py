"""Windows and embeddings in a running hub: its own feeder, its own Redis, heads in their own processes, over HTTP."""

from __future__ import annotations

import itertools
from typing import Any

from array_heads import array_bundle
from encoder_bundles import encoder_bundle
from plain_bundles import momentum_bundle
from running_hub import RunningHub

from feature_repo.features import MARKET_EMBEDDING, MINUTE_MS, WINDOW
from hub.embedding_use import embedders_of
from hub.home import Home
from hub.replay import replay_ledger
from policies.bundle import pack_bundle
from policies.embedder import load_embedder, version_of

V1, V2 = (version_of(encoder_bundle(seed).policy_id) for seed in (1, 2))


def test_heads_get_the_market_as_it_was_and_a_revert_is_obeyed_by_the_next_decision(tmp_path: Any) -> None:
    hub = RunningHub(tmp_path / "home").start()
    numbers = itertools.count()
    try:
        now_ms = hub.get("/v1/status")["hub"]["now_ms"]

        def asked(minutes: int = 1) -> set[str]:
            """Aliases that answered to a decision so many minutes later."""
            nonlocal now_ms
            now_ms += minutes * MINUTE_MS
            answer = hub.post("/v1/decisions", request_id=f"r{next(numbers)}", symbol="ETH", strategy="momentum",
                              time_ms=now_ms, portfolio={"equity": 10_000.0})
            assert answer.status_code == 200, answer.text
            return {proposal["alias"] for proposal in answer.json()["proposals"].values()
                    if "failed" not in proposal}

        for seed in (1, 2):
            embedders_of(Home(hub.home)).add(pack_bundle(encoder_bundle(seed)), load_embedder)
        for bundle in (momentum_bundle(), array_bundle("windowed", {WINDOW: 300}),
                       array_bundle("for_1", {MARKET_EMBEDDING: 4, WINDOW: 600}, V1)):
            hub.register(bundle)
        assert asked() == {"momentum_v1", "windowed"}
        for version, expected in ((V1, {"momentum_v1", "windowed", "for_1"}), (V2, {"momentum_v1", "windowed"})):
            chosen = hub.post("/v1/embedding", "ops", version=version, reason="try it", force=True)
            assert chosen.status_code == 200, chosen.text
            asked(0)  # the feeder may still be at it; this one must only be safe
            assert asked() == expected
        reverted = hub.post("/v1/embedding", "ops", revert=True, reason="it drifts").json()
        assert (reverted["version"], reverted["earlier"]) == (V1, "none")
        assert asked() == {"momentum_v1", "windowed", "for_1"}
        assert hub.get("/v1/status")["embedding"]["version"] == V1
        fresh = {entry["group"]: entry["fresh"] for entry in hub.get("/v1/status")["features"]
                 if entry["symbol"] == "ETH"}
        assert fresh[WINDOW]
        assert fresh[MARKET_EMBEDDING]
    finally:
        hub.kill()
    report = replay_ledger(hub.home / "hub.sqlite", hub.home / "policies")
    assert report.equal, list(report.lines(5))
    assert report.decisions == 6
