from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.offline import Extent, OfflineFiles

DAY_MS = 86_400_000
START = 1_750_000_020_000  # June 2025


@pytest.fixture
def files(tmp_path: Path) -> OfflineFiles:
    return OfflineFiles(tmp_path / "features")


def table(values: list[float]) -> pa.Table:
    return pa.table({"symbol": ["BTC"] * len(values), "x": pa.array(values, pa.float64())})


def append(files: OfflineFiles, times: list[int], values: list[float], created_ms: int = 0, part: str = "BTC") -> int:
    return files.append("view", part, table(values), np.array(times, np.int64), created_ms)


def test_rows_lie_in_one_file_per_month_and_their_extent_is_known(files: OfflineFiles) -> None:
    times = [START + k * 10 * DAY_MS for k in range(6)]
    assert append(files, times, [1.0] * 6) == 6
    assert sorted(path.name for path in (files.folder / "view" / "BTC").iterdir()) == [
        "2025-06.parquet", "2025-07.parquet", "2025-08.parquet"]
    assert files.extents() == [Extent("view", "BTC", 6, times[0], times[-1])]
    assert files.event_times("view", "BTC", times[1], times[4]).tolist() == times[1:5]
    assert files.event_times("view", "BTC", 0, START - 1).tolist() == []
    assert files.event_times("view", "ETH", 0, times[-1]).tolist() == []


def test_the_same_rows_again_add_nothing_and_a_correction_adds_one(files: OfflineFiles) -> None:
    assert append(files, [START, START + 1, START + 2], [1.0, np.nan, 3.0]) == 3
    assert append(files, [START + 2, START + 1, START], [3.0, np.nan, 1.0], 5) == 0
    assert append(files, [START, START + 1, START + 3], [1.5, np.nan, 4.0], 6) == 2
    assert append(files, [START], [1.5], 7) == 0, "the newest row of a time is the one that counts"
    assert append(files, [START], [1.0], 8) == 1, "and so going back is a correction, too"
    held = pq.read_table(next((files.folder / "view" / "BTC").iterdir())).to_pydict()
    assert held["x"][:3] == [1.0, 1.5, 1.0]
    assert [stamp.timestamp() for stamp in held["created"][:3]] == [0.0, 0.006, 0.008]


def test_of_rows_that_come_twice_at_once_the_last_one_counts(files: OfflineFiles) -> None:
    assert append(files, [START, START, START + 1], [1.0, 2.0, 3.0]) == 2
    assert append(files, [START, START, START + 1], [1.0, 2.0, 3.0]) == 0
    held = pq.read_table(next((files.folder / "view" / "BTC").iterdir())).to_pydict()
    assert held["x"] == [2.0, 3.0]


def test_a_write_that_was_cut_off_leaves_the_old_file_whole(
        files: OfflineFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    append(files, [START], [1.0])

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr("feature_repo.offline.os.replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        append(files, [START + 1], [2.0])
    monkeypatch.undo()
    assert files.extents() == [Extent("view", "BTC", 1, START, START)], "what was begun is read by nobody"
    assert append(files, [START + 1], [2.0]) == 1


def test_writers_at_once_lose_no_rows_of_each_other(files: OfflineFiles) -> None:
    def write(first: int) -> int:
        return sum(append(OfflineFiles(files.folder), [START + first + 4 * k], [1.0]) for k in range(25))

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(write, range(4))) == 100
    assert files.extents() == [Extent("view", "BTC", 100, START, START + 99)]


@pytest.mark.parametrize("part", ["PURR/USDC", "@107", "..", "a b"])
def test_a_part_of_any_name_stays_inside_its_folder(files: OfflineFiles, part: str) -> None:
    append(files, [START], [1.0], part=part)
    assert [path.parent.parent for path in files.folder.rglob("*.parquet")] == [files.folder / "view"]
    assert files.extents() == [Extent("view", part, 1, START, START)]
