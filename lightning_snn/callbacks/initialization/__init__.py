"""Check of a network's initialization: measurements, verdicts, and rescaling of the weights."""

from lightning_snn.callbacks.initialization.callback import InitializationCheck
from lightning_snn.callbacks.initialization.findings import Finding, findings_table, overall
from lightning_snn.callbacks.initialization.measurement import check_initialization, measure_initialization
from lightning_snn.callbacks.initialization.rescaling import Rescaling, rescale, rescalings_table
from lightning_snn.callbacks.initialization.trial import Trial, try_training

__all__ = [
    "Finding",
    "InitializationCheck",
    "Rescaling",
    "Trial",
    "check_initialization",
    "findings_table",
    "measure_initialization",
    "overall",
    "rescale",
    "rescalings_table",
    "try_training",
]
