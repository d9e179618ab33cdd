"""Pure mathematics and tensors: codes, their decoders, the block layout of parameters and codewords on the wire.

Nothing here opens a socket or knows Lightning; the exchange and the strategy are built on top.
"""
