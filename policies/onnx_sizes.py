"""Whether the sizes inside an ONNX graph are the same for every row that it is fed.

A graph whose sizes follow the fed numbers can be small in its canary and need any amount of memory when it serves. So
the numbers that a size comes from must be the graph's own, or come from the shapes of other tensors, which by this very
rule do not follow the fed numbers either. Then what the canary measured is what every later row needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from onnx import NodeProto

from policies.errors import BundleRefused

# Places of a served operator's inputs whose values decide how large an output is or how far the operator looks, in any
# version of it, read off the operators' documentation at https://onnx.ai/onnx/operators.
SIZED_BY: Mapping[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,), "CumSum": (1,), "Expand": (1,), "GRU": (4,), "LSTM": (4,), "OneHot": (1,), "Pad": (1, 3),
    "RNN": (4,), "Range": (0, 1, 2), "Reshape": (1,), "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,),
    "Tile": (1, 2), "TopK": (1,), "Trilu": (1,), "Unsqueeze": (1,)}
REDUCTIONS = "Reduce"  # of such an operator the second input names the axes that vanish
SHAPES = frozenset({"Shape", "Size"})  # what they answer does not depend on the numbers


def require_fixed_sizes(nodes: Iterable[NodeProto], fed: Sequence[str]) -> None:
    """BundleRefused if a number of `fed`, the names of the graph's inputs, decides a size.

    nodes: each after those whose outputs it reads.
    """
    for node, following in fed_inputs(nodes, fed):
        if not following.isdisjoint(_sizing_inputs(node)):
            raise BundleRefused(f"the ONNX graph has the numbers that it is fed decide a size ({node.op_type:.50})")


def fed_inputs(nodes: Iterable[NodeProto], fed: Sequence[str]) -> Iterator[tuple[NodeProto, set[str]]]:
    """Each node, with the inputs whose numbers depend on those of `fed`."""
    following = set(fed)
    for node in nodes:
        found = following.intersection(node.input)
        yield node, found
        if found and node.op_type not in SHAPES:
            following.update(filter(None, node.output))


def _sizing_inputs(node: NodeProto) -> Iterator[str]:
    places = (1,) if node.op_type.startswith(REDUCTIONS) else SIZED_BY.get(node.op_type, ())
    for place in places:
        if place < len(node.input):
            yield node.input[place]
