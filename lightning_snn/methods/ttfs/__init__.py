"""Time to first spike: ReLU networks as networks of neurons that spike at most once."""

from lightning_snn.methods.ttfs.events import EventRecord, SpikeTable, safe_window, simulate
from lightning_snn.methods.ttfs.layers import (
    AlphaConv2d,
    AlphaLinear,
    FirstSpike,
    OffsetMap,
    SpikeEncoder,
    SpikePool2d,
    TimeWindow,
    bound_row_sums,
)
from lightning_snn.methods.ttfs.mapping import OneToOne, TTFSNetwork, from_relu
from lightning_snn.methods.ttfs.method import TimeToFirstSpike
from lightning_snn.methods.ttfs.windows import calibrate, cascade, grow, latency, rescale

__all__ = [
    "AlphaConv2d",
    "AlphaLinear",
    "EventRecord",
    "FirstSpike",
    "OffsetMap",
    "OneToOne",
    "SpikeEncoder",
    "SpikePool2d",
    "SpikeTable",
    "TTFSNetwork",
    "TimeToFirstSpike",
    "TimeWindow",
    "bound_row_sums",
    "calibrate",
    "cascade",
    "from_relu",
    "grow",
    "latency",
    "rescale",
    "safe_window",
    "simulate",
]
