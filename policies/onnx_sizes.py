"""Whether the sizes inside an ONNX graph are the same for every row that it is fed.

A graph whose sizes follow the fed numbers can be small in its canary and need any amount of memory when it serves. So
the numbers that a size comes from must be the graph's own, or come from the shapes of other tensors, which by this very
rule do not follow the fed numbers either. Then what the canary measured is what every later row needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from onnx import NodeProto

from policies.errors import BundleRefused

# Places of an operator's inputs whose values decide how large an output is, in any version of the operator, read off
# the operators' documentation at https://onnx.ai/onnx/operators. Those of which every input does are in SIZED_BY_ALL.
SIZED_BY: Mapping[str, tuple[int, ...]] = {
    "AffineGrid": (1,), "BlackmanWindow": (0,), "CenterCropPad": (1,), "Col2Im": (1, 2), "ConstantOfShape": (0,),
    "DFT": (1, 2), "Expand": (1,), "HammingWindow": (0,), "HannWindow": (0,), "MaxUnpool": (2,),
    "OneHot": (1,), "Pad": (1, 3), "Reshape": (1,), "Resize": (1, 2, 3), "STFT": (1, 3), "SequenceAt": (1,),
    "SequenceErase": (1,), "SequenceInsert": (2,), "Slice": (1, 2, 3, 4), "Split": (1,), "SplitToSequence": (1,),
    "Squeeze": (1,), "Tile": (1, 2), "TopK": (1,), "Unsqueeze": (1,), "Upsample": (1,)}
SIZED_BY_ALL = frozenset({"Compress", "MelWeightMatrix", "NonMaxSuppression", "NonZero", "Range", "Unique"})
REDUCTIONS = "Reduce"  # of such an operator the second input names the axes that vanish
SHAPES = frozenset({"Shape", "Size"})  # what they answer does not depend on the numbers


def require_fixed_sizes(nodes: Iterable[NodeProto], fed: Sequence[str]) -> None:
    """BundleRefused if a number of `fed`, the names of the graph's inputs, decides a size.

    nodes: each after those whose outputs it reads.
    """
    following = set(fed)  # tensors whose numbers depend on what is fed
    for node in nodes:
        if not following.isdisjoint(_sizing_inputs(node)):
            raise BundleRefused(f"the ONNX graph has the numbers that it is fed decide a size ({node.op_type:.50})")
        if node.op_type not in SHAPES and not following.isdisjoint(node.input):
            following.update(filter(None, node.output))


def _sizing_inputs(node: NodeProto) -> Iterator[str]:
    if node.op_type in SIZED_BY_ALL:
        yield from node.input
        return
    places = (1,) if node.op_type.startswith(REDUCTIONS) else SIZED_BY.get(node.op_type, ())
    for place in places:
        if place < len(node.input):
            yield node.input[place]
