"""The command: how it ends, what it leaves, and where it looks for an embedder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from array_heads import array_bundle
from click.testing import CliRunner, Result
from encoder_bundles import encoder_bundle
from plain_bundles import momentum_bundle
from small_search import market

from ci.forward_test import kept_embedder, main, symbols_of
from policies.bundle import Bundle, make_bundle, pack_bundle
from policies.embedder import EmbedderFolder, version_of
from policies.errors import InvalidInput
from train.commands import NOT_PASSED

BARS = 3_000
MARKET = ["--market", "generated", "--generated-bars", str(BARS), "--seed", "3"]


def trained(bundle: Bundle, **more: Any) -> Bundle:
    until_ms = int(market(BARS).bars("BTC").close_time_ms[-301])
    said = {"symbols": ["BTC"], "bars": {"until_ms": until_ms}, **more}
    return make_bundle(replace(bundle.manifest, trained_on=said), bundle.files)


def run(home: Path, bundle: Bundle | bytes, *more: str) -> Result:
    home.mkdir(exist_ok=True)
    path = home / "candidate.pt"
    path.write_bytes(bundle if isinstance(bundle, bytes) else pack_bundle(bundle))
    return CliRunner().invoke(main, ["--home", str(home), "--path", str(path), *MARKET, *more])


def test_what_passes_ends_with_0_and_what_does_not_with_3_each_with_a_report(tmp_path: Path) -> None:
    bundle = trained(momentum_bundle(threshold=1.5))
    ended = run(tmp_path, bundle, "--report", "mine")
    assert ended.exit_code == 0, ended.output
    report = json.loads((tmp_path / "reports" / "mine.json").read_text())
    assert (report["policy_id"], report["passed"], report["played"]["rows"]) == (bundle.policy_id, True, 300)
    assert "passed; report" in ended.output
    ended = run(tmp_path, bundle, "--min-pf", "99")
    assert ended.exit_code == NOT_PASSED
    assert "at least 99 is asked for" in ended.output.replace("\n", " ")
    assert not json.loads((tmp_path / "reports" / "forward_test.json").read_text())["passed"]


def test_a_file_that_is_no_sound_bundle_ends_with_3(tmp_path: Path) -> None:
    assert run(tmp_path, b"\x80\x04 a pickle").exit_code == NOT_PASSED
    broken = trained(array_bundle("window", {"window": 5}))
    content = make_bundle(replace(broken.manifest, arrays={"window": 10}), broken.files)  # not what its graph takes
    ended = run(tmp_path, content)
    assert ended.exit_code == NOT_PASSED
    assert "nothing was played" in ended.output


def test_what_cannot_be_played_ends_with_1_and_says_what_is_missing(tmp_path: Path) -> None:
    version = version_of(encoder_bundle().policy_id)
    bundle = trained(array_bundle("embedded", {"market_embedding": 4}, version))
    ended = run(tmp_path, bundle)
    assert (ended.exit_code, version in ended.output) == (1, True)
    (tmp_path / "encoder.pt").write_bytes(pack_bundle(encoder_bundle()))
    ended = run(tmp_path, bundle, "--embedder", str(tmp_path / "encoder.pt"), "--lookback", "20")
    assert ended.exit_code == 0, ended.output
    ended = run(tmp_path, trained(momentum_bundle()), "--coins", "NONE", "--market", "files", "--data-dir", "/nowhere")
    assert ended.exit_code in (1, 2)
    assert "Traceback" not in ended.output


@pytest.mark.parametrize("arguments", [["--max-dd", "0"], ["--lookback", "0"], ["--min-pf", "nan"],
                                       ["--coins", "BTC,BTC"], ["--market", "kraken"]])
def test_wrong_arguments_end_with_2(tmp_path: Path, arguments: list[str]) -> None:
    assert run(tmp_path, trained(momentum_bundle()), *arguments).exit_code == 2


def test_the_embedder_is_the_hubs_or_lies_beside_the_candidates(tmp_path: Path) -> None:
    mine, other = encoder_bundle(), encoder_bundle(1)
    wanted = version_of(mine.policy_id)
    assert kept_embedder(tmp_path, wanted) is None
    (tmp_path / "models").mkdir()
    for beside, found in ((other, None), (mine, mine)):
        (tmp_path / "models" / "embedder.pt").write_bytes(pack_bundle(beside))
        assert kept_embedder(tmp_path, wanted) == found
    (tmp_path / "models" / "embedder.pt").unlink()
    EmbedderFolder(tmp_path / "embedders", canary=lambda bundle: None).add(pack_bundle(mine))
    assert kept_embedder(tmp_path, wanted) == mine


def test_the_symbols_are_those_asked_for_or_those_of_the_training() -> None:
    assert symbols_of(trained(momentum_bundle()), "") == ("BTC",)
    assert symbols_of(trained(momentum_bundle()), "SOL,ETH") == ("SOL", "ETH")
    with pytest.raises(InvalidInput, match="COINS"):
        symbols_of(momentum_bundle(), "")
