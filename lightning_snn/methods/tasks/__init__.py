"""Tasks: what is learned, apart from how. Each is a readout, a loss and what a prediction is."""

from lightning_snn.methods.tasks.base import Kind, Loss, Readout, Task
from lightning_snn.methods.tasks.choice import chosen_task
from lightning_snn.methods.tasks.classification import Classification, CrossEntropy, mean_cross_entropy
from lightning_snn.methods.tasks.distillation import Distillation, TaughtTargets
from lightning_snn.methods.tasks.multi_label import MultiLabel
from lightning_snn.methods.tasks.prediction import Prediction
from lightning_snn.methods.tasks.regression import Regression
from lightning_snn.methods.tasks.temporal_efficient import TemporalEfficient
from lightning_snn.methods.tasks.wrapped import CustomLoss, WrappedTask

__all__ = [
    "Classification",
    "CrossEntropy",
    "CustomLoss",
    "Distillation",
    "Kind",
    "Loss",
    "MultiLabel",
    "Prediction",
    "Readout",
    "Regression",
    "Task",
    "TaughtTargets",
    "TemporalEfficient",
    "WrappedTask",
    "chosen_task",
    "mean_cross_entropy",
]
