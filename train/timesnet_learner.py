"""TimesNet as a learner: fits `train.timesnet` on rows with a raw window, and stops when later rows stop gaining.

Classes are not weighted: the scores are logits of the frequencies as they are, which calibration and levels expect.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor
from torch.nn import functional

from policies.errors import InvalidInput
from train.learners import Heard, Labelled, Layout, Setting, Space
from train.timesnet import CLASS_COUNT, TimesNet
from train.torch_export import closed_graph

SPECTRUM_ROWS = 2_048  # evenly spaced training rows from which the periods are chosen
ANSWERED_AT_ONCE = 1_024
GREATEST_GRADIENT = 1.0


@dataclass(frozen=True)
class Profile:
    """What a sweep does not vary.

    free_epochs: the periods are chosen before each of these first epochs, then kept. patience: epochs without gain
    on validation after which the fit ends.
    """

    blocks: Annotated[int, Ge(1)]
    kernels: Annotated[int, Ge(1)]
    batch: Annotated[int, Ge(1)]
    epochs: Annotated[int, Ge(1)]
    patience: Annotated[int, Ge(1)]
    free_epochs: Annotated[int, Ge(1)] = 2


@dataclass(frozen=True)
class TimesNetSettings:
    """What a sweep varies. width: channels of the sequence, and within the inceptions. top_k: periods."""

    learning_rate: Annotated[float, Gt(0)]
    weight_decay: Annotated[float, Ge(0)]
    dropout: Annotated[float, Ge(0), Lt(1)]
    width: Annotated[int, Ge(2)]
    top_k: Annotated[int, Ge(1)]


PROFILES: Mapping[str, Profile] = {
    "small": Profile(blocks=1, kernels=3, batch=256, epochs=20, patience=4),
    "full": Profile(blocks=2, kernels=6, batch=256, epochs=50, patience=8),
}
DEFAULTS: Mapping[str, TimesNetSettings] = {
    "small": TimesNetSettings(learning_rate=1e-3, weight_decay=0.5, dropout=0.4, width=16, top_k=3),
    "full": TimesNetSettings(learning_rate=5e-4, weight_decay=0.5, dropout=0.4, width=64, top_k=5),
}


class TimesNetLearner:
    """size: "small" for two cores and a minute, "full" for the sizes of published libraries. threads: of torch while
    it fits; the same threads give the same model.
    """

    name = "timesnet"
    uses_window = True

    def __init__(self, size: str = "small", threads: int = 1) -> None:
        if size not in PROFILES:
            raise InvalidInput("size", f"one of {', '.join(PROFILES)}", size)
        if not threads >= 1:
            raise InvalidInput("threads", ">= 1", threads)
        self.size, self.threads = size, threads

    @property
    def version(self) -> str:
        return f"timesnet-{self.size}-1"

    def space(self) -> Mapping[str, Space]:
        small = self.size == "small"
        return {"learning_rate": Space(2e-4, 1e-2, log=True), "weight_decay": Space(1e-2, 2.0, log=True),
                "dropout": Space(0.0, 0.6), "width": Space(choices=(8, 16, 32) if small else (32, 64)),
                "top_k": Space(1, 3 if small else 6, whole=True)}

    def defaults(self) -> Mapping[str, Setting]:
        return dict(vars(DEFAULTS[self.size]))

    def fit(self, fit: Labelled, validation: Labelled, layout: Layout, settings: Mapping[str, Setting], seed: int,
            heard: Heard) -> FittedTimesNet:
        """Minimise the log loss by AdamW; keep the epoch of least validation loss, 0 (the frequencies of the classes)
        if none gains on that. Raises InvalidInput for rows or settings that do not fit each other.
        """
        _require_rows(fit, layout, "fit")
        _require_rows(validation, layout, "validation")
        chosen, profile = _settings(settings, self.space()), PROFILES[self.size]
        with _seeded(seed, self.threads):
            rows = torch.from_numpy(np.array(fit.values, dtype=np.float32))
            module = TimesNet(layout.window_bars, layout.tabular.stop, chosen.width, chosen.width,
                              profile.blocks, chosen.top_k, profile.kernels, chosen.dropout)
            module.learn_scales(rows)
            module.answer_frequencies(torch.from_numpy(fit.classes))
            best, steps = _trained(module, (rows, torch.from_numpy(fit.classes)), validation, chosen, profile, heard)
        return FittedTimesNet(best.merged().eval(), steps, layout.width)


@dataclass(frozen=True)
class FittedTimesNet:
    """A fitted TimesNet. steps: epochs that the kept model had, 0 if none gained on the frequencies of the classes."""

    module: TimesNet
    steps: int
    width: int

    @property
    def importances(self) -> Mapping[str, float]:
        return {}

    def scores(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N, 3) logits for (N, width)."""
        return _answers(self.module, torch.from_numpy(np.array(values, dtype=np.float32))).double().numpy()

    def graph(self) -> ModelProto:
        return closed_graph(self.module, self.width)


