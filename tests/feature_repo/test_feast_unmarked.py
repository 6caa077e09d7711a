"""Feast's marks to be checked for types while it runs do nothing; those of others do what they say."""

from __future__ import annotations

from typing import Any

import pytest
import typeguard

import feature_repo  # noqa: F401


def doubled(number: int) -> int:
    return 2 * number


def doubled_by_feast(number: int) -> int:
    return 2 * number


doubled_by_feast.__module__ = "feast.field"


@pytest.mark.parametrize("mark", [typeguard.typechecked, typeguard.typechecked()])
def test_what_is_feasts_stays_as_it_is_and_anything_else_is_checked(mark: Any) -> None:
    assert mark(doubled_by_feast) is doubled_by_feast
    checked = mark(doubled)
    assert checked(2) == 4
    with pytest.raises(typeguard.TypeCheckError, match="number"):
        checked("a")
