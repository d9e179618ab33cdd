"""What a user would train with today: DDP over Gloo, with a bfloat16 all-reduce, and PowerSGD."""

from .monitor import AllReduceMonitor
from .strategy import AlonePeer, DDPPeer, PowerSGDPeer

__all__ = ["AllReduceMonitor", "AlonePeer", "DDPPeer", "PowerSGDPeer"]
