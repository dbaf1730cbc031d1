"""Whether a network can be trained as it was initialized: measured, judged, and mended if asked to."""

from lightning_snn.callbacks.initialization.callback import InitializationCheck
from lightning_snn.callbacks.initialization.findings import Finding, findings_table, overall
from lightning_snn.callbacks.initialization.measurement import check_initialization, measure_initialization
from lightning_snn.callbacks.initialization.rescaling import Rescaling, rescale, rescalings_table

__all__ = [
    "Finding",
    "InitializationCheck",
    "Rescaling",
    "check_initialization",
    "findings_table",
    "measure_initialization",
    "overall",
    "rescale",
    "rescalings_table",
]
