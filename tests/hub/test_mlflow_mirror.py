"""The mirror in MLflow's registry, on a real MLflow over SQLite: what it shows is what the ledger says."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from plain_bundles import momentum_bundle, onnx_bundle
from plain_hub import PlainHub

from hub.mlflow_mirror import EXPERIMENT, MODEL, LedgerPolicies, MlflowMirror, Registered, follow
from policies.bundle import read_bundle
from policies.registry import PolicyFolder
from policies.rows import Row
from sentry.ledger import LedgerReader


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> tuple[MlflowClient, Path]:
    """One database for all tests here: making its tables takes seconds. Each test empties the registry."""
    folder = tmp_path_factory.mktemp("mlflow")
    return MlflowClient(f"sqlite:///{folder}/mlflow.sqlite"), folder


@pytest.fixture
def client(registry: tuple[MlflowClient, Path]) -> Iterator[MlflowClient]:
    yield registry[0]
    if registry[0].search_registered_models():
        registry[0].delete_registered_model(MODEL)
    for run in runs(registry[0]):
        registry[0].delete_run(run.info.run_id)


@pytest.fixture
def mirror(client: MlflowClient, registry: tuple[MlflowClient, Path], hub: PlainHub) -> MlflowMirror:
    return MlflowMirror(client, hub.folder, (registry[1] / "artifacts").as_uri())


def runs(client: MlflowClient) -> list[Any]:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def shown(client: MlflowClient) -> dict[str, Any]:
    """By alias of the policy: (version, role tag, aliases of the registry)."""
    aliases = client.get_registered_model(MODEL).aliases
    return {version.tags["alias"]: (int(version.version), version.tags["role"],
                                    sorted(name for name, number in aliases.items() if number == version.version))
            for version in client.search_model_versions(f"name = '{MODEL}'")}


def show(hub: PlainHub, mirror: MlflowMirror) -> list[str]:
    return mirror.show(LedgerPolicies(hub.reader).catch_up())


async def test_each_policy_is_a_version_whose_artefact_is_its_bundle(
        hub: PlainHub, client: MlflowClient, mirror: MlflowMirror, tmp_path: Path) -> None:
    assert show(hub, mirror) == []
    assert shown(client) == {"momentum_v1": (1, "production", ["production"]),
                             "linear_v1": (2, "challenger", ["challenger"])}
    version = client.get_model_version_by_alias(MODEL, "challenger")
    path = client.download_artifacts(version.run_id, "linear_v1.pt", str(tmp_path))
    assert version.source.endswith("linear_v1.pt")
    assert read_bundle(Path(path)).policy_id == version.tags["policy_id"] == onnx_bundle().policy_id


async def test_showing_again_changes_nothing(hub: PlainHub, client: MlflowClient, mirror: MlflowMirror) -> None:
    show(hub, mirror)
    before = (shown(client), client.get_registered_model(MODEL).last_updated_timestamp)
    show(hub, mirror)
    assert (shown(client), client.get_registered_model(MODEL).last_updated_timestamp) == before


async def test_aliases_follow_the_ledger_and_go_when_nobody_has_the_role(
        hub: PlainHub, client: MlflowClient, mirror: MlflowMirror, production: str, challenger: str) -> None:
    await hub.command("promote", challenger)
    show(hub, mirror)
    assert shown(client)["linear_v1"] == (2, "production", ["production"])
    assert shown(client)["momentum_v1"] == (1, "challenger", ["challenger"])
    await hub.command("pause", production)
    show(hub, mirror)
    assert shown(client) == {"momentum_v1": (1, "paused", []), "linear_v1": (2, "production", ["production"])}
    await hub.register(momentum_bundle("momentum_v2", 0.5))
    show(hub, mirror)
    assert shown(client)["momentum_v2"] == (3, "challenger", ["challenger"])


async def test_what_a_person_changed_in_the_registry_is_put_right_and_the_hub_never_notices(
        hub: PlainHub, client: MlflowClient, mirror: MlflowMirror) -> None:
    show(hub, mirror)
    told, roles = shown(client), dict(hub.state.epoch.roles.roles)
    client.set_registered_model_alias(MODEL, "production", "2")
    client.delete_registered_model_alias(MODEL, "challenger")
    client.set_model_version_tag(MODEL, "1", "role", "halted")
    show(hub, mirror)
    assert shown(client) == told
    assert hub.state.epoch.roles.roles == roles


async def test_what_a_person_deleted_comes_back(hub: PlainHub, client: MlflowClient, mirror: MlflowMirror) -> None:
    show(hub, mirror)
    client.delete_registered_model(MODEL)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    show(hub, mirror)
    assert shown(client).keys() == {"momentum_v1", "linear_v1"}


async def test_of_two_production_heads_the_one_with_the_larger_share_has_the_alias(
        client: MlflowClient, mirror: MlflowMirror, production: str, challenger: str) -> None:
    slow, following = (Registered(production, "momentum_v1", "production", 0.05),
                       Registered(challenger, "linear_v1", "production", 0.85))
    mirror.show([slow, following])
    assert shown(client)["linear_v1"] == (2, "production", ["production"])
    assert shown(client)["momentum_v1"] == (1, "production", [])


async def test_a_policy_whose_bundle_is_gone_is_named_and_the_others_are_shown(
        hub: PlainHub, client: MlflowClient, mirror: MlflowMirror, production: str) -> None:
    (hub.home.policies / production).rename(hub.home.root / "elsewhere")
    assert show(hub, mirror) == [production]
    assert shown(client) == {"linear_v1": (1, "challenger", ["challenger"])}


@pytest.mark.parametrize("call", ["log_artifact", "create_model_version", "set_registered_model_alias"])
async def test_a_mirror_that_was_interrupted_anywhere_goes_on_without_doing_anything_twice(
        hub: PlainHub, client: MlflowClient, mirror: MlflowMirror, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise MlflowException("the server is away")

    with monkeypatch.context() as patched:
        patched.setattr(client, call, away)
        with pytest.raises(MlflowException):
            show(hub, mirror)
    show(hub, mirror)
    assert [version for version, _, _ in shown(client).values()] in ([1, 2], [2, 1])
    assert client.get_model_version_by_alias(MODEL, "production").tags["alias"] == "momentum_v1"
    assert sorted(run.data.tags["policy_id"] for run in runs(client)) == sorted(hub.state.heads)


async def test_the_follower_waits_for_an_mlflow_that_is_away_and_then_catches_up(
        hub: PlainHub, client: MlflowClient, mirror: MlflowMirror, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    ended, show_really = threading.Event(), mirror.show

    def show_later(policies: list[Registered]) -> list[str]:
        if len(said) < 3:
            raise MlflowException("the server is away")
        try:
            return show_really(policies)
        finally:
            ended.set()

    monkeypatch.setattr(mirror, "show", show_later)
    reader = LedgerReader(hub.home.ledger)
    follow(reader, mirror, ended, said.append, period_s=0.001, longest_wait_s=0.01)
    reader.close()
    assert said == ["not shown: MlflowException: the server is away"] * 3 + ["shown: 2 policies"]
    assert len(shown(client)) == 2


@pytest.mark.parametrize("error", [ConnectionError("reset"), ValueError("no JSON"), KeyError("aliases"),
                                   RuntimeError("anything")])
async def test_whatever_goes_wrong_the_follower_lives_and_tries_again(
        hub: PlainHub, mirror: MlflowMirror, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    said: list[str] = []
    shown: list[list[Registered]] = []
    ended = threading.Event()

    def show_later(policies: list[Registered]) -> list[str]:
        if not said:
            raise error
        shown.append(policies)
        ended.set()
        return []

    monkeypatch.setattr(mirror, "show", show_later)
    reader = LedgerReader(hub.home.ledger)
    follow(reader, mirror, ended, said.append, period_s=0.001, longest_wait_s=0.01)
    reader.close()
    assert said == [f"not shown: {type(error).__name__}: {error}", "shown: 2 policies"]
    assert [policy.alias for policy in shown[0]] == ["momentum_v1", "linear_v1"]


async def test_the_ledger_is_read_without_any_fold(open_hub: Any) -> None:
    hub = open_hub()
    ledger = LedgerPolicies(hub.reader)
    assert ledger.catch_up() == []
    await hub.register(momentum_bundle())
    assert ledger.catch_up() == [Registered(momentum_bundle().policy_id, "momentum_v1", "production", 1.0)]
    assert ledger.position == hub.reader.head()
    assert PolicyFolder(hub.home.policies).ids() == [momentum_bundle().policy_id]


async def test_no_row_of_the_ledger_is_read_twice(hub: PlainHub, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    rows = LedgerReader.rows

    def counted(self: LedgerReader, *arguments: Any, **more: Any) -> Iterator[Row]:
        for row in rows(self, *arguments, **more):
            read.append(row.position)
            yield row

    ledger, reader = LedgerPolicies(hub.reader), LedgerReader(hub.home.ledger)
    monkeypatch.setattr(hub.reader, "rows", counted.__get__(hub.reader))
    for step in (lambda: hub.command("pause", "linear_v1"), lambda: hub.register(momentum_bundle("momentum_v2", 0.5))):
        ledger.catch_up()
        await step()
        await hub.decide_later()
        read.clear()
        followed = ledger.catch_up()
        assert 0 < len(read) < 4, "what has come since, not the whole ledger"
        assert followed == LedgerPolicies(reader).catch_up()
    read.clear()
    assert (ledger.catch_up(), read) == (followed, [])
    reader.close()
