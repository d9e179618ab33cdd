"""A matrix turned over its diagonal in lanes: of a loop that does it, LLVM makes a load and a store for each value."""

from __future__ import annotations

from typing import Any

import numba
import numba.extending
from llvmlite import ir  # type: ignore[import-untyped]

_numba: Any = numba  # has types in some versions only
_ir: Any = ir
_SIDE = 8  # values that a register of most CPUs holds; LLVM makes two of one elsewhere


@_numba.extending.intrinsic  # type: ignore[untyped-decorator]
def transpose_eight(context: Any, x: Any, first: Any, out: Any, into: Any, side: Any) -> Any:
    """Write the transpose of the 8 by 8 float32 values from ``x[first]`` on to ``out[into]``, in rows ``side`` apart.

    Three times, of each two rows that are 4, 2 and 1 apart, half of the values change places.
    """

    def make(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        eight = _ir.VectorType(_ir.FloatType(), _SIDE)

        def row(array: int, r: int) -> Any:
            values = context.make_array(signature.args[array])(context, builder, given[array]).data
            apart = builder.mul(given[4], _ir.Constant(given[4].type, r))
            return builder.bitcast(builder.gep(values, [builder.add(given[array + 1], apart)]), eight.as_pointer())

        def picked(a: Any, b: Any, places: list[int]) -> Any:
            return builder.shuffle_vector(a, b, _ir.Constant(_ir.VectorType(_ir.IntType(32), _SIDE), places))

        rows = [builder.load(row(0, r), align=4) for r in range(_SIDE)]
        for h in (4, 2, 1):
            # Of the two rows end to end: where the bit h of a column is set, the value is taken from the other one.
            upper = [c + (_SIDE - h) * bool(c & h) for c in range(_SIDE)]
            lower = [c + (h if not c & h else _SIDE) for c in range(_SIDE)]
            for r in range(_SIDE):
                if not r & h:
                    a, b = rows[r], rows[r + h]
                    rows[r], rows[r + h] = picked(a, b, upper), picked(a, b, lower)
        for r in range(_SIDE):
            builder.store(rows[r], row(2, r), align=4)
        return context.get_dummy_value()

    return _numba.types.void(x, _numba.types.int64, out, _numba.types.int64, _numba.types.int64), make
