from __future__ import annotations

from typing import Any

import pytest

from policies.rows import AUDIT_KINDS, AUDITED_OBSERVATIONS, KINDS, Row, is_audited


def row(kind: str, **body: Any) -> Row:
    return Row(1, kind, "key", 0, body)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"observation"}))
def test_rows_are_audited_by_their_kind(kind: str) -> None:
    assert is_audited(row(kind)) == (kind in AUDIT_KINDS)


@pytest.mark.parametrize("what", sorted(AUDITED_OBSERVATIONS))
def test_an_observation_is_audited_only_for_what_concerns_candidates_and_embeddings(what: str) -> None:
    assert is_audited(row("observation", what=what))
    assert not is_audited(row("observation", what="degraded"))
    assert not is_audited(row("observation"))


def test_epoch_is_audited_unless_it_says_that_the_traffic_is_as_before() -> None:
    assert is_audited(row("epoch", changed=True))
    assert is_audited(row("epoch"))
    assert not is_audited(row("epoch", changed=False))
    assert is_audited(row("verdict", changed=False))
