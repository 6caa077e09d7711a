"""Settings of a pre-training, and the two sizes in which it is offered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le

from policies.keyed_random import digest
from train.mae import Scaling, TimeSeriesMAE


@dataclass(frozen=True)
class MaeSettings:
    """Architecture and training; the names of `train.mae.TimeSeriesMAE`, and what else a run depends on.

    embedding: numbers of an exported embedding. windows_per_epoch: drawn anew for each epoch. warm_up: share of the
    steps in which the rate rises to learning_rate, to fall along a cosine after. patience: epochs without improvement.
    """

    seq_len: Annotated[int, Ge(2)] = 60
    d_model: Annotated[int, Ge(2)] = 512
    mask_ratio: Annotated[float, Gt(0), Le(0.9)] = 0.25
    nhead: Annotated[int, Ge(1)] = 8
    encoder_layers: Annotated[int, Ge(1)] = 6
    decoder_layers: Annotated[int, Ge(1)] = 3
    patch_bars: Annotated[int, Ge(1)] = 5
    run_share: Annotated[float, Ge(0), Le(1)] = 0.5
    channels: Annotated[int, Ge(1)] = 5
    scaling: Scaling = "bars"
    embedding: Annotated[int, Ge(1)] = 16
    epochs: Annotated[int, Ge(1)] = 100
    windows_per_epoch: Annotated[int, Ge(1)] = 25_000
    batch: Annotated[int, Ge(1)] = 256
    learning_rate: Annotated[float, Gt(0)] = 3e-4
    weight_decay: Annotated[float, Ge(0)] = 0.05
    warm_up: Annotated[float, Ge(0), Le(1)] = 0.05
    patience: Annotated[int, Ge(1)] = 8
    validation_share: Annotated[float, Gt(0), Le(0.5)] = 0.15
    seed: int = 7
    threads: Annotated[int, Ge(1)] = 2

    def model(self) -> TimeSeriesMAE:
        """A new one with weights by the seed; torch's own randomness is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(self.seed, "weights"))
            return TimeSeriesMAE(
                self.seq_len, self.d_model, self.mask_ratio, channels=self.channels, patch_bars=self.patch_bars,
                nhead=self.nhead, encoder_layers=self.encoder_layers, decoder_layers=self.decoder_layers,
                run_share=self.run_share, scaling=self.scaling, mask_seed=self.seed)


FULL = MaeSettings()  # for a GPU: an epoch takes minutes on two cores
SMALL = MaeSettings(d_model=32, nhead=4, encoder_layers=2, decoder_layers=1, epochs=40, windows_per_epoch=8_192,
                    batch=128, learning_rate=2e-3, patience=8)
PROFILES: Mapping[str, MaeSettings] = {"small": SMALL, "full": FULL}


def torch_seed(seed: int, *parts: object) -> int:
    """A seed for torch that depends on every part."""
    return int.from_bytes(digest(seed, "mae", *parts)[:8], "big") >> 1
