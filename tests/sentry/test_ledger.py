from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import apsw
import numpy as np
import pytest

from policies.errors import ContentConflict, HubError, InvalidInput, LedgerCorrupt, WriterUnavailable
from policies.rows import NewRow, Row
from sentry.ledger import EpisodeRecord, Ledger, LedgerReader, encoded, require_safe_sqlite


def observation(key: str | None = None, **body: object) -> NewRow:
    return NewRow("observation", key, body)


def filled(path: Path, rows: int) -> Ledger:
    ledger = Ledger(path)
    with ledger.transaction():
        for number in range(rows):
            ledger.append(observation(number=number), at_ms=number)
    return ledger


def episode(name: str, timestamp_ms: int, x: float) -> EpisodeRecord:
    vector = np.array([x, 0.5], dtype="<f4").tobytes()
    return EpisodeRecord(name, timestamp_ms, "momentum", "BTC", {"x": x}, {"d": 1}, {"pnl": x}, vector, "v1", "hash")


def test_rows_come_back_as_they_were_appended_and_in_order(tmp_path: Path) -> None:
    ledger = filled(tmp_path / "l", 2_345)  # more than two pages
    assert [row.position for row in ledger.rows()] == list(range(1, 2_346))
    assert [row.body["number"] for row in ledger.rows(after=2_300, limit=3)] == [2_300, 2_301, 2_302]
    assert ledger.get("observation", "7") == Row(7, "observation", "7", 6, {"number": 6})
    assert ledger.get("observation", "absent") is None
    assert (ledger.head(), ledger.counts()) == (2_345, {"observation": 2_345})


