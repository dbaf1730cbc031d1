"""Interchangeable learning rules, one file or folder each."""

from lightning_snn.methods.base import Method, Progress, Step
from lightning_snn.methods.bayes.method import SpikingBayes
from lightning_snn.methods.ep.method import ExpectationPropagation
from lightning_snn.methods.eprop.method import EProp
from lightning_snn.methods.noisy import register_stateless_layer
from lightning_snn.methods.noisy_spikes import NoisySpikes
from lightning_snn.methods.online_through_time.method import OnlineThroughTime
from lightning_snn.methods.penalties import ActivityPenalty
from lightning_snn.methods.rate.method import RateBackprop
from lightning_snn.methods.surrogate import SurrogateGradient
from lightning_snn.methods.task import Classification, Prediction, Regression, Task
from lightning_snn.methods.ttfs.method import TimeToFirstSpike

__all__ = [
    "ActivityPenalty",
    "Classification",
    "EProp",
    "ExpectationPropagation",
    "Method",
    "NoisySpikes",
    "OnlineThroughTime",
    "Prediction",
    "Progress",
    "RateBackprop",
    "Regression",
    "SpikingBayes",
    "Step",
    "SurrogateGradient",
    "Task",
    "TimeToFirstSpike",
    "register_stateless_layer",
]
