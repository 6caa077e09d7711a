"""Heads of trained models, each in a format that holds numbers only."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import safetensors
from numpy.typing import NDArray

from policies.bundle import Bundle
from policies.errors import BundleRefused, one_line
from policies.head import CLASSES, ModelHead
from policies.manifest import CBM_FILE, ONNX_FILE, TENSORS_FILE
from policies.onnx_graph import PROBABILITIES
from policies.onnx_session import OnnxFunction

MAX_TENSORS_HEADER = 2**16  # bytes of JSON before the numbers
FURTHEST = 10.0  # standard deviations at which a linear head's inputs are cut


class OnnxClassifierHead(ModelHead):
    """A classifier of (short, flat, long) in ONNX: float32 (N or 1, width) -> `probabilities` float32 (N, 3)."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        self._graph = OnnxFunction(bundle.files[ONNX_FILE], self.width, PROBABILITIES, ONNX_FILE)

    def _model(self, row: NDArray[np.float32]) -> NDArray[np.floating]:
        answer = self._graph(row.reshape(1, -1))
        return answer[0] if answer.ndim == 2 and len(answer) == 1 else answer


class CatboostClassifierHead(ModelHead):
    """Trees of three classes, in the order of CLASSES, in CatBoost's own format, of numeric features only."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        # Imported where it is needed: it takes longer than everything else that serves, and brings pandas.
        import catboost

        _require_whole_trees(bundle.files[CBM_FILE])
        self._trees = catboost.CatBoost()
        try:
            self._trees.load_model(blob=bundle.files[CBM_FILE])
            seen, others = len(self._trees.feature_names_), self._categories()
        except Exception as error:  # CatBoostError, or whatever damaged content leads to
            raise BundleRefused(f"{CBM_FILE} cannot be opened: {one_line(error)}") from error
        if seen != self.width or others:
            raise BundleRefused(f"{CBM_FILE} takes {seen} features, {others} of them not numeric; the manifest "
                                f"promises {self.width} numbers")
        try:
            answer, leaves = self._model(np.zeros(self.width, np.float32)), self._trees.get_leaf_values()
        except Exception as error:
            raise BundleRefused(f"{CBM_FILE} cannot answer: {one_line(error)}") from error
        if answer.shape != (len(CLASSES),):
            raise BundleRefused(f"{CBM_FILE} answers {answer.shape} to one row; three classes are served")
        if not np.all(np.isfinite(leaves)):
            raise BundleRefused(f"{CBM_FILE} holds leaves that are not finite")

    def _model(self, row: NDArray[np.float32]) -> NDArray[np.floating]:
        return np.asarray(self._trees.predict(row, prediction_type="Probability", thread_count=1))

    def _categories(self) -> int:
        return sum(map(len, (self._trees.get_cat_feature_indices(), self._trees.get_text_feature_indices(),
                             self._trees.get_embedding_feature_indices())))


class LinearSoftmaxHead(ModelHead):
    """softmax(z W + b) with z = (x - mean) / scale, cut to +-FURTHEST; a missing optional feature is its mean (z = 0).

    Tensors, all float32: `mean` (width,), `scale` (width,) > 0, `weights` (width, 3), `bias` (3,).
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        shapes = {"mean": (self.width,), "scale": (self.width,), "weights": (self.width, len(CLASSES)),
                  "bias": (len(CLASSES),)}
        tensors = read_tensors(bundle.files[TENSORS_FILE], shapes)
        if not np.all(tensors["scale"] > 0):
            raise BundleRefused(f"{TENSORS_FILE}: `scale` must be > 0")
        self._tensors = MappingProxyType({name: values.astype(np.float64) for name, values in tensors.items()})

    def _model(self, row: NDArray[np.float32]) -> NDArray[np.floating]:
        z = np.clip((row - self._tensors["mean"]) / self._tensors["scale"], -FURTHEST, FURTHEST)
        scores = np.where(np.isnan(z), 0.0, z) @ self._tensors["weights"] + self._tensors["bias"]
        powers = np.exp(scores - scores.max())
        answer: NDArray[np.floating] = powers / powers.sum()
        return answer


def _require_whole_trees(content: bytes) -> None:
    """A CatBoost file begins with `CBM1` and the length of what follows, little endian. CatBoost does not compare it
    with what there is: of a file cut by 40 bytes it read on in memory that is not the file's, and answered something.
    """
    promised = 8 + int.from_bytes(content[4:8], "little")
    if content[:4] != b"CBM1" or len(content) != promised:
        raise BundleRefused(f"{CBM_FILE} cannot be opened: not CBM1, or not as long as it says "
                            f"({len(content)} bytes, {promised} promised)")


def read_tensors(content: bytes, shapes: dict[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
    """The tensors of a safetensors file, exactly those of `shapes`, float32 and finite; else BundleRefused."""
    header_bytes = int.from_bytes(content[:8], "little")
    if header_bytes > MAX_TENSORS_HEADER:
        raise BundleRefused(f"{TENSORS_FILE} declares a header of {header_bytes} bytes; at most {MAX_TENSORS_HEADER} "
                            f"are read")
    try:
        found = dict(safetensors.deserialize(content))
    except Exception as error:  # SafetensorError, or ValueError by its Rust side
        raise BundleRefused(f"{TENSORS_FILE} is not a safetensors file: {one_line(error)}") from error
    described = {name: (tensor["dtype"], tuple(tensor["shape"])) for name, tensor in found.items()}
    expected = {name: ("F32", shape) for name, shape in shapes.items()}
    if described != expected:
        wrong = sorted(name for name in {*described, *expected} if described.get(name) != expected.get(name))
        raise BundleRefused(f"{TENSORS_FILE}: `{wrong[0]:.50}` is {described.get(wrong[0], 'absent')}, must be "
                            f"{expected.get(wrong[0], 'absent')}")
    tensors = {name: np.frombuffer(tensor["data"], np.float32).reshape(shapes[name]) for name, tensor in found.items()}
    for name, values in tensors.items():
        if not np.all(np.isfinite(values)):
            raise BundleRefused(f"{TENSORS_FILE}: `{name}` holds weights that are not finite")
    return tensors
