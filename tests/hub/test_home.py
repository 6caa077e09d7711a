"""The home: paths, tokens that only their owner can read, and one hub at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from hub.code_hash import code_hash
from hub.home import Home, HomeInUse


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    made.create()
    return made


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_naming_a_home_touches_nothing(tmp_path: Path) -> None:
    assert Home(tmp_path / "home").ledger == tmp_path / "home" / "hub.sqlite"
    assert not (tmp_path / "home").exists()


def test_a_home_is_its_owners_alone_even_if_it_was_there_before(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o755)
    home = Home(tmp_path / "home")
    home.create()
    home.create()
    assert mode(home.root) == 0o700
    folders = (home.policies, home.mlflow, home.features, home.logs, home.reports, home.run)
    assert all(folder.is_dir() for folder in folders)


def test_tokens_are_made_once_differ_and_can_be_read_by_their_owner_only(home: Home) -> None:
    tokens = home.tokens()
    assert tokens.keys() == {"bot", "ops"}
    assert len(set(tokens.values())) == 2
    assert all(len(token) >= 40 for token in tokens.values())
    assert home.tokens() == Home(home.root).tokens() == tokens
    assert mode(home.tokens_file) == 0o600


def test_one_hub_holds_a_home_at_a_time_and_the_other_learns_who(home: Home) -> None:
    held = home.lock()
    for _ in range(2):
        with pytest.raises(HomeInUse, match=r"process \d+"):
            home.lock()
    held.close()
    home.lock().close()


def test_the_code_hash_is_the_same_each_time() -> None:
    assert code_hash() == code_hash()
    assert len(code_hash()) == 64