def _trained(module: TimesNet, fit: tuple[Tensor, Tensor], validation: Labelled, settings: TimesNetSettings,
             profile: Profile, heard: Heard) -> tuple[TimesNet, int]:
    later = torch.from_numpy(np.array(validation.values, dtype=np.float32))
    later_classes = torch.from_numpy(validation.classes)
    sample = fit[0][torch.linspace(0, len(fit[0]) - 1, min(SPECTRUM_ROWS, len(fit[0]))).long()]
    optimiser = torch.optim.AdamW(module.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    module.choose_periods(sample)
    best, best_epoch = copy.deepcopy(module), 0
    least = _log_loss(module, later, later_classes)
    for epoch in range(1, profile.epochs + 1):
        if 1 < epoch <= profile.free_epochs:
            module.choose_periods(sample)
        _one_epoch(module.train(), *fit, optimiser, profile.batch)
        loss = _log_loss(module, later, later_classes)
        heard(epoch, loss)
        if loss < least:
            best, best_epoch, least = copy.deepcopy(module), epoch, loss
        elif epoch - best_epoch >= profile.patience:
            break
    return best, best_epoch


def _one_epoch(module: TimesNet, rows: Tensor, classes: Tensor, optimiser: torch.optim.Optimizer, batch: int) -> None:
    for places in torch.randperm(len(rows)).split(batch):
        optimiser.zero_grad()
        functional.cross_entropy(module(rows[places]), classes[places]).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), GREATEST_GRADIENT)
        optimiser.step()


@torch.no_grad()
def _answers(module: TimesNet, rows: Tensor) -> Tensor:
    module.eval()
    return torch.cat([module(part) for part in rows.split(ANSWERED_AT_ONCE)])


def _log_loss(module: TimesNet, rows: Tensor, classes: Tensor) -> float:
    return float(functional.cross_entropy(_answers(module, rows), classes))


@contextmanager
def _seeded(seed: int, threads: int) -> Iterator[None]:
    """torch on this seed and so many threads; both are as before afterwards."""
    before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _settings(given: Mapping[str, Setting], space: Mapping[str, Space]) -> TimesNetSettings:
    """The settings, each of the space exactly once and within it."""
    if set(given) != set(space):
        raise InvalidInput("settings", f"exactly {', '.join(sorted(space))}", sorted(given))
    for name, value in given.items():
        dimension = space[name]
        if dimension.choices:
            legal = value in dimension.choices
        else:
            legal = isinstance(value, int | float) and dimension.low <= value <= dimension.high \
                and (not dimension.whole or value == int(value))
        if not legal:
            raise InvalidInput(f"settings.{name}", _range(dimension), value)
    return TimesNetSettings(float(given["learning_rate"]), float(given["weight_decay"]), float(given["dropout"]),
                            int(given["width"]), int(given["top_k"]))


def _range(dimension: Space) -> str:
    if dimension.choices:
        return f"one of {', '.join(map(str, dimension.choices))}"
    return f"{'whole, ' if dimension.whole else ''}{dimension.low:g}..{dimension.high:g}"


def _require_rows(rows: Labelled, layout: Layout, name: str) -> None:
    if layout.window_bars < 1:
        raise InvalidInput("layout.window_bars", ">= 1: TimesNet reads a raw window", layout.window_bars)
    if rows.values.ndim != 2 or rows.values.shape[1] != layout.width:
        raise InvalidInput(f"{name}.values", f"float32 (N, {layout.width})", rows.values.shape)
    optional = [place for place, feature in enumerate(layout.features) if feature in set(layout.optional)]
    finite = np.isfinite(rows.values)
    finite[:, optional] |= np.isnan(rows.values[:, optional])
    if not finite.all():
        raise InvalidInput(f"{name}.values", "finite; NaN in optional features only", int((~finite).sum()))
    if not np.isin(rows.classes, range(CLASS_COUNT)).all():
        raise InvalidInput(f"{name}.classes", "0, 1 or 2", np.unique(rows.classes).tolist())
