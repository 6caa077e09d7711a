"""The command: what it hands over, and when it hands nothing over. A search that needs no Ray."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from bo_search import random_points
from click.testing import CliRunner, Result
from hub_door import fake_hub

from feature_repo.features import MINUTE_MS
from feature_repo.generated import START_MS
from train.bo import optimise
from train.bo.job import Optimising
from train.bo.search import Problem
from train.commands import FAILED
from train.pool import HerePool
from train.sweep import Trial

TINY = ["--market", "generated", "--generated-bars", "4500", "--coins", "BTC,ETH", "--lookback", "3000", "--trials",
        "3", "--strategies", "momentum,scalping"]


def failing(objective: Problem, *more: Any) -> list[Trial]:
    if objective.strategy == "momentum":
        raise RuntimeError("no disk")
    return random_points(objective, *more)


def test_nothing_is_handed_over_while_a_search_failed_and_the_same_command_does_the_rest(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimise, "ray_cluster", lambda: nullcontext(1))
    monkeypatch.setattr(optimise, "RayPool", HerePool)
    with fake_hub(tmp_path, START_MS + 4_000 * MINUTE_MS) as hub:
        hub.answers["/v1/params/start"] = 200, {"accepted": "start", "position": 1}

        def run(search: Any) -> Result:
            monkeypatch.setattr(optimise, "Optimising", partial(Optimising, search=search))
            return CliRunner().invoke(optimise.main, ["--home", str(tmp_path), "--hub-url", hub.url, *TINY])

        ended = run(failing)
        assert ended.exit_code == FAILED == 1, ended.output
        assert "search.momentum failed: RuntimeError: no disk" in ended.output
        assert hub.asked == []
        assert not (tmp_path / "models").exists()
        ended = run(random_points)
        assert ended.exit_code == 0, ended.output
        assert "search.scalping" not in ended.output  # it is done
        assert [path for path, _ in hub.asked] == ["/v1/params/start"]
