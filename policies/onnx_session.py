"""A closed ONNX graph as a function of rows, in ONNX Runtime on one thread."""

from __future__ import annotations

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from policies.denormals import denormals_as_zero
from policies.errors import BundleRefused, one_line
from policies.onnx_graph import require_closed_graph


class OnnxFunction:
    """rows float32 (N, width) -> the graph's output `output`. Raises BundleRefused for a graph that is not served.

    A graph may be fixed to one row at a time, so ask for one at a time unless its maker promises more.
    """

    def __init__(self, content: bytes, width: int, output: str, name: str) -> None:
        require_closed_graph(content, width, output)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what fails is raised; nothing else is worth a line of the log
        # Left to guess, it takes bytes with a certain mark for a format of its own, which nobody has looked into.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors share no base class
            raise BundleRefused(f"{name} cannot be opened: {one_line(error)}") from error
        self._input = self._session.get_inputs()[0].name
        self._outputs = [output]

    def __call__(self, rows: NDArray[np.float32]) -> NDArray[np.floating]:
        with denormals_as_zero():
            answer: NDArray[np.floating] = self._session.run(self._outputs, {self._input: rows})[0]
        return answer
