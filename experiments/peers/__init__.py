"""What a user would train with today, over Gloo: DDP, also in bfloat16, PowerSGD, 1-bit Adam, local SGD and DiLoCo."""

from .local_steps import DiLoCoPeer, LocalSGDPeer
from .monitor import AllReduceMonitor
from .onebit import OnebitAdamPeer
from .strategy import AlonePeer, DDPPeer, PowerSGDPeer

__all__ = [
    "AllReduceMonitor",
    "AlonePeer",
    "DDPPeer",
    "DiLoCoPeer",
    "LocalSGDPeer",
    "OnebitAdamPeer",
    "PowerSGDPeer",
]
