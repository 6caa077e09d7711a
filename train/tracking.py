"""The record of experiments: MLflow on SQLite under HUB_HOME, or a server. It holds figures and inert files; no model
is loaded.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

ROOMS = ("policies", "feature_repo", "train")
LONGEST_PARAMETER = 500  # characters that MLflow shows and all of its stores admit


class Tracker:
    """One experiment of the home's MLflow, or of the server at `url`, which then keeps the artefacts too. A run that is
    written again under the same name and job is one run.
    """

    def __init__(self, home: Path, experiment: str, url: str = "") -> None:
        artefacts = None  # where a server wants them
        if not url:
            folder = home.resolve() / "mlflow"  # artefacts are named by a URI, which knows no working folder
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            url, artefacts = f"sqlite:///{folder / 'mlflow.sqlite'}", (folder / "artifacts").as_uri()
        self._client = MlflowClient(url)
        known = self._client.get_experiment_by_name(experiment)
        self._experiment_id = known.experiment_id if known else self._client.create_experiment(
            experiment, artifact_location=artefacts)

    def known(self, name: str, job: str) -> str | None:
        """The finished run of this name and job, if there is one."""
        wanted = f"tags.job = '{job}' and attributes.status = 'FINISHED'"
        found = self._client.search_runs([self._experiment_id], wanted)
        return next((run.info.run_id for run in found if run.info.run_name == name), None)

    def log(self, name: str, now_ms: int, parameters: Mapping[str, object], metrics: Mapping[str, float],
            files: Mapping[str, bytes], tags: Mapping[str, str] | None = None, parent: str | None = None) -> str:
        """Record one run; its id. now_ms: when it began. files: artefacts by name. parent: whose part it is."""
        every_tag = dict(tags or {}) | ({MLFLOW_PARENT_RUN_ID: parent} if parent else {})
        run_id: str = self._client.create_run(self._experiment_id, start_time=now_ms, run_name=name,
                                              tags=every_tag).info.run_id
        try:
            self._client.log_batch(run_id, [Metric(key, figure, now_ms, 0) for key, figure in metrics.items()],
                                   [Param(key, str(value)[:LONGEST_PARAMETER]) for key, value in parameters.items()])
            with tempfile.TemporaryDirectory() as artefacts:
                for file, content in files.items():
                    (Path(artefacts) / file).write_bytes(content)
                self._client.log_artifacts(run_id, artefacts)
        except BaseException:
            self._client.set_terminated(run_id, status="FAILED")
            raise
        self._client.set_terminated(run_id)
        return run_id


def code_version() -> str:
    """SHA-256 over the sources that features, labels and training come from."""
    root = Path(__file__).resolve().parent.parent
    whole = hashlib.sha256()
    for path in sorted(path for room in ROOMS for path in (root / room).rglob("*.py")):
        whole.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return whole.hexdigest()
