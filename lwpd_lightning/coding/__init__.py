"""Pure mathematics and tensors: codes, their decoders, the block layout of parameters and codewords on the wire.

Nothing here opens a socket or knows Lightning; the exchange and the strategy are built on top.
"""

from lwpd_lightning.coding import wire_floats, wire_int8, wire_sign, wire_ternary  # noqa: F401 - each registers its formats
from lwpd_lightning.coding.blocks import BlockMap
from lwpd_lightning.coding.code import Code, Task
from lwpd_lightning.coding.families import gradient_code, local_code, lwpd_code, uncoded

__all__ = ["BlockMap", "Code", "Task", "gradient_code", "local_code", "lwpd_code", "uncoded"]
