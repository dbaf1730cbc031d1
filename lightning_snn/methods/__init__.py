"""Learning rules: one file each, interchangeable."""

from lightning_snn.methods.base import Method, Progress, Step
from lightning_snn.methods.bayes import SpikingBayes
from lightning_snn.methods.ep import ExpectationPropagation
from lightning_snn.methods.noise import NoisySpikes
from lightning_snn.methods.rate import RateBackprop
from lightning_snn.methods.surrogate import SurrogateGradient
from lightning_snn.methods.task import Classification, Prediction, Regression, Task
from lightning_snn.methods.ttfs import TimeToFirstSpike

__all__ = [
    "Classification",
    "ExpectationPropagation",
    "Method",
    "NoisySpikes",
    "Prediction",
    "Progress",
    "RateBackprop",
    "Regression",
    "SpikingBayes",
    "Step",
    "SurrogateGradient",
    "Task",
    "TimeToFirstSpike",
]
