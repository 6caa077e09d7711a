"""A candidate that is refused after the processes of heads have loaded it is in no memory and on no disk afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from candidates import candidate, refusals, upload
from http_door import assert_problem, bearer, client_of
from plain_hub import PlainHub

from hub.deployments import ServeHeads
from hub.head_rack import NOT_LOADED, HeadsUnavailable, judged
from policies.bundle import pack_bundle
from policies.errors import BundleRefused, InvalidInput, UnknownEntity, WriterUnavailable

CANDIDATE = candidate()
PACKED = pack_bundle(CANDIDATE)


def refusing(error: Exception) -> Callable[..., Any]:
    async def refuse(*_: Any) -> Any:
        raise error

    return refuse


def is_nowhere(hub: PlainHub) -> bool:
    return CANDIDATE.policy_id not in {*hub.folder.ids(), *hub.rack._heads, *hub.rack.refused}


async def test_what_the_ledger_refuses_is_forgotten_by_those_that_had_loaded_it(
        hub: PlainHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.writer, "register", refusing(InvalidInput("manifest", "JSON", 2**70)))
    with pytest.raises(InvalidInput):
        await upload(hub, PACKED)
    assert is_nowhere(hub)
    assert len(refusals(hub)) == 1
    monkeypatch.undo()
    assert (await upload(hub, PACKED))["accepted"] == "recorded"
    assert hub.rack._heads.keys() >= {CANDIDATE.policy_id}


async def test_it_is_forgotten_though_its_refusal_cannot_be_recorded(
        hub: PlainHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.writer, "register", refusing(InvalidInput("manifest", "JSON", 2**70)))
    monkeypatch.setattr(hub.writer, "observe", refusing(WriterUnavailable("away")))
    with pytest.raises(WriterUnavailable):
        await upload(hub, PACKED)
    assert is_nowhere(hub)


async def test_a_process_of_heads_without_room_refuses_and_one_that_is_away_judges_nothing(
        hub: PlainHub, monkeypatch: pytest.MonkeyPatch) -> None:
    head = hub.reader.head()
    async with client_of(hub) as client:
        monkeypatch.setattr(hub.heads, "load", refusing(ConnectionError("the replica has died")))
        answer = await client.post("/v1/policies", content=PACKED, headers=bearer("ops"))
        assert "ConnectionError" in assert_problem(answer, 503)["detail"]
        assert answer.json()["code"] == "heads_unavailable"
        assert (is_nowhere(hub), hub.reader.head()) == (True, head), "it can come again"
        monkeypatch.setattr(hub.heads, "load", refusing(MemoryError()))
        answer = await client.post("/v1/policies", content=PACKED, headers=bearer("ops"))
        assert "no room" in assert_problem(answer, 422)["detail"]
    assert (is_nowhere(hub), len(refusals(hub))) == (True, 1)


async def test_a_policy_of_the_ledger_is_not_forgotten(hub: PlainHub, monkeypatch: pytest.MonkeyPatch) -> None:
    await upload(hub, PACKED)
    monkeypatch.setattr(hub.writer, "register", refusing(InvalidInput("alias", "another", "")))
    with pytest.raises(InvalidInput):
        await upload(hub, PACKED)
    assert CANDIDATE.policy_id in {*hub.folder.ids()} & hub.rack._heads.keys()


def test_a_rack_forgets_a_head_and_why_one_was_refused(hub: PlainHub) -> None:
    known = next(iter(hub.rack._heads))
    hub.rack.forget(known)
    hub.rack.forget(known)
    with pytest.raises(UnknownEntity):
        hub.rack.load("ab" * 32)
    assert hub.rack.refused
    hub.rack.forget("ab" * 32)
    assert hub.rack.refused == {}
    assert hub.rack.propose([known], None)[known] == (None, 0.0, NOT_LOADED)  # type: ignore[arg-type]


@pytest.mark.parametrize(("error", "kind"), [
    (BundleRefused("why"), BundleRefused), (InvalidInput("a", "b", "c"), InvalidInput), (MemoryError(), BundleRefused),
    (OSError("disk"), HeadsUnavailable), (UnknownEntity("policy", "x"), HeadsUnavailable)])
def test_only_what_is_said_of_the_candidate_refuses_it(error: Exception, kind: type[Exception]) -> None:
    assert type(judged(error)) is kind


class Handle:
    """One process of heads, as Serve gives it."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.called = error, []  # type: tuple[Exception | None, list[str]]
        self.load, self.forget, self.propose = Method(self, "load"), Method(self, "forget"), None

    def options(self, **_: Any) -> Handle:
        return self


class Method:
    def __init__(self, handle: Handle, name: str) -> None:
        self._handle, self._name = handle, name

    async def remote(self, policy_id: str) -> None:
        if self._handle.error is not None and self._name == "load":
            raise self._handle.error
        await asyncio.sleep(0.01 if self._name == "load" else 0.0)  # to load takes a while
        self._handle.called.append(self._name)


async def test_both_processes_have_ended_a_load_before_either_is_told_to_forget() -> None:
    class OfTheProcess(Exception):
        """As Ray wraps an error."""

        cause = BundleRefused("not sound")

    production, challenger = Handle(OfTheProcess()), Handle()
    heads = ServeHeads(production, challenger)  # type: ignore[arg-type]
    with pytest.raises(BundleRefused, match="not sound"):
        await heads.load("a")
    await heads.forget("a")
    assert (production.called, challenger.called) == (["forget"], ["load", "forget"])
