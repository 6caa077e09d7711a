"""From the command to a running hub: the best of a tiny search is its challenger, with a tenth of the decisions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from array_heads import array_bundle
from encoder_bundles import SIZE, encoder_bundle
from plain_bundles import momentum_bundle
from running_hub import RunningHub

from feature_repo.features import MARKET_EMBEDDING
from policies.bundle import read_bundle
from policies.embedder import version_of
from train.handover import HubDoor

BARS = 7_000  # of the hub's market, of which it replays the last part


def test_the_best_candidate_becomes_the_challenger_of_a_running_hub(tmp_path: Path) -> None:
    hub = RunningHub(tmp_path / "home", MARKET__GENERATED_BARS=BARS).start()
    try:
        incumbent = hub.register(momentum_bundle())
        command = [sys.executable, "-W", "ignore", "-m", "train.retrain_sup", "--home", str(hub.home), "--hub-url",
                   hub.url, "--market", "generated", "--generated-bars", str(BARS), "--coins", "BTC,ETH", "--window",
                   "30", "--lookback", "3000", "--heads", "linear", "--trials", "1", "--folds", "1"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=hub.environment, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert "registered linear_" in ended.stdout
        candidate = read_bundle(hub.home / "models" / "candidate_linear.pt")
        heads = {head["policy_id"]: (head["role"], head["share"]) for head in hub.get("/v1/status")["heads"]}
        assert heads[candidate.policy_id] == ("challenger", 0.1)
        assert heads[incumbent] == ("production", 0.9)
        assert candidate.manifest.trained_on["bars"]["until_ms"] <= hub.get("/v1/status")["hub"]["now_ms"]
        # A head with an embedding comes after its embedder.
        door, embedder = HubDoor(hub.url, hub.home), encoder_bundle()
        version = version_of(embedder.policy_id)
        assert door.use_embedder(embedder) == ""
        head = array_bundle("with_embedding", {MARKET_EMBEDDING: SIZE}, version)
        door.register(head)
        status = hub.get("/v1/status")
        assert status["embedding"]["version"] == version
        assert head.policy_id in {shown["policy_id"] for shown in status["heads"]}
    finally:
        hub.kill()
