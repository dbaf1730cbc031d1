"""Interchangeable learning rules, one file or folder each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_snn._lazy import lazy_names

if TYPE_CHECKING:
    from lightning_snn.methods import bayes as bayes
    from lightning_snn.methods import ep as ep
    from lightning_snn.methods import eprop as eprop
    from lightning_snn.methods import online_through_time as online_through_time
    from lightning_snn.methods import rate as rate
    from lightning_snn.methods import tasks as tasks
    from lightning_snn.methods import ttfs as ttfs
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
    from lightning_snn.methods.tasks import Classification, Prediction, Regression, Task
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

_FOLDERS = ("bayes", "ep", "eprop", "online_through_time", "rate", "tasks", "ttfs")

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ActivityPenalty": "lightning_snn.methods.penalties",
        "Classification": "lightning_snn.methods.tasks",
        "EProp": "lightning_snn.methods.eprop.method",
        "ExpectationPropagation": "lightning_snn.methods.ep.method",
        "Method": "lightning_snn.methods.base",
        "NoisySpikes": "lightning_snn.methods.noisy_spikes",
        "OnlineThroughTime": "lightning_snn.methods.online_through_time.method",
        "Prediction": "lightning_snn.methods.tasks",
        "Progress": "lightning_snn.methods.base",
        "RateBackprop": "lightning_snn.methods.rate.method",
        "Regression": "lightning_snn.methods.tasks",
        "SpikingBayes": "lightning_snn.methods.bayes.method",
        "Step": "lightning_snn.methods.base",
        "SurrogateGradient": "lightning_snn.methods.surrogate",
        "Task": "lightning_snn.methods.tasks",
        "TimeToFirstSpike": "lightning_snn.methods.ttfs.method",
        "register_stateless_layer": "lightning_snn.methods.noisy",
        **{name: f"{__name__}.{name}" for name in _FOLDERS},
    },
)
