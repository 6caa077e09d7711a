"""The ledger's policies in MLflow's model registry, for people: a mirror, never an authority.

`python -m hub.mlflow_mirror` follows the ledger in a process of its own. Each registered policy is a version of one
registered model, with the packed bundle as its artefact; the aliases `production` and `challenger` stand where the
ledger's last epoch has them. The hub never reads any of it, so MLflow may be away: the mirror catches up.
"""

from __future__ import annotations

import argparse
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from policies.bundle import pack_bundle
from policies.errors import HubError
from policies.registry import PolicyFolder
from policies.types import Role
from sentry.ledger import LedgerReader

MODEL = "learner_hub_policy"
EXPERIMENT = "learner_hub_policies"
ALIASES = {"production": Role.PRODUCTION, "challenger": Role.CHALLENGER}
PERIOD_S = 2.0
LONGEST_WAIT_S = 60.0  # between attempts while MLflow is away
SHOW_AGAIN_S = 60.0  # puts right what a person has changed meanwhile


@dataclass(frozen=True)
class Registered:
    """A policy as the ledger has it. role: of the last epoch. share: of the decisions, 0..1."""

    policy_id: str
    alias: str
    role: str
    share: float


class LedgerPolicies:
    """The policies and the last epoch of a ledger, read on and on. position: up to which it has been read."""

    def __init__(self, reader: LedgerReader) -> None:
        self._reader = reader
        self.position = 0
        self._aliases: dict[str, str] = {}  # by policy id
        self._epoch: Mapping[str, Any] = {}

    def catch_up(self) -> list[Registered]:
        """Take in what was recorded since; every registered policy in order of registration."""
        head = self._reader.head()
        for row in self._reader.rows(self.position, kinds={"policy", "epoch"}):
            if row.kind == "policy":
                self._aliases[row.key] = row.body["alias"]
            else:
                self._epoch = row.body
            self.position = row.position
        self.position = max(self.position, head)
        roles, shares = self._epoch.get("roles", {}), self._epoch.get("shares", {})
        return [Registered(policy_id, alias, roles.get(policy_id, Role.SHADOW.value), shares.get(policy_id, 0.0))
                for policy_id, alias in self._aliases.items()]


