"""Every candidate of tonight is played once, whatever it passed or not."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest
from array_heads import array_bundle
from click.testing import CliRunner, Result
from encoder_bundles import encoder_bundle
from plain_bundles import momentum_bundle

from feature_repo.features import MARKET_EMBEDDING
from policies.bundle import pack_bundle
from train.nightly.forward_step import candidates_in, main

# Ends with the code that stands in a file of the candidate's name, and notes what it was asked for.
PLAYS = """
import json, pathlib, sys
asked = dict(zip(sys.argv[1::2], sys.argv[2::2]))
home, name = pathlib.Path(asked["--home"]), pathlib.Path(asked["--path"]).stem
with (home / "asked.jsonl").open("a") as file:
    file.write(json.dumps(asked) + "\\n")
(home / "reports").mkdir(exist_ok=True)
(home / "reports" / (asked["--report"] + ".json")).write_text(json.dumps({"missed": ["of " + name]}))
print("played", name)
sys.exit(int((home / name).read_text()))
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Two steps left candidates: a, b of the one, c of the other."""
    for step, names in (("one", "ab"), ("two", "c")):
        (tmp_path / step).mkdir()
        for name in names:
            (tmp_path / step / f"candidate_{name}.pt").write_bytes(pack_bundle(momentum_bundle()))
    (tmp_path / "out").mkdir()
    return tmp_path


def run(home: Path, **codes: int) -> Result:
    for name, code in codes.items():
        (home / f"candidate_{name}").write_text(str(code))
    made = [part for step in ("one", "two", "not done") for part in ("--made", str(home / step))]
    return CliRunner().invoke(main, ["--home", str(home), *made, "--out", str(home / "out"), "--command",
                                     shlex.join((sys.executable, "-c", PLAYS)), "--coins", "BTC", "--min-pf", "1.5"])


def asked(home: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (home / "asked.jsonl").read_text().splitlines()]


def test_candidates_are_those_of_the_steps_that_are_done(home: Path) -> None:
    (home / "one" / "embedder.pt").touch()
    assert [path.name for path in candidates_in([home / "one", home / "nobody"])] == ["candidate_a.pt",
                                                                                     "candidate_b.pt"]


def test_each_candidate_is_played_with_what_was_asked_for(home: Path) -> None:
    assert run(home, a=0, b=3, c=0).exit_code == 0
    found = asked(home)
    assert [Path(one["--path"]).name for one in found] == [f"candidate_{name}.pt" for name in "abc"]
    assert {(one["--coins"], one["--min-pf"]) for one in found} == {("BTC", "1.5")}
    assert len({one["--report"] for one in found}) == 3
    kept = json.loads((home / "out" / "forward_b.json").read_bytes())
    assert (kept["passed"], kept["exit_code"], kept["report"]) == (False, 3, {"missed": ["of candidate_b"]})


@pytest.mark.parametrize(("codes", "ends"), [
    ({"a": 0, "b": 3, "c": 1}, 0), ({"a": 3, "b": 3, "c": 3}, 3), ({"a": 3, "b": 1, "c": 3}, 1)])
def test_how_it_ends(home: Path, codes: dict[str, int], ends: int) -> None:
    ended = run(home, **codes)
    assert ended.exit_code == ends
    assert f"{sum(code == 0 for code in codes.values())} of 3 candidates passed" in ended.output.splitlines()[-1]


def test_nothing_to_play_is_an_error(home: Path) -> None:
    for path in home.glob("*/candidate_*.pt"):
        path.unlink()
    assert run(home).exit_code == 1


def test_what_was_played_before_an_interruption_is_not_played_again(home: Path) -> None:
    run(home, a=0, b=3, c=3)
    (home / "out" / "forward_c.json").unlink()
    assert run(home, a=1, b=1, c=3).exit_code == 0
    assert [Path(one["--path"]).stem[-1] for one in asked(home)] == ["a", "b", "c", "c"]


def test_what_could_not_be_played_is_played_again_and_what_did_not_pass_is_not(home: Path) -> None:
    assert run(home, a=3, b=1, c=3).exit_code == 1
    assert json.loads((home / "out" / "forward_b.json").read_bytes())["exit_code"] == 1  # for whoever asks why
    assert run(home, a=1, b=0, c=1).exit_code == 0
    assert [Path(one["--path"]).stem[-1] for one in asked(home)] == ["a", "b", "c", "b"]


def test_a_candidate_with_an_embedding_is_played_with_the_embedder_beside_it(home: Path) -> None:
    (home / "one" / "embedder.pt").write_bytes(pack_bundle(encoder_bundle()))
    (home / "one" / "candidate_a.pt").write_bytes(pack_bundle(array_bundle("embedded", {MARKET_EMBEDDING: 4}, "mae-1")))
    run(home, a=0, b=0, c=0)
    assert ["--embedder" in one for one in asked(home)] == [True, False, False]
