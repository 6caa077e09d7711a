"""Takes in the reinforcement-learning policy that the configuration names, when the hub starts.

It is registered like any other candidate, and then given the say on sizes. Whatever is wrong with it, the hub goes on
without it: the reason is recorded, decisions name it as degraded, and sizes are the smaller ones.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from hub.config import RlConfig
from policies.bundle import read_bundle
from policies.errors import BundleRefused, HubError
from policies.manifest import ONNX_ACTOR

MOST_REASON = 500  # characters that are recorded


class Door(Protocol):
    """A client of the running hub with its ops token, such as httpx.Client."""

    def post(self, url: str, *, content: bytes | None = None, json: Any = None) -> Any: ...


def take_in_rl(door: Door, home: Path, config: RlConfig, say: Callable[[str], None]) -> None:
    """home: HUB_HOME, which policy_path is relative to. Nothing where it is not enabled."""
    if not config.enabled:
        return
    policy, reason = None, "taken in at the start"
    try:
        policy = _registered(door, home / config.policy_path)
    except HubError as error:
        reason = str(error)[:MOST_REASON]
    answer = door.post("/v1/rl", json={"policy": policy, "path": config.policy_path, "reason": reason})
    if answer.status_code != 200:
        say(f"rl: {config.policy_path} could not be given the say: {answer.text}")
    elif policy is None:
        say(f"rl: {config.policy_path}: {reason}; sizes are times {1 - config.blend_weight:g} without it")
    else:
        say(f"rl: {answer.json()['alias']} ({policy[:12]}) has a say in sizes, blend weight {config.blend_weight:g}")


def _registered(door: Door, path: Path) -> str:
    """The id of the policy; BundleRefused with the reason why it is none."""
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise BundleRefused(f"cannot be read: {error.strerror}") from None
    kind = read_bundle(packed).manifest.kind
    if kind != ONNX_ACTOR:
        raise BundleRefused(f"is a policy of kind {kind}, not an {ONNX_ACTOR}")
    answer = door.post("/v1/policies", content=packed)
    if answer.status_code != 200:
        raise BundleRefused(f"was not registered: {_detail(answer)}")
    return str(answer.json()["policy_id"])


def _detail(answer: Any) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return str(answer.text)