class MlflowMirror:
    """Makes the registry say what it is told; told the same again, it changes nothing.

    artifacts: URI under which artefacts of the mirror's own experiment are kept; None is the server's choice.
    """

    def __init__(self, client: MlflowClient, folder: PolicyFolder, artifacts: str | None = None) -> None:
        self._client, self._folder, self._artifacts = client, folder, artifacts

    def show(self, policies: list[Registered]) -> list[str]:
        """Bring the registry to these; ids of policies that have no readable bundle, and so no version.

        Raises MlflowException when MLflow is away; what was done until then stands, and the next call goes on.
        """
        self._require_model()
        versions = self._versions()
        missing = []
        for policy in policies:
            if policy.policy_id not in versions:
                try:
                    versions[policy.policy_id] = self._add(policy)
                except HubError:
                    missing.append(policy.policy_id)
                    continue
            self._tag(versions[policy.policy_id], policy)
        self._alias(policies, {policy_id: str(version.version) for policy_id, version in versions.items()})
        return missing

    def _require_model(self) -> None:
        if not self._client.search_registered_models(f"name = '{MODEL}'"):
            self._client.create_registered_model(MODEL, description="The policies of a learner hub, as its ledger has "
                                                 "them. Changing anything here changes nothing there.")

    def _versions(self) -> dict[str, Any]:
        """By policy id. Of two versions of one policy, which only a crash or a person can make, the first."""
        found: list[Any] = []
        token = None
        while True:
            page = self._client.search_model_versions(f"name = '{MODEL}'", max_results=1_000, page_token=token)
            found += page
            token = page.token
            if not token:
                break
        found.sort(key=lambda version: int(version.version), reverse=True)
        return {version.tags["policy_id"]: version for version in found if "policy_id" in version.tags}

    def _add(self, policy: Registered) -> Any:
        packed = pack_bundle(self._folder.get(policy.policy_id))
        run = self._run(policy)
        name = f"{policy.alias}.pt"
        if name not in {file.path for file in self._client.list_artifacts(run.info.run_id)}:
            with tempfile.TemporaryDirectory() as scratch:
                (Path(scratch) / name).write_bytes(packed)
                self._client.log_artifact(run.info.run_id, str(Path(scratch) / name))
            self._client.set_terminated(run.info.run_id)
        return self._client.create_model_version(MODEL, f"{run.info.artifact_uri}/{name}", run.info.run_id,
                                                 tags={"policy_id": policy.policy_id, "alias": policy.alias})

    def _run(self, policy: Registered) -> Any:
        """The run that holds the policy's artefact; one that an earlier, interrupted attempt has made is taken up."""
        known = self._client.get_experiment_by_name(EXPERIMENT)
        experiment_id = known.experiment_id if known else self._client.create_experiment(
            EXPERIMENT, artifact_location=self._artifacts)
        if known and known.lifecycle_stage == "deleted":  # by a person; the name stays taken
            self._client.restore_experiment(experiment_id)
        runs = self._client.search_runs([experiment_id], f"tags.policy_id = '{policy.policy_id}'", max_results=1)
        return runs[0] if runs else self._client.create_run(
            experiment_id, run_name=policy.alias, tags={"policy_id": policy.policy_id})

    def _tag(self, version: Any, policy: Registered) -> None:
        wanted = {"policy_id": policy.policy_id, "alias": policy.alias, "role": policy.role}
        for name, value in wanted.items():
            if version.tags.get(name) != value:
                self._client.set_model_version_tag(MODEL, str(version.version), name, value)

    def _alias(self, policies: list[Registered], versions: Mapping[str, str]) -> None:
        """An alias stands on the policy with the largest share in its role, or nowhere."""
        now = {alias: str(version) for alias, version in self._client.get_registered_model(MODEL).aliases.items()}
        for alias, role in ALIASES.items():
            holders = [policy for policy in policies if policy.role == role.value and policy.policy_id in versions]
            holder = max(holders, key=lambda policy: (policy.share, policy.policy_id), default=None)
            if holder is None:
                if alias in now:
                    self._client.delete_registered_model_alias(MODEL, alias)
            elif now.get(alias) != versions[holder.policy_id]:
                self._client.set_registered_model_alias(MODEL, alias, versions[holder.policy_id])


def follow(reader: LedgerReader, mirror: MlflowMirror, ended: threading.Event, say: Callable[[str], None],
           period_s: float = PERIOD_S, longest_wait_s: float = LONGEST_WAIT_S) -> None:
    """Show the ledger when it says something else than last shown, and now and then, until told to end."""
    ledger = LedgerPolicies(reader)
    shown: list[Registered] | None = None
    wait_s, since_shown_s = period_s, 0.0
    while not ended.is_set():
        try:
            policies = ledger.catch_up()
            if policies != shown or since_shown_s >= SHOW_AGAIN_S:
                missing = mirror.show(policies)
                if policies != shown:
                    say(f"shown: {len(policies) - len(missing)} policies" +
                        (f"; without a readable bundle: {', '.join(missing)}" if missing else ""))
                shown, since_shown_s = policies, 0.0
            wait_s = period_s
        except Exception as error:  # MLflow raises of every kind; whatever is away, the next look may find it again
            say(f"not shown: {type(error).__name__}: {str(error)[:300]}")
            wait_s = min(2 * wait_s, longest_wait_s)
        ended.wait(wait_s)
        since_shown_s += wait_s


def main() -> None:
    parser = argparse.ArgumentParser(description="Mirror the ledger's policies in MLflow's model registry.")
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--policies", type=Path, required=True, help="the folder of stored bundles")
    parser.add_argument("--mlflow", required=True, help="URL of the MLflow server")
    given = parser.parse_args()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())

    def say(text: str) -> None:
        print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}", flush=True)

    mirror = MlflowMirror(MlflowClient(given.mlflow, given.mlflow), PolicyFolder(given.policies))
    follow(LedgerReader(given.ledger), mirror, ended, say)


if __name__ == "__main__":
    main()
