"""A state as plain values that compare equal exactly if the states do."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from hub.state import HubState


def everything(value: Any) -> Any:
    """A state down to its last private number, as plain values that compare equal exactly if the states do."""
    if isinstance(value, float):
        return repr(value)
    if value is None or isinstance(value, str | int | bytes):
        return value
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {repr(name): everything(part) for name, part in value.items()}
    if isinstance(value, list | tuple | deque):
        return [everything(part) for part in value]
    if dataclasses.is_dataclass(value) and not hasattr(value, "__dict__"):
        return everything(dataclasses.asdict(value))  # type: ignore[arg-type]
    return {name: everything(part) for name, part in vars(value).items() if name not in _MEMOS}


# Not states: a cache that is filled by asking, and whether there is a memory at all.
_MEMOS = {"_tables", "_weights", "_remembers"}


def learnt(state: HubState, memory: bool = True) -> dict[str, Any]:
    """Everything of a state; without its memory for comparison with the writer's, which keeps none."""
    found = everything(state)
    assert isinstance(found, dict)
    return found if memory else {name: part for name, part in found.items() if name != "memory"}
