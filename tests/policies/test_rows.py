from __future__ import annotations

from typing import Any

import pytest

from policies.rows import AUDIT_KINDS, KINDS, Row, is_audited


def row(kind: str, **body: Any) -> Row:
    return Row(1, kind, "key", 0, body)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_audited_by_their_kind(kind: str) -> None:
    assert is_audited(row(kind)) == (kind in AUDIT_KINDS)


def test_epoch_is_audited_unless_it_says_that_the_traffic_is_as_before() -> None:
    assert is_audited(row("epoch", changed=True))
    assert is_audited(row("epoch"))
    assert not is_audited(row("epoch", changed=False))
    assert is_audited(row("verdict", changed=False))
