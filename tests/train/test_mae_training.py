"""Pre-training: it learns what is there, is the same each time, and goes on where it was interrupted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from feature_repo.generated import GeneratedMarket
from policies.errors import InvalidInput
from train.mae_checkpoint import read_checkpoint
from train.mae_settings import FULL, SMALL, MaeSettings
from train.mae_training import ALL, BUDGET, EARLY, Pretrained, Progress, encoded, fit_mae, pretrain
from train.mae_windows import WindowSet, split_windows

TINY = MaeSettings(seq_len=20, d_model=16, nhead=2, encoder_layers=1, decoder_layers=1, embedding=4, epochs=4,
                   windows_per_epoch=256, batch=64, learning_rate=2e-3, patience=10, threads=1)
MARKET = GeneratedMarket(seed=3, symbols=("BTC", "ETH"), bars=700)
BARS = {symbol: MARKET.bars(symbol) for symbol in MARKET.symbols}
UNTIL = int(BARS["BTC"].open_time_ms[600])


class Interrupted(Exception):
    pass


def interrupt_at(last: int) -> Progress:
    def progress(step: int, steps: int, loss: float) -> None:
        if step == last:
            raise Interrupted
    return progress


def weights(pretrained: Pretrained) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in pretrained.model.state_dict().items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    return pretrain(BARS, UNTIL, TINY, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("step", [3, 4, 9, 16])  # within the first epoch, at its end, within the third, at the very end
def test_interrupted_and_begun_again_it_ends_with_the_same_weights(whole: Pretrained, tmp_path: Path,
                                                                  step: int) -> None:
    with pytest.raises(Interrupted):
        pretrain(BARS, UNTIL, TINY, tmp_path, interrupt_at(step))
    again = pretrain(BARS, UNTIL, TINY, tmp_path)
    assert weights(again) == weights(whole)
    assert again.epochs == whole.epochs
    assert again.trained_on == whole.trained_on
    assert again.matrix.tobytes() == whole.matrix.tobytes()


def test_it_goes_on_after_the_last_epoch_that_was_kept(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        pretrain(BARS, UNTIL, TINY, tmp_path, interrupt_at(10))
    heard: list[tuple[int, int, float]] = []
    pretrain(BARS, UNTIL, TINY, tmp_path, lambda *told: heard.append(told))
    assert [step for step, _, _ in heard] == list(range(9, 17))
    assert {steps for _, steps, _ in heard} == {16}
    assert all(np.isfinite(loss) for _, _, loss in heard)


def test_a_finished_training_begun_again_trains_nothing(whole: Pretrained, tmp_path: Path) -> None:
    pretrain(BARS, UNTIL, TINY, tmp_path)
    assert weights(pretrain(BARS, UNTIL, TINY, tmp_path, interrupt_at(1))) == weights(whole)


def test_another_training_in_the_same_folder_is_another_one(tmp_path: Path) -> None:
    pretrain(BARS, UNTIL, TINY, tmp_path)
    for bars, until, settings in ((BARS, UNTIL, dataclasses.replace(TINY, seed=8)), (BARS, UNTIL - 60_000, TINY),
                                  ({"BTC": BARS["BTC"]}, UNTIL, TINY)):
        with pytest.raises(Interrupted):
            pretrain(bars, until, settings, tmp_path, interrupt_at(1))


def test_another_seed_gives_other_weights(whole: Pretrained, tmp_path: Path) -> None:
    assert weights(pretrain(BARS, UNTIL, dataclasses.replace(TINY, seed=8), tmp_path)) != weights(whole)


def test_a_damaged_checkpoint_is_named_and_not_overwritten(tmp_path: Path) -> None:
    pretrain(BARS, UNTIL, TINY, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InvalidInput, match="delete it to begin anew"):
        pretrain(BARS, UNTIL, TINY, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_later_bars_are_neither_learnt_from_nor_needed(whole: Pretrained, tmp_path: Path) -> None:
    known = {symbol: bars.between(0, UNTIL - 60_000) for symbol, bars in BARS.items()}
    other = pretrain(known, UNTIL, TINY, tmp_path)
    assert weights(other) == weights(whole)
    assert whole.trained_on["until_ms"] == UNTIL


def test_it_learns(tmp_path: Path) -> None:
    settings = dataclasses.replace(TINY, epochs=8, windows_per_epoch=512)
    epochs = pretrain(BARS, UNTIL, settings, tmp_path).epochs
    assert min(epoch.validation_loss for epoch in epochs[2:]) < epochs[0].validation_loss
    assert epochs[-1].fit_loss < epochs[0].fit_loss


def test_it_ends_early_and_keeps_the_best_epoch(tmp_path: Path) -> None:
    """Noise with nothing to learn but the windows themselves: validation gets worse while they are learnt by heart."""
    rng = np.random.default_rng(0)
    noise = [WindowSet.of(rng.normal(size=(rows, 20, 5)).astype(np.float32)) for rows in (64, 256)]
    settings = dataclasses.replace(TINY, epochs=200, patience=3, scaling="each", learning_rate=0.01, d_model=32)
    fitted = fit_mae(*noise, settings, tmp_path)
    losses = [epoch.validation_loss for epoch in fitted.epochs]
    assert fitted.stopped == EARLY
    assert len(losses) == fitted.best_epoch + 3 < 200
    assert losses[fitted.best_epoch - 1] == min(losses) == fitted.trained_on["validation_loss"]
    with pytest.raises(Interrupted):  # just after the best epoch
        fit_mae(*noise, settings, tmp_path / "other", interrupt_at(fitted.best_epoch + 1))
    (path,) = (tmp_path / "other").iterdir()
    kept = read_checkpoint(path)
    assert kept is not None
    assert {name: tensor.numpy().tobytes() for name, tensor in kept.weights.items()} == weights(fitted)


def test_a_time_budget_ends_it_and_a_later_call_goes_on(whole: Pretrained, tmp_path: Path) -> None:
    seconds = iter(range(0, 1000, 10))
    first = pretrain(BARS, UNTIL, TINY, tmp_path, budget_s=25, clock=lambda: float(next(seconds)))
    assert (len(first.epochs), first.stopped) == (2, BUDGET)
    second = pretrain(BARS, UNTIL, TINY, tmp_path)
    assert second.stopped == whole.stopped == ALL
    assert weights(second) == weights(whole)


def test_embeddings_of_what_was_learnt_are_white(whole: Pretrained) -> None:
    split = split_windows(BARS, 20, UNTIL, TINY.validation_share)
    pooled = encoded(whole.model, split.fit.spread(100_000))
    embeddings = (pooled.astype(np.float64) - whole.mean) @ whole.matrix
    assert np.abs(embeddings.mean(axis=0)).max() < 1e-3
    assert np.cov(embeddings, rowvar=False) == pytest.approx(np.eye(4), abs=1e-2)


def test_torchs_own_randomness_and_threads_are_left_as_they_were(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected, threads = torch.rand(3), torch.get_num_threads()
    torch.manual_seed(5)
    pretrain(BARS, UNTIL, dataclasses.replace(TINY, epochs=1), tmp_path)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_what_it_was_trained_on_is_plain_json(whole: Pretrained) -> None:
    told = json.loads(json.dumps(whole.trained_on))
    assert told["symbols"] == ["BTC", "ETH"]
    assert told["settings"]["d_model"] == 16


def test_the_profiles_are_those_that_were_agreed() -> None:
    assert (FULL.d_model, FULL.nhead, FULL.encoder_layers, FULL.decoder_layers, FULL.mask_ratio) == (512, 8, 6, 3, 0.25)
    assert (SMALL.d_model, SMALL.nhead, SMALL.encoder_layers, SMALL.decoder_layers) == (32, 4, 2, 1)


def test_windows_of_another_length_are_refused(tmp_path: Path) -> None:
    rows = WindowSet.of(np.zeros((4, 99), np.float32))
    with pytest.raises(InvalidInput, match=r"windows\.fit"):
        fit_mae(rows, rows, TINY, tmp_path)
