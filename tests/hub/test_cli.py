"""What the command line prints."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fake_hub import FakeHub, problem, sends
from rich.console import Console

from hub.cli import TABLE_WIDTH, cli, heads_table, start_table
from hub.home import Home

REGISTERED = {"accepted": "recorded", "policy_id": "ab" * 32, "alias": "tabnet_v1", "position": 7}


@pytest.fixture
def answering() -> Iterator[FakeHub]:
    server = FakeHub()
    yield server
    server.stop()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    made.create()
    made.tokens()
    return made


def run(home: Home, server: FakeHub, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["--home", str(home.root), "--url", server.url, *arguments])


def test_a_candidate_is_sent_as_it_lies_there_and_what_became_of_it_is_said(
        answering: FakeHub, home: Home, tmp_path: Path) -> None:
    answering.respond = sends(200, REGISTERED)
    folder = tmp_path / "candidate"
    folder.mkdir()
    (folder / "manifest.json").write_bytes(b"{}")
    said = run(home, answering, "register", "--path", str(folder))
    assert (said.exit_code, said.output) == (0, f"registered tabnet_v1 as {'ab' * 32} at position 7\n")
    assert answering.authorizations == [f"Bearer {home.tokens()['ops']}"]
    with zipfile.ZipFile(io.BytesIO(answering.raw[0])) as archive:
        assert archive.namelist() == ["manifest.json"]
    said = run(home, answering, "register", "--from-url", "s3://bucket/latest.json")
    assert said.exit_code == 0
    assert json.loads(answering.raw[1]) == {"url": "s3://bucket/latest.json"}
    answering.respond = sends(200, {**REGISTERED, "embedding_version": "mae-0123"})
    assert "hub embedding use mae-0123" in run(home, answering, "register", "--path", str(folder)).output


def test_a_refused_candidate_is_one_line_with_the_reason(answering: FakeHub, home: Home, tmp_path: Path) -> None:
    answering.respond = problem(422, "bundle_refused", "a pickle: `make retrain_sup` exports a proper bundle")
    (tmp_path / "candidate.pt").write_bytes(b"\x80\x04")
    said = run(home, answering, "register", "--path", str(tmp_path / "candidate.pt"))
    assert said.exit_code != 0
    assert "422: a pickle: `make retrain_sup` exports a proper bundle" in said.output
    for wrong in ([], ["--path", str(tmp_path), "--from-url", "x"]):
        assert "give --path or --from-url" in run(home, answering, "register", *wrong).output
    (tmp_path / "link").symlink_to(tmp_path)
    assert "not a plain file" in run(home, answering, "register", "--path", str(tmp_path)).output


@pytest.mark.parametrize(("arguments", "body"), [
    (["use", "mae-0123", "--reason", "trained"], {"version": "mae-0123", "reason": "trained", "force": False}),
    (["use", "none", "--force"], {"version": "none", "reason": "by the command line", "force": True}),
    (["revert"], {"revert": True, "reason": "by the command line"})])
def test_an_embedding_is_chosen_with_a_reason(
        answering: FakeHub, home: Home, arguments: list[str], body: dict[str, Any]) -> None:
    answering.respond = sends(200, {"version": "mae-0123", "position": 9})
    said = run(home, answering, "embedding", *arguments)
    assert said.output == "embedding mae-0123: recorded at position 9\n"
    assert answering.bodies[0].pop("command_id")
    assert answering.bodies == [body]


def test_where_the_webhooks_secret_lies_is_said_and_the_secret_only_when_asked_for(
        answering: FakeHub, home: Home) -> None:
    path = Path(run(home, answering, "webhook-secret").output.strip())
    assert path.parent == home.root
    assert run(home, answering, "webhook-secret", "--show").output.strip() == path.read_text().strip()


def test_table_of_heads_cuts_no_figure() -> None:
    head = {"alias": "catboost_v1", "role": "production", "share": 0.9, "decisions": 1_234_567, "green_lit": True,
            "paused": True, "judgement": "throttle", "rule": "profit_factor", "figure": 0.5, "e_value": 24.4,
            "lifetime": {"trades": 50_500, "profit_factor": 3.14, "max_drawdown_percent": 10.68}}
    page = io.StringIO()
    Console(width=TABLE_WIDTH, file=page).print(
        heads_table({"heads": [head], "llm_only_share": 0.1, "llm_only_decisions": 5}))
    said = page.getvalue()
    for part in ("catboost_v1", "production, green", "90%", "1234567", "50500", "3.14", "10.68", "24.40",
                 "throttle: profit_factor 0.50, paused", "llm_only"):
        assert part in said
    assert "…" not in said


def test_a_start_is_sent_as_it_lies_there_and_what_became_of_it_is_said(
        answering: FakeHub, home: Home, tmp_path: Path) -> None:
    answering.respond = sends(200, {"accepted": "recorded", "position": 9, "start_id": "ab" * 32, "buckets": 3})
    (tmp_path / "param_start.json").write_text('{"kind": "param_start"}')
    said = run(home, answering, "params", "start", "--path", str(tmp_path / "param_start.json"), "--reason", "found")
    assert (said.exit_code, said.output) == (
        0, "parameters start from abababababab (3 buckets): recorded at position 9\n")
    assert json.loads(answering.raw[0]) == {"start": {"kind": "param_start"}, "reason": "found"}
    (tmp_path / "param_start.json").write_bytes(b"\x80")
    said = run(home, answering, "params", "start", "--path", str(tmp_path / "param_start.json"))
    assert said.exit_code != 0


def test_the_start_in_use_is_shown_by_strategy_and_bucket() -> None:
    level = {"strategy": "momentum", "bucket": "calm_up", "tp_pct": 0.012, "sl_pct": 0.005, "limit_offset_pct": 0.0005,
             "trades": 120, "mean_reward": -0.02, "shrunk_advantage": 0.04, "weight": 10.0}
    console = Console(file=io.StringIO(), width=TABLE_WIDTH)
    console.print(start_table([level]))
    assert isinstance(console.file, io.StringIO)
    for cell in ("momentum", "calm_up", "1.200", "0.500", "0.050", "120", "-0.020", "+0.040", "10.0"):
        assert cell in console.file.getvalue()
