"""An operator's choice of what the parameter learners start from: checked, recorded, obeyed by the next decision.

A row is an observation with `what` PARAM_START. Its detail: id, start (the whole document, so that folds need no
file), actor, reason. The fold is `router.params.ParamBandit.begin_from`: a start is a prior, not trades.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from policies.rows import PARAM_START, Row
from router.param_start import ParamStart

if TYPE_CHECKING:
    from hub.service import HubService


@dataclass(frozen=True)
class StartTaken:
    """The start in use. start_id: "" before there was one. position, at_ms: of its row."""

    start_id: str = ""
    position: int = 0
    at_ms: int = 0
    actor: str = ""
    reason: str = ""


def is_param_start(row: Row) -> bool:
    return row.kind == "observation" and row.body["what"] == PARAM_START


def start_of(row: Row) -> tuple[StartTaken, ParamStart]:
    detail = row.body["detail"]
    taken = StartTaken(detail["id"], row.position, row.at_ms, detail["actor"], detail["reason"])
    return taken, ParamStart.from_dict(detail["start"])


class ParamCommands:
    def __init__(self, service: HubService) -> None:
        self._service = service

    async def begin_from(self, document: Mapping[str, Any], reason: str) -> dict[str, Any]:
        """Start from this document from the next decision on; one without levels takes the start back.

        The one that is in use is a duplicate. InvalidInput names what is wrong with it.
        """
        start = ParamStart.from_dict(document)
        self._service.catch_up()
        taken = self._service.state.start
        if taken.start_id == start.start_id:
            return {"accepted": "duplicate", "position": taken.position, **self._named()}
        detail = {"id": start.start_id, "start": start.to_dict(), "actor": "ops", "reason": reason}
        # After which one it comes is part of the key: whoever sends it twice at once is one, going back is a row.
        answer = await self._service.observe(PARAM_START, detail, f"{PARAM_START}/{taken.position}/{start.start_id}")
        return {**answer, **self._named()}

    def shown(self) -> dict[str, Any]:
        """The start in use with what it gives, and how levels are chosen."""
        state = self._service.state
        learning, start = state.config.learning, state.params.start
        rows = [{"strategy": strategy, "bucket": bucket, **asdict(found), "weight": found.weight,
                 "shrunk_advantage": found.shrunk_advantage}
                for strategy, by_bucket in start.levels.items() for bucket, found in by_bucket.items()]
        return {"param_mode": learning.param_mode, "optimiser": learning.bo.enabled,
                "start": {**asdict(state.start), "made": dict(start.made), "levels": rows}}

    def _named(self) -> dict[str, Any]:
        state = self._service.state
        return {"start_id": state.start.start_id,
                "buckets": sum(map(len, state.params.start.levels.values()))}
