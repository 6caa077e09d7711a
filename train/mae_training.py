"""Pre-training of the masked auto-encoder: epochs over windows, kept after each, ended early by later windows.

Everything random is keyed by the seed and the epoch, so a training that is interrupted and begun again ends with the
weights of one that was not: on one machine, with one number of threads.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from policies.bars import Bars
from policies.errors import InvalidInput
from policies.keyed_random import generator
from train.mae import TimeSeriesMAE, masked_loss
from train.mae_checkpoint import Checkpoint, Epoch, read_checkpoint, write_checkpoint
from train.mae_settings import MaeSettings, torch_seed
from train.mae_windows import WindowSet, split_windows

VALIDATION_WINDOWS = 2_048  # at most, evenly spaced: neighbours share all bars but one
WHITENING_WINDOWS = 16_384
LEAST_VARIANCE = 1e-4  # of a whitened direction, as a share of the largest: rounding is not blown up to a signal
EARLY, BUDGET, ALL = "validation no longer improves", "time budget", "all epochs"

Progress = Callable[[int, int, float], None]  # (step from 1, steps of all epochs, loss); it may raise to interrupt
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Pretrained:
    """A trained model: on the CPU, in evaluation mode, with the weights of its best epoch (from 1).

    mean: float32 (d_model,), matrix: float32 (d_model, embedding); an embedding is (encoded - mean) @ matrix, of mean 0
    and variance 1 over the windows learnt from. constant: float32 (channels,), mean scaled value of those windows.
    trained_on: plain JSON, the same for equal runs.
    """

    model: TimeSeriesMAE
    settings: MaeSettings
    mean: Floats
    matrix: Floats
    constant: Floats
    epochs: tuple[Epoch, ...]
    best_epoch: int
    stopped: str
    trained_on: Mapping[str, Any]


def pretrain(bars: Mapping[str, Bars], until_ms: int, settings: MaeSettings, folder: Path,
             progress: Progress = lambda step, steps, loss: None, *, budget_s: float | None = None,
             clock: Callable[[], float] = time.monotonic, device: str = "cpu") -> Pretrained:
    """Learn from the windows of all symbols whose every bar closes before until_ms, the start of what is judged later.

    The rest of the arguments is that of `fit_mae`.
    """
    split = split_windows(bars, settings.seq_len, until_ms, settings.validation_share)
    fitted = fit_mae(split.fit, split.validation, settings, folder, progress, budget_s=budget_s, clock=clock,
                     device=device)
    span = {"symbols": sorted(bars), "from_ms": split.from_ms, "validation_from_ms": split.parted_ms,
            "until_ms": until_ms}
    return replace(fitted, trained_on={**span, **fitted.trained_on})


def fit_mae(fit: WindowSet, validation: WindowSet, settings: MaeSettings, folder: Path,
            progress: Progress = lambda step, steps, loss: None, *, budget_s: float | None = None,
            clock: Callable[[], float] = time.monotonic, device: str = "cpu") -> Pretrained:
    """Train until validation has not improved for `patience` epochs, and keep the best epoch.

    folder: each epoch's state is kept here, under a name that depends on the settings and on every window, so that the
    same call goes on where an interrupted one was and returns at once where one has finished. budget_s: this call ends
    after the epoch that the next one would not fit behind; such a run is not repeatable.
    """
    width = settings.seq_len * settings.channels
    for name, windows in (("fit", fit), ("validation", validation)):
        if not len(windows) or windows.views[0].shape[1] != width:
            raise InvalidInput(f"windows.{name}", f"one or more of {width} numbers",
                               (len(windows), windows.views[0].shape[1]))
    with _threads(settings.threads):
        name = _fingerprint(fit, validation, settings)
        training = _Training(fit, validation, settings, folder / f"mae_{name[:16]}.safetensors", device)
        reached = training.run(progress, budget_s, clock)
        model = settings.model().eval()
        model.load_state_dict(dict(reached.best))
        sample = fit.spread(WHITENING_WINDOWS)
        mean, matrix = _whitening(encoded(model, sample), settings.embedding)
        constant = _scaled(model, sample).mean(axis=(0, 1), dtype=np.float64).astype(np.float32)
    best = reached.epochs[reached.best_epoch - 1]
    trained_on = {"windows": len(fit), "validation_windows": len(validation), "settings": asdict(settings),
                  "epochs": len(reached.epochs), "best_epoch": reached.best_epoch, "stopped": reached.stopped,
                  "fit_loss": best.fit_loss, "validation_loss": best.validation_loss}
    return Pretrained(model, settings, mean, matrix, constant, reached.epochs, reached.best_epoch, reached.stopped,
                      trained_on)


def encoded(model: TimeSeriesMAE, windows: Floats, batch: int = 1_024) -> Floats:
    """(N, d_model) pooled tokens of windows (N, seq_len * channels)."""
    with torch.inference_mode():
        return np.concatenate([model.encode(_shaped(model, windows[start:start + batch])).numpy()
                               for start in range(0, len(windows), batch)])


class _Training:
    """One training: the model, its optimiser, and the file in which it is kept."""

    def __init__(self, fit: WindowSet, validation: WindowSet, settings: MaeSettings, path: Path, device: str) -> None:
        self._fit, self._settings, self._path, self._device = fit, settings, path, device
        self._model = settings.model().to(device)
        self._optimiser = torch.optim.AdamW(_decayed(self._model, settings.weight_decay), lr=settings.learning_rate,
                                            betas=(0.9, 0.95))
        self._judged = _shaped(self._model, validation.spread(VALIDATION_WINDOWS))
        drawn = torch.Generator().manual_seed(torch_seed(settings.seed, "validation masks"))
        self._hidden = self._model.draw_hidden(len(self._judged), drawn)
        self._steps_per_epoch = math.ceil(min(len(fit), settings.windows_per_epoch) / settings.batch)

    def run(self, progress: Progress, budget_s: float | None, clock: Callable[[], float]) -> Checkpoint:
        reached = read_checkpoint(self._path) or Checkpoint((), {}, {}, {})
        if reached.epochs:
            self._go_back_to(reached)
        began = clock()
        here = 0
        while not reached.stopped or (reached.stopped == BUDGET and not here):
            reached = self._after_epoch(reached, progress)
            here += 1
            spent = clock() - began
            if not reached.stopped and budget_s is not None and not spent * (here + 1) / here <= budget_s:
                reached = replace(reached, stopped=BUDGET)
            write_checkpoint(self._path, reached)
        return reached

    def _after_epoch(self, reached: Checkpoint, progress: Progress) -> Checkpoint:
        fit_loss = self._epoch(len(reached.epochs), progress)
        validation_loss = self._validation_loss()
        if not math.isfinite(fit_loss + validation_loss):
            raise InvalidInput("learning_rate", "one with which the loss stays finite", self._settings.learning_rate)
        epochs = (*reached.epochs, Epoch(fit_loss, validation_loss))
        weights = {name: tensor.detach().clone() for name, tensor in self._model.state_dict().items()}
        after = Checkpoint(epochs, weights, reached.best, self._optimiser_state())
        if after.best_epoch == len(epochs):
            after = replace(after, best=weights)
        if len(epochs) - after.best_epoch >= self._settings.patience:
            return replace(after, stopped=EARLY)
        return replace(after, stopped=ALL) if len(epochs) >= self._settings.epochs else after

    def _epoch(self, number: int, progress: Progress) -> float:
        """Mean loss of the epoch's batches. number: from 0."""
        settings = self._settings
        order = generator(settings.seed, "mae", "epoch", number).permutation(len(self._fit))
        masks = torch.Generator().manual_seed(torch_seed(settings.seed, "masks", number))
        total = 0.0
        self._model.train()
        for place in range(self._steps_per_epoch):
            stop = min((place + 1) * settings.batch, settings.windows_per_epoch)
            batch = _shaped(self._model, self._fit.take(order[place * settings.batch:stop]))
            step = number * self._steps_per_epoch + place + 1
            loss = self._step(batch, step, masks)
            total += loss
            progress(step, settings.epochs * self._steps_per_epoch, loss)
        return total / self._steps_per_epoch

    def _step(self, batch: Tensor, step: int, masks: torch.Generator) -> float:
        rate = self._settings.learning_rate * self._rate_share(step)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        reconstructed, mask = self._model(batch, masks)
        loss = masked_loss(reconstructed, self._model.scaled(batch, mask), mask)
        self._optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimiser.step()
        return float(loss.detach())

    def _rate_share(self, step: int) -> float:
        """Rising over the warm-up, then half a cosine down to 0 at the last step of all epochs. step: from 1."""
        steps = self._settings.epochs * self._steps_per_epoch
        rising = max(1, round(self._settings.warm_up * steps))
        return step / rising if step <= rising else (1 + math.cos(math.pi * (step - rising) / (steps - rising))) / 2

    def _validation_loss(self) -> float:
        self._model.eval()
        total = 0.0
        with torch.inference_mode():
            for start in range(0, len(self._judged), self._settings.batch):
                part = self._judged[start:start + self._settings.batch]
                reconstructed, mask = self._model(part, hidden=self._hidden[start:start + len(part)])
                total += float(masked_loss(reconstructed, self._model.scaled(part, mask), mask)) * len(part)
        return total / len(self._judged)

    def _optimiser_state(self) -> dict[str, Tensor]:
        state = self._optimiser.state_dict()["state"]
        return {f"{place}/{name}": value.clone() for place, part in state.items() for name, value in part.items()}

    def _go_back_to(self, reached: Checkpoint) -> None:
        self._model.load_state_dict(dict(reached.weights))
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in reached.optimiser.items():
            place, name = key.split("/")
            state.setdefault(int(place), {})[name] = value
        self._optimiser.load_state_dict({**self._optimiser.state_dict(), "state": state})


