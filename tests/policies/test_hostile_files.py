"""Hostile files: none is run, none is served, and each refusal is a sentence that names what is wrong."""

from __future__ import annotations

import contextlib
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hostile_files import TRUSTED_KEYS, Hostile, executed, hostile_files

from policies.bundle import read_bundle
from policies.errors import BundleRefused
from policies.loader import load_checked, run_canary
from policies.registry import PolicyFolder
from policies.sound_marks import CanaryLimits

# Wide enough for a busy machine: only the file that computes without end reaches them.
LIMITS = CanaryLimits(timeout_s=60.0, cpu_s=10)


def refusal(hostile: Hostile) -> str:
    """Why the loader refuses it; "" if it does not."""
    try:
        load_checked(read_bundle(hostile.path), hostile.trusted_keys, canary=lambda bundle: run_canary(bundle, LIMITS))
    except BundleRefused as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def refusals(folder: Path) -> dict[str, tuple[Hostile, str]]:
    hostile = hostile_files(folder)
    with ThreadPoolExecutor(4) as pool:  # only two canaries run at once
        return {found.name: (found, why) for found, why in zip(hostile, pool.map(refusal, hostile), strict=True)}


def test_there_are_more_than_forty_and_no_two_are_the_same(refusals: dict[str, tuple[Hostile, str]]) -> None:
    assert len(refusals) >= 80
    assert len({hostile.why for hostile, _ in refusals.values()}) >= 60
    contents = [hostile.path.read_bytes() for hostile, _ in refusals.values() if hostile.uploadable]
    assert len(set(contents)) == len(contents) >= 40


def test_every_one_is_refused_by_what_is_wrong_with_it(refusals: dict[str, tuple[Hostile, str]]) -> None:
    otherwise = {name: why for name, (hostile, why) in refusals.items() if not why or hostile.says not in why}
    assert otherwise == {}


def test_every_refusal_is_one_clear_sentence(refusals: dict[str, tuple[Hostile, str]]) -> None:
    for name, (_, why) in refusals.items():
        assert 10 <= len(why) <= 900, name
        assert not re.search(r"Traceback|<object|0x[0-9a-f]{8}", why), (name, why)
        assert why.isprintable(), (name, why)


def test_none_was_executed(folder: Path, refusals: dict[str, tuple[Hostile, str]]) -> None:
    assert refusals
    assert not executed(folder)


def test_the_pickles_would_have_left_their_mark(tmp_path: Path) -> None:
    import pickle

    hostile = {found.name: found for found in hostile_files(tmp_path)}
    pickle.loads(hostile["pickle"].path.read_bytes())
    assert executed(tmp_path)


def test_none_is_run_by_storing_it_either(tmp_path: Path, folder: Path,
                                          refusals: dict[str, tuple[Hostile, str]]) -> None:
    stored, kept = PolicyFolder(tmp_path / "policies"), set()
    for hostile, _ in refusals.values():
        with contextlib.suppress(BundleRefused):  # those whose weights alone are wrong can be stored
            kept.add(stored.add(hostile.path).policy_id)
    assert stored.ids() == sorted(kept)
    assert not executed(folder)


def test_what_the_files_are_made_of_is_served(folder: Path, refusals: dict[str, tuple[Hostile, str]]) -> None:
    load_checked(read_bundle(folder / "target.pt"))
    unsigned = next(hostile for hostile, _ in refusals.values() if hostile.name == "unsigned")
    assert load_checked(read_bundle(unsigned.path), ()).policy_id
    with pytest.raises(BundleRefused, match="only signed"):
        load_checked(read_bundle(unsigned.path), TRUSTED_KEYS)
