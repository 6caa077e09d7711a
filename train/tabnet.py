"""TabNet (Arik & Pfister 2019) on the feature vector: it predicts what a long and a short would earn.

Trained by pytorch-tabnet; served as an ONNX graph of the same network, without the library and without torch.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Gt
from numpy.typing import NDArray
from onnx import ModelProto
from torch import nn

from policies.errors import InvalidInput
from train.learners import Heard, Labelled, Layout, Setting, Space
from train.tabular import Scaling, require_every_class, shares, table_names, table_of
from train.torch_export import Scaled, closed_graph

with warnings.catch_warnings():  # of where SciPy keeps things now: it would stand at the head of every command
    warnings.simplefilter("ignore", DeprecationWarning)
    from pytorch_tabnet.callbacks import Callback
    from pytorch_tabnet.sparsemax import Sparsemax
    from pytorch_tabnet.tab_model import TabNetRegressor
    from pytorch_tabnet.tab_network import GBN

VALIDATION = "validation"
LEAST_STEPS = 8  # of Adam in an epoch; batches are smaller where rows are few


@dataclass(frozen=True)
class TabNetProfile:
    """What a size fixes. batch_rows: for one step of Adam. ghost_rows: over which a batch norm takes its mean. The
    learning rate is multiplied by step_factor every step_epochs.
    """

    width: Annotated[int, Ge(1)]
    steps: Annotated[int, Ge(1)]
    gamma: Annotated[float, Ge(1)]
    max_epochs: Annotated[int, Ge(1)]
    patience: Annotated[int, Ge(1)]
    batch_rows: Annotated[int, Ge(2)] = 1024
    ghost_rows: Annotated[int, Ge(2)] = 128
    lambda_sparse: Annotated[float, Ge(0)] = 1e-4
    learning_rate: Annotated[float, Gt(0)] = 2e-2
    step_epochs: Annotated[int, Ge(1)] = 50
    step_factor: Annotated[float, Gt(0)] = 0.9


PROFILES = {"full": TabNetProfile(width=64, steps=5, gamma=1.5, max_epochs=1000, patience=50),
            "small": TabNetProfile(width=8, steps=3, gamma=1.5, max_epochs=60, patience=12)}


@dataclass(frozen=True)
class Targets:
    """Net returns (N, 2) of a long and of a short, as numbers about 1: (returns - mean) / scale.

    mean: (2,). scale: one for both, > 0, so that the two stay comparable. The network's last layer has no bias.
    """

    mean: NDArray[np.float64]
    scale: float

    @classmethod
    def of(cls, returns: NDArray[np.float64]) -> Targets:
        mean = returns.mean(axis=0)
        return cls(mean, float((returns - mean).std()) or 1.0)

    def scaled(self, returns: NDArray[np.float64]) -> NDArray[np.float32]:
        return ((returns - self.mean) / self.scale).astype(np.float32)

    @property
    def offset(self) -> NDArray[np.float32]:
        return (self.mean / self.scale).astype(np.float32)


@dataclass(frozen=True)
class FittedTabNet:
    """scores = (predicted net return of a short, 0 for no trade, of a long) / scale of the returns in training.
    """

    layout: Layout
    scaling: Scaling
    targets: Targets
    model: TabNetRegressor
    steps: int

    @property
    def importances(self) -> Mapping[str, float]:
        """By the attention masks over the rows of the fit, as pytorch-tabnet adds them up."""
        weights = np.nan_to_num(np.asarray(self.model.feature_importances_, dtype=np.float64))
        return shares(table_names(self.layout), weights)

    def scores(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        answer = self.model.predict(self.scaling.applied(table_of(values, self.layout))) + self.targets.offset
        return np.column_stack([answer[:, 1], np.zeros(len(answer)), answer[:, 0]]).astype(np.float64)

    def graph(self) -> ModelProto:
        return closed_graph(_Served(self), self.layout.width)


class TabNetLearner:
    """size: "full" is the published profile, for a GPU or a night; "small" learns in seconds on two cores.

    The loss is the squared error of scaled returns, so RMSE in units of their deviation is what stops it early.
    max_epochs: instead of the profile's. device: where torch trains.
    """

    uses_window = False

    def __init__(self, size: str = "small", max_epochs: int | None = None, device: str = "cpu") -> None:
        if size not in PROFILES:
            raise InvalidInput("size", f"one of {', '.join(PROFILES)}", size)
        self.profile = replace(PROFILES[size], max_epochs=max_epochs or PROFILES[size].max_epochs)
        self.name, self.version = "tabnet", f"tabnet-{size}-1"
        self._device = device

    def space(self) -> Mapping[str, Space]:
        return {"width": Space(choices=(8, 16, 32, 64)), "steps": Space(2, 6, whole=True),
                "gamma": Space(1.0, 2.0), "lambda_sparse": Space(1e-6, 1e-2, log=True),
                "learning_rate": Space(2e-3, 5e-2, log=True)}

    def defaults(self) -> Mapping[str, Setting]:
        """width is n_d = n_a, steps is n_steps."""
        return {name: getattr(self.profile, name) for name in self.space()}

    def fit(self, fit: Labelled, validation: Labelled, layout: Layout, settings: Mapping[str, Setting], seed: int,
            heard: Heard) -> FittedTabNet:
        """`heard` is told the validation RMSE after each epoch. torch's random state is left as it was found."""
        require_every_class("fit", fit)
        table = table_of(fit.values, layout)
        scaling, targets = Scaling.of(table), Targets.of(fit.returns)
        checked = scaling.applied(table_of(validation.values, layout)), targets.scaled(validation.returns)
        keeper = _KeepBest(self.profile.patience, heard)
        batch_rows = min(self.profile.batch_rows, max(self.profile.ghost_rows, len(fit) // LEAST_STEPS), len(fit))
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it does not stop early: the keeper does
            model = self._model(settings, seed)
            model.fit(scaling.applied(table), targets.scaled(fit.returns), eval_set=[checked],
                      eval_name=[VALIDATION], eval_metric=["rmse"], max_epochs=self.profile.max_epochs, patience=0,
                      batch_size=batch_rows, virtual_batch_size=min(self.profile.ghost_rows, batch_rows),
                      callbacks=[keeper])
        return FittedTabNet(layout, scaling, targets, model, keeper.best_epoch)

    def _model(self, settings: Mapping[str, Setting], seed: int) -> TabNetRegressor:
        width = int(settings["width"])
        return TabNetRegressor(
            n_d=width, n_a=width, n_steps=int(settings["steps"]), gamma=float(settings["gamma"]),
            lambda_sparse=float(settings["lambda_sparse"]), seed=seed, verbose=0, device_name=self._device,
            optimizer_params={"lr": float(settings["learning_rate"])}, scheduler_fn=torch.optim.lr_scheduler.StepLR,
            scheduler_params={"step_size": self.profile.step_epochs, "gamma": self.profile.step_factor})


class _KeepBest(Callback):
    """Stops after `patience` epochs without a lower validation RMSE and puts the best weights back.

    In place of the library's own, which prints and warns.
    """

    def __init__(self, patience: int, heard: Heard) -> None:
        super().__init__()
        self._patience, self._heard = patience, heard
        self._best = np.inf
        self._weights: dict[str, torch.Tensor] = {}
        self.best_epoch = 0

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        loss = float((logs or {})[f"{VALIDATION}_rmse"])
        if loss < self._best:
            self._best, self.best_epoch = loss, epoch + 1
            self._weights = copy.deepcopy(self.trainer.network.state_dict())
        self._heard(epoch + 1, loss)
        if epoch + 1 - self.best_epoch >= self._patience:
            self.trainer._stop_training = True

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        if self._weights:
            self.trainer.network.load_state_dict(self._weights)


class _Served(nn.Module):
    """Rows (N, layout.width) to scores (N, 3), in operators that ONNX has."""

    offset: torch.Tensor

    def __init__(self, fitted: FittedTabNet) -> None:
        super().__init__()
        self._table = fitted.layout.tabular
        self.scaled = Scaled(fitted.scaling)
        self.network = plain_network(fitted.model.network)
        self.register_buffer("offset", torch.from_numpy(fitted.targets.offset.copy()))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        long_short = self.network(self.scaled(rows[:, self._table]))[0] + self.offset
        long, short = long_short[:, :1], long_short[:, 1:]
        return torch.cat([short, torch.zeros_like(short), long], dim=1)


class PlainSparsemax(nn.Module):
    """Sparsemax over the last axis (Martins & Astudillo 2016, algorithm 1) in plain operators, without a gradient of
    its own: the Euclidean projection of each row on the simplex.
    """

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        shifted = rows - rows.amax(dim=-1, keepdim=True)
        falling = torch.sort(shifted, dim=-1, descending=True).values
        over = torch.cumsum(falling, dim=-1) - 1.0
        rank = torch.arange(1, rows.shape[-1] + 1, dtype=rows.dtype)
        kept = (rank * falling > over).to(rows.dtype).sum(dim=-1, keepdim=True)
        threshold = torch.gather(over, -1, kept.to(torch.int64) - 1) / kept
        return torch.relu(shifted - threshold)


def plain_network(network: nn.Module) -> nn.Module:
    """A copy on the CPU, in evaluation mode, that answers the same with nothing that cannot be exported.

    Ghost batch norms become their batch norm: out of training they do the same, but they count the rows. The mask
    selector's custom function becomes PlainSparsemax.
    """
    plain = copy.deepcopy(network).to("cpu").eval()
    for parent in list(plain.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, GBN):
                setattr(parent, name, child.bn)
            elif isinstance(child, Sparsemax):
                setattr(parent, name, PlainSparsemax())
        matrix = getattr(parent, "group_attention_matrix", None)
        if isinstance(matrix, torch.Tensor):  # no buffer: it does not move with the rest
            parent.group_attention_matrix = matrix.to("cpu")
    return plain