def _decayed(model: TimeSeriesMAE, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms, places and tokens do not."""
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    parameters = list(model.parameters())
    return [{"params": [p for p in parameters if id(p) in matrices], "weight_decay": weight_decay},
            {"params": [p for p in parameters if id(p) not in matrices], "weight_decay": 0.0}]


def _whitening(pooled: Floats, size: int) -> tuple[Floats, Floats]:
    """(mean, matrix) of the `size` directions of largest variance, each scaled to variance 1; signs by a fixed rule."""
    if not size <= pooled.shape[1]:
        raise InvalidInput("embedding", f"<= d_model, {pooled.shape[1]}", size)
    values = pooled.astype(np.float64)
    mean = values.mean(axis=0)
    variances, directions = np.linalg.eigh(np.cov(values - mean, rowvar=False, ddof=0))
    variances, directions = variances[::-1][:size], directions[:, ::-1][:, :size]
    directions = directions * np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(size)])
    kept = np.maximum(variances, max(LEAST_VARIANCE * variances[0], 1e-12))
    return mean.astype(np.float32), (directions / np.sqrt(kept)).astype(np.float32)


def _scaled(model: TimeSeriesMAE, windows: Floats) -> Floats:
    with torch.inference_mode():
        scaled: Floats = model.scaled(_shaped(model, windows)).numpy()
    return scaled


def _shaped(model: TimeSeriesMAE, windows: Floats) -> Tensor:
    """(N, seq_len, channels) on the model's device."""
    return torch.from_numpy(windows).reshape(-1, model.seq_len, model.channels).to(model.place.device)


def _fingerprint(fit: WindowSet, validation: WindowSet, settings: MaeSettings) -> str:
    told = json.dumps(asdict(settings), sort_keys=True).encode()
    return hashlib.sha256(told + fit.digest() + validation.digest()).hexdigest()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Sums are added in an order that depends on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
