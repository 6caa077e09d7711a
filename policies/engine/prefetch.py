"""A hint to the processor that a number of an array will be read soon; it changes no result.

Accounts that stand at random bars read rows that lie far apart, and waiting for memory takes longer than the sums of a
step. What an account will read in the next step is known in this one.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

READ, KEEP, DATA_CACHE = 0, 3, 1  # arguments of llvm.prefetch: not for writing, in every cache, no instructions


def _read_soon(typing_context, array, row, column):  # type: ignore[no-untyped-def]
    """array[row, column] of a two-dimensional array; the place must lie in it."""

    def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kind = signature.args[0]
        whole = context.make_array(kind)(context, builder, given[0])
        shape, strides = (cgutils.unpack_tuple(builder, part) for part in (whole.shape, whole.strides))
        place = cgutils.get_item_pointer2(context, builder, whole.data, shape, strides, kind.layout, list(given[1:]),
                                          False)
        number, address = ir.IntType(32), place.type
        hint = builder.module.declare_intrinsic(
            "llvm.prefetch", (address,), ir.FunctionType(ir.VoidType(), [address, number, number, number]))
        builder.call(hint, [place, number(READ), number(KEEP), number(DATA_CACHE)])
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), code


read_soon: Any = intrinsic(_read_soon)  # called as read_soon(array, row, column)
