"""From a market to two packed bundles: the whole way of training, once, small."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from feature_repo.features import DECISION_V1, MINUTE_MS
from feature_repo.generated import START_MS, GeneratedMarket
from feature_repo.store import FeatureRepo
from policies.bars import Bars
from policies.bundle import Bundle, read_bundle
from train.first_heads import CatBoostSettings, FirstHeadsSettings, main, packed_path, train_first_heads
from train.forward import trained_until_ms

UNTIL_MS = START_MS + 4_000 * MINUTE_MS
SETTINGS = FirstHeadsSettings(lookback_bars=4_000, training_rows=3_000,
                              catboost=CatBoostSettings(iterations=30, learning_rate=0.2))


class WatchedMarket(GeneratedMarket):
    """Notes the latest close that was ever asked for."""

    latest_ms = 0

    def bars(self, symbol: str, start_ms: int | None = None, stop_ms: int | None = None) -> Bars:
        found = super().bars(symbol, start_ms, stop_ms)
        self.latest_ms = max(self.latest_ms, int(found.close_time_ms[-1]))
        return found


@dataclass(frozen=True)
class Training:
    home: Path
    bundles: list[Bundle]
    lines: list[str]
    latest_ms: int


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Training:
    home, lines = tmp_path_factory.mktemp("home"), list[str]()
    market = WatchedMarket(1, symbols=("BTC", "ETH"), bars=6_000)
    repo = FeatureRepo(home, "redis://127.0.0.1:1/0")  # nothing listens there: training needs no online store
    bundles = train_first_heads(market, repo, home, 1_000, until_ms=UNTIL_MS, settings=SETTINGS, progress=lines.append)
    return Training(home, bundles, lines, market.latest_ms)


def test_baseline_and_trained_head_come_out_packed(training: Training) -> None:
    assert [bundle.manifest.kind for bundle in training.bundles] == ["momentum_rule", "onnx_classifier"]
    for bundle in training.bundles:
        assert read_bundle(packed_path(training.home, bundle)) == bundle
        bundle.manifest.require_feature_order(DECISION_V1.names)


def test_no_bar_after_the_given_time_is_seen(training: Training) -> None:
    assert training.latest_ms <= UNTIL_MS
    assert training.bundles[1].manifest.trained_on["validation"]["until_ms"] < UNTIL_MS


def test_a_forward_test_begins_after_every_bar_that_labels_and_the_backtest_saw(training: Training) -> None:
    assert [trained_until_ms(bundle) for bundle in training.bundles] == [UNTIL_MS, UNTIL_MS]
    assert training.bundles[1].manifest.trained_on["bars"] == {"from_ms": START_MS, "until_ms": UNTIL_MS}


def test_each_head_is_logged_with_its_backtest_and_its_bundle(training: Training) -> None:
    client = MlflowClient(f"sqlite:///{training.home / 'mlflow' / 'mlflow.sqlite'}")
    experiment = client.get_experiment_by_name("first_heads")
    assert experiment is not None
    runs = {run.data.tags["policy_id"]: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {bundle.policy_id for bundle in training.bundles}
    for run in runs.values():
        assert run.info.status == "FINISHED"
        assert {"backtest_trades", "backtest_max_drawdown_percent"} <= set(run.data.metrics)
        names = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
        assert names == {f"{run.info.run_name}.pt", "equity.png"}


def test_progress_is_told_in_words(training: Training) -> None:
    assert any(line.startswith("catboost:") for line in training.lines)
    assert any("momentum_v1" in line and "profit factor" in line for line in training.lines)


def test_the_command_prints_where_the_bundles_are(tmp_path: Path) -> None:
    answer = CliRunner().invoke(main, [
        "--home", str(tmp_path), "--market", "generated", "--symbols", "BTC", "--generated-bars", "3000",
        "--training-rows", "1500", "--lookback-bars", "3000"])
    assert answer.exit_code == 0, answer.output
    paths = [Path(line.removeprefix("bundle ")) for line in answer.output.splitlines() if line.startswith("bundle ")]
    assert [read_bundle(path).manifest.alias for path in paths] == ["momentum_v1", "catboost_v1"]


def test_too_little_history_is_an_error_in_words(tmp_path: Path) -> None:
    answer = CliRunner().invoke(main, ["--home", str(tmp_path), "--market", "generated", "--until-ms",
                                       str(START_MS + 100 * MINUTE_MS)])
    assert answer.exit_code == 1
    assert "COINS" in answer.output
    assert "BTC with 100" in answer.output
