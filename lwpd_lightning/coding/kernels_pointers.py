"""Values at an address, for kernels that take many tensors in one call: an argument each costs more than many hold."""

from __future__ import annotations

from typing import Any

import numba
import numba.extending

from lwpd_lightning.coding.compiling import compiled

_numba: Any = numba  # has types in some versions only


@_numba.extending.intrinsic  # type: ignore[untyped-decorator]
def _pointer(context: Any, address: Any) -> Any:
    def make(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.inttoptr(given[0], context.get_value_type(signature.return_type))

    return _numba.types.CPointer(_numba.types.float32)(_numba.types.uint64), make


@compiled()
def values_at(address, count):  # type: ignore[no-untyped-def]
    """So many float32 in a row; none at the address 0."""
    return _numba.carray(_pointer(address), count if address else 0)
