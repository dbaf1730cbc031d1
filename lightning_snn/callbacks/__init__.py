"""Callbacks for any LightningModule with spiking layers."""

from lightning_snn.callbacks.alignment import GradientAlignment
from lightning_snn.callbacks.report import Report

__all__ = ["GradientAlignment", "Report"]
