"""Callbacks for any LightningModule with spiking layers."""

from lightning_snn.callbacks.report import Report

__all__ = ["Report"]
