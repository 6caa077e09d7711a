"""From a tested candidate to a challenger of a running hub, over S3 that is away for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from plain_bundles import momentum_bundle
from running_hub import SYMBOLS, RunningHub

from ci.pipeline import train_small
from ci.pipeline.__main__ import Chain
from ci.pipeline.local_s3 import BUCKET, CREDENTIALS, local_s3
from ci.pipeline.publish import outbox_of, store_of
from ci.pipeline.settings import PipelineSettings
from ci.pipeline.step import AWAY, NOT_PASSED, leave_note
from feature_repo.generated import GeneratedMarket
from policies.bundle import Bundle, make_bundle, pack_bundle
from policies.free_ports import free_port

BARS = 4_000  # of the hub's market


@pytest.fixture(scope="module")
def s3_port() -> Iterator[int]:
    with pytest.MonkeyPatch.context() as patched:
        for name, value in CREDENTIALS.items():
            patched.setenv(name, value)
        yield free_port()


@pytest.fixture(scope="module")
def running_hub(tmp_path_factory: pytest.TempPathFactory, s3_port: int) -> Iterator[RunningHub]:
    """As the one of the other files, but its policies come from S3."""
    hub = RunningHub(tmp_path_factory.mktemp("hub") / "home", STORAGE__ARTEFACTS_URL=f"s3://{BUCKET}",
                     STORAGE__S3_ENDPOINT_URL=f"http://127.0.0.1:{s3_port}").start()
    try:
        hub.register(momentum_bundle())
        yield hub
    finally:
        if hub.processes():
            hub.kill()


def trained(settings: PipelineSettings, alias: str) -> Bundle:
    """A candidate that has seen the hub's market up to its last day, left as the training does."""
    until_ms = int(GeneratedMarket(7, 1.0, SYMBOLS, BARS).bars("BTC").close_time_ms[-500])
    plain = momentum_bundle(alias, 1.5)
    said = {"symbols": list(SYMBOLS), "bars": {"until_ms": until_ms}}
    bundle = make_bundle(replace(plain.manifest, trained_on=said), {})
    for folder in ("models", "reports"):
        (settings.home / folder).mkdir(parents=True, exist_ok=True)
    (settings.home / "models" / f"candidate_{alias}.pt").write_bytes(pack_bundle(bundle))
    heads = [{"head": alias, "policy_id": bundle.policy_id}]
    (settings.home / "reports" / "retrain_sup.json").write_bytes(orjson.dumps({"heads": heads}))
    leave_note(settings.home, train_small.TRAINED, train_small.candidates(settings))
    return bundle


def test_the_sha_of_a_candidate_appears_in_the_running_hub_as_challenger_and_nothing_is_lost_on_the_way(
        running_hub: RunningHub, s3_port: int, tmp_path: Path) -> None:
    settings = PipelineSettings(
        tmp_path / "ci", hub_url=running_hub.url, hub_home=str(running_hub.home), artefacts=f"s3://{BUCKET}",
        s3_endpoint_url=f"http://127.0.0.1:{s3_port}", market="generated", generated_bars=BARS, seed=7,
        coins=",".join(SYMBOLS), patience_s=0.0)

    def states(chain: Chain) -> dict[str, str]:
        return {line.step: line.state for line in chain.lines}

    def heads() -> dict[str, tuple[str, float]]:
        return {head["policy_id"]: (head["role"], head["share"])
                for head in running_hub.get("/v1/status")["heads"]}

    before = heads()
    candidate = trained(settings, "from_the_chain")
    stopped = Chain(replace(settings, min_pf=99.0), print)
    assert stopped.run("forward") == NOT_PASSED
    assert states(stopped)["publish"] == "not run"
    assert (outbox_of(settings).entries(), heads()) == ([], before)

    away = Chain(settings, print)
    assert away.run("forward") == AWAY  # S3 is not there yet
    assert [states(away)[step] for step in ("track", "publish", "webhook")] == ["done", "failed", "not run"]
    assert [entry.policy_id for entry in outbox_of(settings).entries()] == [candidate.policy_id]

    with ExitStack() as there:
        there.enter_context(local_s3(settings.home, s3_port))
        sent = Chain(replace(settings, patience_s=60.0), print)
        assert sent.run("publish") == 0, sent.lines
        assert heads()[candidate.policy_id] == ("challenger", 0.1)
        assert store_of(settings).pointer().policy_id == candidate.policy_id
    assert outbox_of(settings).entries() == []
    audit = running_hub.get("/v1/audit?limit=1000")["rows"]
    assert [row["actor"] for row in audit if row["policy_id"] == candidate.policy_id and row["kind"] == "policy"] == [
        "webhook"]
