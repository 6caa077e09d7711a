"""What training commands share: options in, exit codes out."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from policies.errors import HubError, InvalidInput
from train.commands import INTERRUPTED, JobOptions, MarketOptions, ended, job_options, settings_of

CONSOLE = Console(width=160)


def ran(work: object, *arguments: str) -> Result:
    """A command with the shared options and one of its own; it does `work` with them."""

    @click.command()
    @job_options
    @click.option("--own", default=1)
    def command(job: JobOptions, own: int) -> None:
        ended(lambda: work(job, own), CONSOLE)  # type: ignore[operator]

    return CliRunner().invoke(command, arguments)


def test_a_command_gets_its_job_its_market_and_its_own_options(tmp_path: Path) -> None:
    seen: list[tuple[JobOptions, int]] = []
    ran(lambda job, own: seen.append((job, own)) or 0, "--home", str(tmp_path), "--coins", "SOL,BTC", "--hub-url",
        "http://127.0.0.1:9/", "--market", "generated", "--seed", "3", "--own", "2", "--strict")
    [(job, own)] = seen
    assert own == 2
    assert job.market == MarketOptions("generated", None, 3, 1.0, 43_200)
    assert (job.symbols, job.lookback, job.strict, job.keep_back) == (("SOL", "BTC"), 25_200, True, False)
    assert (job.door.url, job.door.home) == ("http://127.0.0.1:9", tmp_path)
    assert job.market.opened(job.symbols).name == "generated"


def test_coins_are_read_as_people_write_them(tmp_path: Path) -> None:
    seen: list[tuple[str, ...]] = []
    for coins in ("BTC, eth", " sol ,kPEPE"):
        ran(lambda job, own: seen.append(job.symbols) or 0, "--home", str(tmp_path), "--coins", coins)
    assert seen == [("BTC", "ETH"), ("SOL", "kPEPE")]


def test_a_coin_or_a_folder_that_is_not_there_is_a_wrong_argument(tmp_path: Path) -> None:
    folder = tmp_path / "recorded" / "venue"
    folder.mkdir(parents=True)
    (folder / "BTC_1m_a_b.csv").write_text("timestamp,open,high,low,close,volume\n0,1,1,1,1,1\n")
    for coins, data_dir in (("BTC,DOGE", folder.parent), ("BTC", tmp_path / "none")):
        refused = ran(lambda job, own: job.market.opened(job.symbols) and 0, "--home", str(tmp_path), "--market",
                      "files", "--data-dir", str(data_dir), "--coins", coins)
        assert refused.exit_code == 2, refused.output


def test_a_home_is_named_from_the_working_folder_once_and_for_all(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    homes: list[Path] = []
    ran(lambda job, own: homes.append(job.home) or 0, "--home", "var")
    assert homes == [tmp_path / "var"]


def test_every_option_is_named_in_the_help() -> None:
    said = ran(lambda job, own: 0, "--help").output
    for name in ("--home", "--hub-url", "--coins", "--lookback", "--strict", "--keep-back", "--market", "--data-dir",
                 "--seed", "--signal", "--generated-bars", "--own"):
        assert name in said


@pytest.mark.parametrize("code", [0, 3, 4])
def test_it_ends_with_the_code_of_its_work(tmp_path: Path, code: int) -> None:
    assert ran(lambda job, own: code, "--home", str(tmp_path)).exit_code == code


def test_an_interrupt_a_failure_and_a_wrong_argument_have_codes_of_their_own(tmp_path: Path) -> None:
    def raising(error: BaseException) -> object:
        def work(job: JobOptions, own: int) -> int:
            raise error

        return work

    interrupted = ran(raising(KeyboardInterrupt()), "--home", str(tmp_path))
    assert interrupted.exit_code == INTERRUPTED == 130
    failed = ran(raising(HubError("the disk is full")), "--home", str(tmp_path))
    assert (failed.exit_code, "the disk is full" in failed.output) == (1, True)
    with pytest.raises(click.UsageError, match="LOOKBACK") as wrong:
        settings_of(lambda: raising(InvalidInput("LOOKBACK", ">= 1", 0))(None, 0))  # type: ignore[operator]
    assert wrong.value.exit_code == 2
