"""Which policy has the say of `learning.rl`: a fold of what was taken in, and the way to take one in.

A row is an observation with `what` RL_POLICY: policy_id of a registered actor, or None, with the detail alias, path,
reason and actor. None says why there is none; the hub goes on, with smaller sizes (`hub.combining`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from policies.errors import InvalidInput
from policies.manifest import ONNX_ACTOR
from policies.rows import RL_POLICY, Row

if TYPE_CHECKING:
    from hub.service import HubService

@dataclass(frozen=True)
class RlUse:
    """policy_id: None for none; then `reason` says why."""

    policy_id: str | None = None
    reason: str = "no policy has been taken in yet"
    path: str = ""
    position: int = 0


def is_rl_policy(row: Row) -> bool:
    return row.kind == "observation" and row.body["what"] == RL_POLICY


def rl_use_of(row: Row) -> RlUse:
    detail = row.body["detail"]
    return RlUse(row.body["policy_id"], detail["reason"], detail["path"], row.position)


class RlCommands:
    def __init__(self, service: HubService) -> None:
        self._service = service

    async def use(self, policy: str | None, path: str, reason: str) -> dict[str, Any]:
        """Give this registered actor the say, by id or alias, or nobody; what is so already is a duplicate.

        path: where it came from, for people. UnknownEntity, or InvalidInput for a policy that is no actor.
        """
        self._service.catch_up()
        state = self._service.state
        policy_id = None if policy is None else self._service.policy_id_of(policy)
        if policy_id is not None and state.heads[policy_id].manifest.get("kind") != ONNX_ACTOR:
            raise InvalidInput("policy", f"one of kind {ONNX_ACTOR}", state.heads[policy_id].manifest.get("kind"))
        held = state.rl
        if held.position and (held.policy_id, held.path, held.reason) == (policy_id, path, reason):
            return {"accepted": "duplicate", "position": held.position, **self.shown()}
        alias = "" if policy_id is None else state.heads[policy_id].alias
        detail = {"alias": alias, "path": path, "reason": reason, "actor": "ops"}
        answer = await self._service.observe(RL_POLICY, detail, f"{RL_POLICY}/{held.position}", policy_id)
        return {**answer, **self.shown()}

    def shown(self) -> dict[str, Any]:
        """Whether it is asked for, and who has the say."""
        state = self._service.state
        rl = state.config.learning.rl
        alias = state.heads[state.rl.policy_id].alias if state.rl.policy_id is not None else None
        return {"enabled": rl.enabled, "blend_weight": rl.blend_weight, "policy_id": state.rl.policy_id,
                "alias": alias, "path": state.rl.path or rl.policy_path, "reason": state.rl.reason}
