"""The record of experiments: MLflow on SQLite under HUB_HOME. It holds figures and inert files; no model is loaded."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from policies.bundle import Bundle, pack_bundle

ROOMS = ("policies", "feature_repo", "train")
_WIDTH, _HEIGHT = 800, 240


def log_training(home: Path, experiment: str, bundle: Bundle, parameters: Mapping[str, object],
                 metrics: Mapping[str, float], net_returns: Sequence[float], now_ms: int) -> str:
    """Record one training; the id of its run.

    net_returns: of the backtest's trades in order, over equity; drawn as a curve. now_ms: when the run began.
    """
    folder = home / "mlflow"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.sqlite'}")
    known = client.get_experiment_by_name(experiment)
    experiment_id = known.experiment_id if known else client.create_experiment(
        experiment, artifact_location=(folder / "artifacts").as_uri())
    run_id: str = client.create_run(experiment_id, start_time=now_ms, run_name=bundle.manifest.alias,
                                    tags={"policy_id": bundle.policy_id, "kind": bundle.manifest.kind}).info.run_id
    try:
        both = {**bundle.manifest.parameters, **parameters}
        client.log_batch(run_id, [Metric(name, figure, now_ms, 0) for name, figure in metrics.items()],
                         [Param(name, str(value)) for name, value in both.items()])
        with tempfile.TemporaryDirectory() as artifacts:
            packed, curve = Path(artifacts) / f"{bundle.manifest.alias}.pt", Path(artifacts) / "equity.svg"
            packed.write_bytes(pack_bundle(bundle))
            curve.write_text(equity_svg(net_returns, f"{bundle.manifest.alias}: net return over equity, percent"))
            client.log_artifact(run_id, str(packed))
            client.log_artifact(run_id, str(curve))
    except BaseException:
        client.set_terminated(run_id, status="FAILED")
        raise
    client.set_terminated(run_id)
    return run_id


def equity_svg(net_returns: Sequence[float], title: str) -> str:
    """The running sum of returns as a line, trade by trade, in percent."""
    sums = 100.0 * np.concatenate([[0.0], np.cumsum(net_returns)])
    low, high = float(sums.min()), float(sums.max())
    x = np.linspace(50, _WIDTH - 10, len(sums))
    y = _HEIGHT - 20 - (sums - low) / max(high - low, 1e-9) * (_HEIGHT - 50)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    text = 'font-family="sans-serif" font-size="12"'
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}">'
            f'<text x="50" y="16" {text}>{title}</text>'
            f'<text x="4" y="36" {text}>{high:.2f}</text><text x="4" y="{_HEIGHT - 18}" {text}>{low:.2f}</text>'
            f'<polyline points="{points}" fill="none" stroke="#1f6feb" stroke-width="1.5"/></svg>')


def code_version() -> str:
    """SHA-256 over the sources that features, labels and training come from."""
    root = Path(__file__).resolve().parent.parent
    whole = hashlib.sha256()
    for path in sorted(path for room in ROOMS for path in (root / room).glob("*.py")):
        whole.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return whole.hexdigest()
