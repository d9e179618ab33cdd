"""What a user would train with today: DDP over Gloo, with a bfloat16 all-reduce, and PowerSGD."""

from experiments.peers.monitor import AllReduceMonitor
from experiments.peers.strategy import DDPPeer, PowerSGDPeer

__all__ = ["AllReduceMonitor", "DDPPeer", "PowerSGDPeer"]
