"""The command: how it ends, what it says, and that it goes on where it was."""

from __future__ import annotations

import io
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hub_door import fake_hub
from rich.console import Console
from small_search import PLAIN, without_ray

from feature_repo.features import MINUTE_MS
from feature_repo.generated import START_MS
from policies.bundle import read_bundle
from policies.free_ports import free_port
from train import retrain_sup
from train.commands import INTERRUPTED, NOT_PASSED, REFUSED
from train.pool import HerePool
from train.retrain_settings import HEADS
from train.retrain_sup import Board, main

TINY = ["--market", "generated", "--generated-bars", "5000", "--coins", "BTC,ETH", "--window", "30", "--lookback",
        "3000", "--heads", "linear", "--trials", "1", "--folds", "1"]
CLOCK_MS = START_MS + 4_000 * MINUTE_MS


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@contextmanager
def without_a_cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched, without_ray():
        patched.setattr(retrain_sup, "ray_cluster", lambda: nullcontext(1))
        patched.setattr(retrain_sup, "RayPool", HerePool)
        yield


@pytest.fixture
def here() -> Iterator[None]:
    """The command without Ray."""
    with without_a_cluster():
        yield


@pytest.fixture(scope="module")
def searched_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the tiny search is over, for a hub whose clock stands at CLOCK_MS."""
    home = tmp_path_factory.mktemp("searched") / "home"
    with without_a_cluster(), fake_hub(home, CLOCK_MS) as hub:
        assert run(home, "--keep-back", url=hub.url).exit_code == 0
    return home


@pytest.fixture
def searched(searched_home: Path, home: Path) -> Path:
    """A copy of it: how the command ends is left to do."""
    shutil.copytree(searched_home, home)
    return home


def run(home: Path, *more: str, url: str | None = None) -> Result:
    nobody = f"http://127.0.0.1:{free_port()}"
    return CliRunner().invoke(main, ["--home", str(home), "--hub-url", url or nobody, *TINY, *more])


@pytest.mark.usefixtures("here")
def test_without_a_hub_it_ends_well_and_says_how_to_register(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home.parent)
    ended = run(Path(home.name))  # as `make` names it
    assert ended.exit_code == 0, ended.output
    path = home / "models" / "candidate_linear.pt"
    assert f"hub register --path {path}" in ended.output.replace("\n", "")
    assert read_bundle(path).manifest.alias.startswith("linear_")
    assert (home / "reports" / "retrain_sup.html").exists()
    assert "[1/" in ended.output
    again = run(home)
    assert again.exit_code == 0
    assert "4 of 4 steps are done" in again.output


@pytest.mark.parametrize(("word", "arguments"), [
    ("WINDOW", ["--window", "5"]), ("LOOKBACK", ["--lookback", "10"]), ("HEADS", ["--heads", "lstm"]),
    ("COINS", ["--coins", "BTC,BTC"]), ("TRIALS", ["--trials", "0"]), ("SEEDS", ["--seeds", "0"]),
    ("FOLDS", ["--folds", "0"]), ("--size", ["--size", "huge"]), ("--market", ["--market", "kraken"]),
    ("--window", ["--window", "many"])])
def test_wrong_arguments_end_with_2_and_the_word(home: Path, word: str, arguments: list[str]) -> None:
    ended = run(home, *arguments)
    assert ended.exit_code == 2
    assert word in ended.output
    assert not home.exists()


@pytest.mark.usefixtures("here")
def test_what_cannot_be_done_ends_with_1_and_says_why(home: Path) -> None:
    ended = run(home, "--generated-bars", "1000")
    assert ended.exit_code == 1
    assert "Error: COINS" in ended.output
    assert "Traceback" not in ended.output


@pytest.mark.usefixtures("here")
def test_a_market_that_is_not_there_is_a_wrong_argument(home: Path) -> None:
    ended = run(home, "--coins", "DOGE,BTC", "--market", "files", "--data-dir", str(home / "nothing here"))
    assert ended.exit_code == 2
    assert "Traceback" not in ended.output


@pytest.mark.usefixtures("here")
def test_if_no_head_that_was_asked_for_can_be_made_it_ends_with_1_and_hands_no_other_over(
        home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*arguments: object, **more: object) -> None:
        raise MemoryError("no more trees")

    monkeypatch.setattr("train.catboost.CatBoostLearner.fit", dies)
    with fake_hub(home, CLOCK_MS) as hub:
        ended = run(home, "--heads", "catboost", url=hub.url)
        assert ended.exit_code == 1, ended.output
        assert "no more trees" in ended.output
        assert hub.asked == []


@pytest.mark.usefixtures("here", "searched")
def test_strict_hands_nothing_over_that_did_not_pass(home: Path) -> None:
    with fake_hub(home, CLOCK_MS) as hub:
        ended = run(home, "--strict", url=hub.url)
        assert ended.exit_code == NOT_PASSED == 3, ended.output
        assert "did not pass" in ended.output
        assert hub.asked == []
        assert run(home, url=hub.url).exit_code == 0
        assert [path for path, _ in hub.asked] == ["/v1/policies"]


@pytest.mark.usefixtures("here", "searched")
def test_what_is_kept_back_is_made_and_not_handed_over(home: Path) -> None:
    with fake_hub(home, CLOCK_MS) as hub:
        ended = run(home, "--keep-back", url=hub.url)
        assert ended.exit_code == 0, ended.output
        assert hub.asked == []
    assert (home / "models" / "candidate_linear.pt").exists()


@pytest.mark.usefixtures("here", "searched")
def test_a_hub_that_refuses_ends_it_with_4_and_the_reason(home: Path) -> None:
    with fake_hub(home, CLOCK_MS) as hub:
        hub.answers["/v1/policies"] = 422, {"detail": "not sound"}
        ended = run(home, url=hub.url)
    assert ended.exit_code == REFUSED == 4
    assert "not sound" in ended.output


@pytest.mark.usefixtures("here")
def test_an_interrupt_ends_it_with_130_and_the_same_command_goes_on(home: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(Board):
        def told(self, step: str, share: float) -> None:
            super().told(step, share)
            if step == "sweep.linear" and share == 1.0:
                raise KeyboardInterrupt

    with monkeypatch.context() as now:
        now.setattr(retrain_sup, "Board", Interrupted)
        ended = run(home)
    assert ended.exit_code == INTERRUPTED == 130
    assert "the same command goes on" in ended.output
    again = run(home)
    assert again.exit_code == 0, again.output
    assert "2 of 4 steps are done" in again.output


def test_a_real_interrupt_ends_it_and_its_ray(home: Path) -> None:
    """Ctrl-C on the command as users start it, as soon as its rows are kept."""
    command = [sys.executable, "-W", "ignore", "-m", "train.retrain_sup", "--home", str(home), "--hub-url",
               f"http://127.0.0.1:{free_port()}", *TINY]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               start_new_session=True)
    assert process.stdout is not None
    late = threading.Timer(120, process.kill)
    late.start()
    said: list[str] = []
    for line in process.stdout:
        if "] rows" in line and not any("] rows" in earlier for earlier in said):  # once: a second one would end that
            process.send_signal(signal.SIGINT)
        said.append(line)
    late.cancel()
    assert process.wait(30) == INTERRUPTED, "".join(said)
    assert "the same command goes on from here" in "".join(said)
    assert [path.name for path in (home / "retrain").glob("*/rows")] == ["rows"]


# Progress.


def test_progress_names_each_step_once_and_counts_to_all() -> None:
    steps, said = ("rows", "sweep.linear", "fit.linear.0.0", "final.linear"), io.StringIO()
    with Board(Console(file=said, width=100), PLAIN, steps, ("rows",), 2) as board:
        for step in steps:
            for share in (0.0, 0.5, 1.0, 1.0, 0.2):
                board.told(step, share)
        board.told("unknown", 1.0)
    lines = said.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "[2/4] sweep.linear", "[3/4] fit.linear.0.0", "[4/4] final.linear"]
    assert lines[-1].endswith("about 0 s left")


def test_every_head_that_may_be_asked_for_is_offered_by_default() -> None:
    default = next(option for option in main.params if option.name == "heads").default
    assert default == ",".join(HEADS)
