from __future__ import annotations

from ci.bench.decision import CLIENTS, KINDS, WORK, Extent, Measured, rows
from ci.bench.load import ID_PLACE, Timings, post
from ci.bench.setting import configuration, requests_at
from feature_repo.features import DECISION_V1
from hub.schemas import DecisionRequest
from policies.types import STRATEGIES


def test_rows_compare_the_median_of_the_runs_of_each_engine() -> None:
    measured = Measured(busy_percent=[1.0, 2.0, 9.0])
    for kind, scale in zip(KINDS, (1.0, 2.0, 0.5), strict=True):
        for run in range(3):
            measured.add(kind, CLIENTS[0], Timings([scale, scale * (4 + run), 99.0], 1.0))
            measured.add(kind, CLIENTS[1], Timings([1.0] * 100, scale * (1 + run), partial=run))
    cost, rate = rows(measured, Extent(episodes=5))
    assert all(one.work.startswith(WORK) for one in (cost, rate))
    assert cost.runs["peer"] == [4.0, 5.0, 6.0]
    assert (cost.peer_figure, cost.figure, cost.floor_figure) == (5.0, 10.0, 2.5)
    assert (rate.peer_figure, rate.figure, rate.floor_figure) == (50.0, 25.0, 100.0)
    assert (cost.ratio_to_peer, rate.ratio_to_peer) == (0.5, 0.5)
    assert (cost.ratio_to_floor, rate.ratio_to_floor) == (4.0, 4.0)
    assert cost.met
    assert cost.detail["degraded_share"] == measured.partial_share() == 3 / 309
    assert (cost.detail["features"], cost.detail["episodes"]) == (len(DECISION_V1), 5)
    assert cost.detail["busy_percent_before_a_load"] == {"median": 2.0, "max": 9.0}


def test_hub_is_asked_what_its_api_admits_in_every_slot() -> None:
    config = configuration()
    requests = list(requests_at(60_000, config))
    assert [DecisionRequest.model_validate(request).model_dump() for request in requests] == requests
    slots = {(request["symbol"], request["strategy"]) for request in requests}
    assert len(slots) == len(requests) == len(config.market.symbols) * len(STRATEGIES)
    DecisionRequest.model_validate({**requests[0], "request_id": ID_PLACE.decode()})
    assert post("/v1/decisions", {**requests[0], "request_id": ID_PLACE.decode()}, "t").count(ID_PLACE) == 1