def test_rows_of_some_kinds_are_the_same_as_all_rows_filtered(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l")
    with ledger.transaction():
        for number in range(3_000):
            ledger.append(NewRow(("decision", "verdict", "epoch")[number % 3], None, {"n": number}), 0)
    for kinds in ({"verdict"}, {"epoch", "verdict"}, set()):
        assert list(ledger.rows(after=10, limit=1_500, kinds=kinds)) == [
            row for row in ledger.rows(after=10) if row.kind in kinds][:1_500]


def test_appended_row_has_the_body_that_readers_will_see(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l")
    with ledger.transaction():
        row = ledger.append(observation("k", pair=(1, 2), b=1.5, a=None), 5)
    assert row.body == {"a": None, "b": 1.5, "pair": [1, 2]}
    assert list(ledger.rows()) == [row]


@pytest.mark.parametrize("change", [
    "UPDATE ledger SET body = '{}' WHERE position = 1",
    "DELETE FROM ledger",
    "INSERT INTO ledger VALUES (4, 'observation', 'gap', 0, '{}')",
    "INSERT INTO ledger VALUES (NULL, 'observation', '1', 0, '{}')",
    "INSERT OR REPLACE INTO ledger VALUES (3, 'observation', '1', 0, '{}')",
    "INSERT OR REPLACE INTO ledger VALUES (1, 'observation', 'new', 0, '{}')",
])
def test_recorded_rows_cannot_be_changed_by_any_connection(tmp_path: Path, change: str) -> None:
    ledger = filled(tmp_path / "l", 2)
    before = list(ledger.rows())
    with pytest.raises(apsw.ConstraintError):
        apsw.Connection(str(tmp_path / "l")).execute(change)
    assert list(ledger.rows()) == before


def test_transaction_with_an_exception_leaves_nothing_and_positions_have_no_gaps(tmp_path: Path) -> None:
    ledger = filled(tmp_path / "l", 3)

    def halfway() -> None:
        with ledger.transaction():
            ledger.append(observation(), 0)
            ledger.append(NewRow("unknown kind", None, {}), 0)

    with pytest.raises(InvalidInput):
        halfway()
    assert ledger.head() == 3
    with ledger.transaction():
        assert ledger.append(observation(), 0).position == 4


def test_append_outside_a_transaction_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        Ledger(tmp_path / "l").append(observation(), 0)


def test_a_key_is_recorded_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l")
    with ledger.transaction():
        ledger.append(observation("k", a=1), 0)
        with pytest.raises(ContentConflict):
            ledger.append(observation("k", a=2), 0)
        ledger.append(observation("other"), 0)
    assert [row.key for row in ledger.rows()] == ["k", "other"]


@pytest.mark.parametrize(("value", "field"), [
    ({"a": float("nan")}, "body.a"), ({"a": [1, {"b": float("inf")}]}, "body.a.1.b"), ({"a": -np.inf}, "body.a"),
    ({"a": np.float64(1)}, "body.a"), ({"a": object()}, "body.a"), ({"a": 2**64}, "body"), ({1: 2}, "body"),
])
def test_what_is_not_finite_json_is_refused_with_its_path(value: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        encoded(value)
    assert refusal.value.field == field


def test_encoding_does_not_depend_on_the_order_of_keys() -> None:
    assert encoded({"b": 1, "a": {"d": 0.1, "c": 2}}) == encoded({"a": {"c": 2, "d": 0.1}, "b": 1})


def test_files_belong_to_their_owner_alone(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        ledger = filled(tmp_path / "l", 1)
    finally:
        os.umask(previous)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
    assert (tmp_path / "l-wal").exists()
    ledger.close()


def test_second_writer_is_refused_until_the_first_has_closed(tmp_path: Path) -> None:
    first = filled(tmp_path / "l", 1)
    with pytest.raises(WriterUnavailable):
        Ledger(tmp_path / "l", lock_wait_s=0)
    first.close()
    assert Ledger(tmp_path / "l", lock_wait_s=0).head() == 1


@pytest.mark.parametrize("change", ["PRAGMA user_version = 2", "PRAGMA application_id = 5"])
@pytest.mark.parametrize("kind", [Ledger, LedgerReader])
def test_file_of_an_unknown_schema_is_refused(tmp_path: Path, change: str, kind: type) -> None:
    filled(tmp_path / "l", 1).close()
    apsw.Connection(str(tmp_path / "l")).execute(change)
    with pytest.raises(LedgerCorrupt):
        kind(tmp_path / "l")


def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l").write_bytes(b"not a database at all" * 100)
    with pytest.raises(LedgerCorrupt):
        Ledger(tmp_path / "l")


def test_interrupted_creation_is_made_up_for(tmp_path: Path) -> None:
    (tmp_path / "l").touch()
    with pytest.raises(WriterUnavailable):
        LedgerReader(tmp_path / "l")
    assert Ledger(tmp_path / "l").head() == 0


@pytest.mark.parametrize("version", ["3.40.1", "3.51.2", "3.7.0"])
def test_sqlite_that_can_corrupt_a_shared_file_is_refused(version: str) -> None:
    with pytest.raises(HubError, match=version):
        require_safe_sqlite(version)
    require_safe_sqlite("3.51.3")


def test_commits_are_synced_to_the_disk(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l")
    pragmas = {name: ledger._connection.execute(f"PRAGMA {name}").fetchall()[0][0]
               for name in ("synchronous", "journal_mode", "foreign_keys")}
    assert pragmas == {"synchronous": 2, "journal_mode": "wal", "foreign_keys": 1}


def test_reader_sees_whole_transactions_while_the_writer_writes(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l")
    done = threading.Event()
    seen: list[int] = []

    def read() -> None:
        reader = LedgerReader(tmp_path / "l")
        while True:
            finished = done.is_set()
            seen.extend(row.position for row in reader.rows(after=len(seen)))
            assert len(seen) % 3 == 0, "a part of a transaction was seen"
            if finished:
                return

    failures: list[BaseException] = []

    def watched() -> None:
        try:
            read()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=watched)
    thread.start()
    for _ in range(150):
        with ledger.transaction():
            for _ in range(3):
                ledger.append(observation(), 0)
    done.set()
    thread.join()
    assert not failures
    assert seen == list(range(1, 451))


def test_reader_cannot_write(tmp_path: Path) -> None:
    filled(tmp_path / "l", 1)
    with pytest.raises(apsw.ReadOnlyError):
        LedgerReader(tmp_path / "l")._connection.execute("DELETE FROM episodes")


def test_keys_with_a_prefix_are_the_filtered_keys(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l")
    keys = ["a/0/0", "a/0/1", "a/0/10", "a/01/0", "a/1/0", "a/00", "b/0/0", "a/0/ü"]
    with ledger.transaction():
        for key in keys:
            ledger.append(observation(key), 0)
    for prefix in ("a/0/", "a/", "b", "c"):
        assert ledger.keys("observation", prefix) == sorted(key for key in keys if key.startswith(prefix))


def test_episodes_are_replaced_by_id_and_paged_in_both_directions(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l")
    with ledger.transaction():
        for number in range(7):
            ledger.put_episode(episode(f"e{number}", number // 2, float(number)))
        ledger.put_episode(episode("e3", 1, 9.0))
    everything = [f"e{number}" for number in range(7)]
    assert [one.id for one in ledger.query_episodes(100)] == everything[::-1]
    pages, after = [], (-1, "")
    while page := ledger.episodes(3, after):
        pages += [one.id for one in page]
        after = (page[-1].timestamp_ms, page[-1].id)
    assert pages == everything
    assert ledger.episodes(1, (1, "e2")) == [episode("e3", 1, 9.0)]
    vectors = {name: np.frombuffer(vector, "<f4").tolist() for name, vector, _ in ledger.embeddings()}
    assert vectors["e3"] == [9.0, 0.5]
    assert len(vectors) == 7


def test_embedding_needs_its_episode_and_whole_float32_values(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l")
    with pytest.raises(InvalidInput, match="float32"):
        ledger.record_embedding("e", b"123", "v1")
    with pytest.raises(apsw.ConstraintError), ledger.transaction():
        ledger.record_embedding("unknown", b"1234", "v1")
