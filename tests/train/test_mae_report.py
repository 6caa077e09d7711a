"""The report: guesses that need no training are what they are called, and gains are found where there are some."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from policies.errors import InvalidInput
from train.mae import TimeSeriesMAE, mean_of_visible
from train.mae_report import interpolated, reconstruction_report
from train.mae_settings import MaeSettings
from train.mae_training import fit_mae
from train.mae_windows import WindowSet

SETTINGS = MaeSettings(seq_len=20, d_model=16, nhead=2, encoder_layers=1, decoder_layers=1, embedding=4, epochs=12,
                       windows_per_epoch=1_024, batch=64, learning_rate=5e-3, threads=1)


def clustered(rows: int, seed: int) -> np.ndarray:
    """(rows, 100): volume that alternates from patch to patch between high and low, returns of nothing but noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 20, 5)) * 1e-3
    phase = np.sign(rng.normal(size=(rows, 1)))
    x[:, :, 4] = 5 + 2 * phase * np.repeat([1, -1, 1, -1], 5) + 0.2 * rng.normal(size=(rows, 20))
    return x.reshape(rows, 100).astype(np.float32)


def test_simple_guesses_equal_those_computed_bar_by_bar() -> None:
    rng = np.random.default_rng(1)
    scaled, mask = rng.normal(size=(40, 12, 3)), rng.random((40, 12)) < 0.5
    mask[:, 5] = False
    line = interpolated(torch.from_numpy(scaled), torch.from_numpy(mask)).numpy()
    mean = mean_of_visible(torch.from_numpy(scaled), torch.from_numpy(mask)).numpy()
    for row, (values, hidden) in enumerate(zip(scaled, mask, strict=True)):
        seen = np.flatnonzero(~hidden)
        for channel in range(3):
            expected = np.interp(np.arange(12), seen, values[seen, channel])
            assert line[row, :, channel] == pytest.approx(expected, abs=1e-6)
            assert mean[row, :, channel] == pytest.approx(np.full(12, values[seen, channel].mean()))


def test_a_trained_model_beats_every_guess_where_there_is_structure_and_only_there(tmp_path: Path) -> None:
    fitted = fit_mae(WindowSet.of(clustered(1_024, 1)), WindowSet.of(clustered(128, 2)), SETTINGS, tmp_path)
    rows = {str(row["channel"]): row for row in
            reconstruction_report(fitted.model, clustered(256, 3), constant=fitted.constant)}
    assert list(rows) == ["overall", "open", "high", "low", "close", "volume"]
    for guess in ("mean", "interpolation", "constant"):
        assert rows["volume"][f"low_over_{guess}"] > 0.3  # type: ignore[operator]
        assert rows["overall"][f"low_over_{guess}"] > 0.05  # type: ignore[operator]
    assert abs(float(rows["close"]["gain_over_mean"])) < 0.15
    for row in rows.values():
        assert row["low_over_mean"] <= row["gain_over_mean"] <= row["high_over_mean"]  # type: ignore[operator]
        assert row["least_over_mean"] <= row["most_over_mean"]  # type: ignore[operator]


def test_an_untrained_model_gains_nothing_over_the_mean() -> None:
    model = TimeSeriesMAE(20, 16, nhead=2, encoder_layers=1, decoder_layers=1)
    for row in reconstruction_report(model, clustered(64, 1)):
        assert row["mae"] == pytest.approx(row["mean"])
        assert row["gain_over_mean"] == pytest.approx(0, abs=1e-6)


def test_the_same_model_and_windows_give_the_same_report() -> None:
    model = TimeSeriesMAE(20, 16, nhead=2, encoder_layers=1, decoder_layers=1)
    assert reconstruction_report(model, clustered(64, 1)) == reconstruction_report(model, clustered(64, 1))


def test_too_few_windows_are_refused() -> None:
    model = TimeSeriesMAE(20, 16, nhead=2, encoder_layers=1, decoder_layers=1)
    with pytest.raises(InvalidInput, match="windows"):
        reconstruction_report(model, clustered(40, 1))
