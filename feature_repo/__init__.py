"""The feature repo: what is known of the market when, offline and online.

Feast marks most of its classes to be checked for types while they run, for which typeguard parses and compiles each of
them again at every import: half of the seconds that Feast takes to come up, in every process that has it. What we hand
to Feast is checked by mypy, and by Feast's own validation, so its marks do nothing here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typeguard

_typechecked = typeguard.typechecked


def _unless_of_feast(target: Any = None, **options: Any) -> Any:
    if target is None:
        mark: Callable[[Any], Any] = _typechecked(**options)
        return lambda found: found if _of_feast(found) else mark(found)
    return target if _of_feast(target) else _typechecked(target, **options)


def _of_feast(target: Any) -> bool:
    return str(getattr(target, "__module__", "")).partition(".")[0] == "feast"


typeguard.typechecked = _unless_of_feast
