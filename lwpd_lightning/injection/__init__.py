"""Stragglers and faults that are injected: models of delays, limits of the processor, and callbacks that apply them."""

from lwpd_lightning.injection.injectors import CpuShare, FaultInjector, StragglerInjector

__all__ = ["CpuShare", "FaultInjector", "StragglerInjector"]
