"""Coded gradient exchange for PyTorch Lightning: stragglers and dead workers are erasures, not stalls.

Importing the package registers ``Trainer(strategy="lwpd")``.
"""

from lwpd_lightning import schemes
from lwpd_lightning.coding import Code, gradient_code, local_code, lwpd_code, uncoded
from lwpd_lightning.strategy import LWPDStrategy

__all__ = ["Code", "LWPDStrategy", "gradient_code", "local_code", "lwpd_code", "schemes", "uncoded"]
