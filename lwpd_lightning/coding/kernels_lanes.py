"""Eight values at a time, in lanes, where LLVM would make a load and a store for each value of a loop."""

from __future__ import annotations

from typing import Any

import numba
import numba.extending
from llvmlite import ir  # type: ignore[import-untyped]

_numba: Any = numba  # has types in some versions only
_ir: Any = ir
_LANES = 8  # that a register of most CPUs holds; LLVM makes two of one elsewhere
_EIGHT_BITS = _ir.VectorType(_ir.IntType(32), _LANES)
_EIGHT_VALUES = _ir.VectorType(_ir.FloatType(), _LANES)


def _of(values: Any) -> Any:
    return _ir.Constant(_EIGHT_BITS, values)


def _at(context: Any, builder: Any, type_: Any, array: Any, place: Any, kind: Any) -> Any:
    """The pointer to eight of a kind at a place of an array."""
    values = context.make_array(type_)(context, builder, array).data
    return builder.bitcast(builder.gep(values, [place]), kind.as_pointer())


@_numba.extending.intrinsic  # type: ignore[untyped-decorator]
def transpose_eight(context: Any, x: Any, first: Any, out: Any, into: Any, side: Any) -> Any:
    """Write the transpose of the 8 by 8 float32 values from ``x[first]`` on to ``out[into]``, in rows ``side`` apart.

    Three times, of each two rows that are 4, 2 and 1 apart, half of the values change places.
    """

    def make(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        def row(array: int, r: int) -> Any:
            apart = builder.mul(given[4], _ir.Constant(given[4].type, r))
            place = builder.add(given[array + 1], apart)
            return _at(context, builder, signature.args[array], given[array], place, _EIGHT_VALUES)

        rows = [builder.load(row(0, r), align=4) for r in range(_LANES)]
        for h in (4, 2, 1):
            # Of the two rows end to end: where the bit h of a column is set, the value is taken from the other one.
            upper = _of([c + (_LANES - h) * bool(c & h) for c in range(_LANES)])
            lower = _of([c + (h if not c & h else _LANES) for c in range(_LANES)])
            for r in range(_LANES):
                if not r & h:
                    a, b = rows[r], rows[r + h]
                    rows[r], rows[r + h] = builder.shuffle_vector(a, b, upper), builder.shuffle_vector(a, b, lower)
        for r in range(_LANES):
            builder.store(rows[r], row(2, r), align=4)
        return context.get_dummy_value()

    return _numba.types.void(x, _numba.types.int64, out, _numba.types.int64, _numba.types.int64), make


@_numba.extending.intrinsic  # type: ignore[untyped-decorator]
def sign_eight(context: Any, x: Any, first: Any, byte: Any, out: Any) -> Any:
    """Write eight float32 values from ``x[first]`` on to ``out[first]``, times -1 where a bit is set, highest first."""

    def make(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        def eight(array: int) -> Any:
            return _at(context, builder, signature.args[array], given[array], given[1], _EIGHT_BITS)

        bits, nothing = builder.zext(given[2], _EIGHT_BITS.element), _of(_ir.Undefined)
        everywhere = builder.insert_element(nothing, bits, _ir.Constant(_EIGHT_BITS.element, 0))
        everywhere = builder.shuffle_vector(everywhere, nothing, _of([0] * _LANES))
        signs = builder.and_(builder.shl(everywhere, _of([*range(24, 32)])), _of([1 << 31] * _LANES))
        builder.store(builder.xor(builder.load(eight(0), align=4), signs), eight(3), align=4)
        return context.get_dummy_value()

    return _numba.types.void(x, _numba.types.int64, _numba.types.uint8, out), make
