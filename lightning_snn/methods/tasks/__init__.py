"""Tasks: what is learned, apart from how. Each is a readout, a loss and what a prediction is."""

from lightning_snn.methods.tasks.base import Loss, Readout, Task
from lightning_snn.methods.tasks.classification import Classification, CrossEntropy, mean_cross_entropy
from lightning_snn.methods.tasks.prediction import Prediction
from lightning_snn.methods.tasks.regression import Regression

__all__ = [
    "Classification",
    "CrossEntropy",
    "Loss",
    "Prediction",
    "Readout",
    "Regression",
    "Task",
    "mean_cross_entropy",
]
