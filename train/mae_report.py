"""What a masked auto-encoder is worth: its error on hidden bars against guesses that need no training.

The windows must be later than any that were learnt from. Errors are in the model's scaled units: of a price channel,
multiples of the visible bars' root mean square close return; of log volume, their deviations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from feature_repo.windows import CHANNELS
from policies.errors import InvalidInput
from policies.keyed_random import generator
from train.mae import TimeSeriesMAE, mean_of_visible
from train.mae_settings import torch_seed

MASK_SEEDS = (1, 2, 3, 4, 5)
OVERALL = "overall"  # the mean over all channels
RESAMPLES = 1_000
BATCH = 512

Row = Mapping[str, str | float]
Errors = dict[str, NDArray[np.float64]]  # by guess: (N, channels), mean squared error over a window's hidden bars


def reconstruction_report(model: TimeSeriesMAE, windows: NDArray[np.float32], *,
                          mask_seeds: Sequence[int] = MASK_SEEDS, block: int = 24,
                          constant: NDArray[np.float32] | None = None,
                          names: Sequence[str] = CHANNELS) -> list[Row]:
    """A row for all channels together, then one for each.

    windows: float32 (N, seq_len * channels) in the order of time, those of several symbols interleaved, since they move
    together and a block must hold what does; neighbours should not overlap. constant: (channels,), a guess that was
    learnt elsewhere, such as `Pretrained.constant`. Each row: channel; mae, mean (of the visible bars), interpolation
    (between the nearest visible bars of either side; at an end, the nearest), constant if given:
    mean squared errors over all windows and masks. For each of those guesses: gain_over_NAME = 1 - mae / its error,
    more than 0 if the model is better; low_over_NAME and high_over_NAME, its 95 % bounds, by drawing blocks of `block`
    neighbouring windows anew, all masks of a window together; least_over_NAME and most_over_NAME, its range over the
    mask seeds alone.
    """
    if len(windows) < 2 * block or windows.shape[1] != model.seq_len * model.channels:
        raise InvalidInput("windows", f">= {2 * block}, each of {model.seq_len * model.channels} numbers",
                           windows.shape)
    if len(names) != model.channels:
        raise InvalidInput("names", f"one for each of {model.channels} channels", len(names))
    by_seed = [_errors(model, windows, seed, constant) for seed in mask_seeds]
    rows = [_row(OVERALL, [{guess: part.mean(axis=1) for guess, part in errors.items()} for errors in by_seed], block)]
    for place, name in enumerate(names):
        rows.append(_row(name, [{guess: part[:, place] for guess, part in errors.items()} for errors in by_seed],
                         block))
    return rows


def interpolated(scaled: Tensor, mask: Tensor) -> Tensor:
    """scaled (N, L, C), mask (N, L); a hidden bar is given the straight line between its nearest visible neighbours."""
    length = mask.shape[1]
    place = torch.arange(length)[None, :].expand_as(mask)
    before = torch.where(mask, -1, place).cummax(dim=1).values
    after = torch.where(mask, length, place).flip(1).cummin(dim=1).values.flip(1)
    left, right = torch.where(before < 0, after, before), torch.where(after >= length, before, after)
    share = (place - left) / (right - left).clamp(min=1)
    values = [scaled.gather(1, side[:, :, None].expand_as(scaled)) for side in (left, right)]
    return values[0] + share[:, :, None] * (values[1] - values[0])


def _errors(model: TimeSeriesMAE, windows: NDArray[np.float32], seed: int,
            constant: NDArray[np.float32] | None) -> Errors:
    drawn = torch.Generator().manual_seed(torch_seed(seed, "report masks"))
    parts: list[Errors] = []
    with torch.inference_mode():
        for start in range(0, len(windows), BATCH):
            x = torch.from_numpy(windows[start:start + BATCH]).reshape(-1, model.seq_len, model.channels)
            reconstructed, mask = model(x, drawn)
            scaled = model.scaled(x, mask)
            guesses = {"mae": reconstructed, "mean": mean_of_visible(scaled, mask),
                       "interpolation": interpolated(scaled, mask)}
            if constant is not None:
                guesses["constant"] = torch.from_numpy(constant).expand_as(scaled)
            parts.append({name: _hidden_error(guess, scaled, mask) for name, guess in guesses.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _hidden_error(guess: Tensor, scaled: Tensor, mask: Tensor) -> NDArray[np.float64]:
    hidden = mask[:, :, None].to(torch.float64)
    error = ((guess - scaled).to(torch.float64).square() * hidden).sum(dim=1) / hidden.sum(dim=1)
    found: NDArray[np.float64] = error.numpy()
    return found


def _row(channel: str, by_seed: list[Errors], block: int) -> Row:
    """by_seed: for each mask seed, by guess, (N,) errors of the windows."""
    row: dict[str, str | float] = {"channel": channel}
    whole = {guess: np.mean([errors[guess] for errors in by_seed], axis=0) for guess in by_seed[0]}
    row |= {guess: float(errors.mean()) for guess, errors in whole.items()}
    for guess in list(whole)[1:]:  # the first is the model itself
        gains = _resampled_gains(whole["mae"], whole[guess], block)
        alone = [_gain(errors["mae"].mean(), errors[guess].mean()) for errors in by_seed]
        low, high = np.quantile(gains, [0.025, 0.975])
        row |= {f"gain_over_{guess}": float(_gain(whole["mae"].mean(), whole[guess].mean())),
                f"low_over_{guess}": float(low), f"high_over_{guess}": float(high),
                f"least_over_{guess}": float(min(alone)), f"most_over_{guess}": float(max(alone))}
    return row


def _resampled_gains(own: NDArray[np.float64], other: NDArray[np.float64], block: int) -> NDArray[np.float64]:
    """(RESAMPLES,) gains with blocks of neighbouring windows drawn with replacement."""
    starts = np.arange(0, len(own) - block + 1, block)
    sums = np.array([[part[start:start + block].sum() for start in starts] for part in (own, other)])
    drawn = generator(0, "blocks of a reconstruction report").integers(len(starts), size=(RESAMPLES, len(starts)))
    return _gain(sums[0][drawn].sum(axis=1), sums[1][drawn].sum(axis=1))


def _gain(own: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 - own / other; 0 where the other guess makes no error at all."""
    return np.where(other > 0, 1 - own / np.where(other > 0, other, 1.0), 0.0)
