from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator
from types import MappingProxyType

import pytest

from ci.bench import online
from ci.bench.load import NotMeasured
from ci.bench.online import NOW_MS, SYMBOL, Extent, Wanted, check, named, run, twenty_features
from feature_repo.features import BARS, DECISION_V1, EPISODE_V1, GROUPS, FeatureList
from feature_repo.online import OnlineReader
from feature_repo.redis_server import EmbeddedRedis
from feature_repo.store import FeatureRepo
from policies.free_ports import free_port

TWENTY = Wanted("", twenty_features())
EVERYTHING = Wanted("", DECISION_V1, (EPISODE_V1,))


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureRepo]:
    folder = tmp_path_factory.mktemp("online")
    with EmbeddedRedis(folder / "redis", free_port()) as server:
        made = FeatureRepo(folder / "home", server.url, timeout_s=5.0)
        made.apply()
        made.write_online(online._rows())
        yield made


@pytest.fixture
async def reader(repo: FeatureRepo) -> AsyncIterator[OnlineReader]:
    made = OnlineReader(repo.redis_url, service=TWENTY.service, deadline_s=5.0)
    yield made
    await made.close()


def test_rows_say_what_was_read_and_against_which_floors() -> None:
    twenty, whole = run(lambda text: None, Extent(rounds=2, calls=3, warm_up=1))
    assert twenty.work == "Online features, one row x 20"
    assert twenty.aim == "ratio_to_floor <= 2"
    assert twenty.met == (twenty.ratio_to_floor is not None and twenty.ratio_to_floor <= 2)
    assert whole.work.startswith(f"Online features, one row x {len(EVERYTHING.specs)}")
    assert (whole.aim, whole.met) == ("-", None)
    for row in (twenty, whole):
        assert {side: len(figures) for side, figures in row.runs.items()} == dict.fromkeys(row.runs, 4)
        assert len(row.runs) == 6
        assert len(row.detail["floors_ms"]) == 2
        assert row.figure is not None
        assert row.ratio_to_floor == pytest.approx(row.figure / row.floor_figure)  # type: ignore[operator]
        assert row.ratio_to_peer == pytest.approx(row.peer_figure / row.figure)  # type: ignore[operator]
    assert twenty.detail["hash_fields"]["read"] == 21


def test_what_is_read_is_twenty_features_or_all_that_lie_in_the_online_store() -> None:
    assert len(TWENTY.specs) == len(TWENTY.service) == 20
    assert {spec.group for spec in TWENTY.specs} == {BARS}
    stored = {spec.name for one in (DECISION_V1, EPISODE_V1) for spec in one.stored if GROUPS[spec.group].online}
    assert {spec.name for spec in EVERYTHING.specs} == stored
    assert len(EVERYTHING.specs) == len(stored)


async def test_values_that_are_not_feasts_are_not_measured(reader: OnlineReader) -> None:
    expected = named(await reader.read(SYMBOL, NOW_MS), TWENTY)
    await check(reader, TWENTY, expected)
    name = next(iter(expected))
    for wrong in (expected[name] + 1e-9, math.nan):
        with pytest.raises(NotMeasured, match=name):
            await check(reader, TWENTY, {**expected, name: wrong})
    with pytest.raises(NotMeasured):
        await check(reader, TWENTY, {name: value for name, value in expected.items() if name != "ret_1"})


async def test_a_reader_that_does_not_check_ages_is_not_measured(repo: FeatureRepo) -> None:
    ageless = FeatureList("ageless", TWENTY.service.specs, (BARS,), (), MappingProxyType({BARS: 10**12}))
    wanted = Wanted("", ageless)
    reader = OnlineReader(repo.redis_url, service=ageless, deadline_s=5.0)
    with pytest.raises(NotMeasured, match="expired"):
        await check(reader, wanted, named(await reader.read(SYMBOL, NOW_MS), wanted))
    await reader.close()


async def test_calls_that_fail_count_as_infinitely_slow() -> None:
    def fail() -> None:
        raise OSError

    runs, failed = await online._alternate({"good": lambda: None, "bad": fail}, Extent(rounds=1, calls=3, warm_up=1))
    assert runs["bad"] == [math.inf, math.inf]
    assert failed == {"good": 0, "bad": 6}
    assert max(runs["good"]) < math.inf


def test_floor_holds_just_what_is_wanted(repo: FeatureRepo) -> None:
    import redis

    with redis.Redis.from_url(repo.redis_url) as client:
        online._lay_floor(client, EVERYTHING)
        online._lay_floor(client, TWENTY)
        held = client.hgetall(online.FLOOR_KEY)
    assert len(held) == 21
    assert all(held.values())
