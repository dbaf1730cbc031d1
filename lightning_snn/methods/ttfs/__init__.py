"""Time to first spike: ReLU networks as networks of neurons that spike at most once."""

from typing import TYPE_CHECKING

from lightning_snn._lazy import lazy_names
from lightning_snn.methods.ttfs.alpha import AlphaConv2d, AlphaLinear, bound_row_sums
from lightning_snn.methods.ttfs.encoder import SpikeEncoder
from lightning_snn.methods.ttfs.mapping import TTFSNetwork, from_relu, register_ttfs_rule
from lightning_snn.methods.ttfs.method import TimeToFirstSpike
from lightning_snn.methods.ttfs.neurons import FirstSpike, first_spike_layers
from lightning_snn.methods.ttfs.observed import LayerActivity
from lightning_snn.methods.ttfs.pooling import SpikePool2d
from lightning_snn.methods.ttfs.shortening import LatencyReport, LatencyRow, latency_report
from lightning_snn.methods.ttfs.synapses import OffsetMap, OneToOne
from lightning_snn.methods.ttfs.time_window import TimeWindow
from lightning_snn.methods.ttfs.windows import calibrate, cascade, grow, latency, rescale, set_windows

if TYPE_CHECKING:
    from lightning_snn.methods.ttfs.events import EventRecord, SpikeTable, safe_window, simulate

__all__ = [
    "AlphaConv2d",
    "AlphaLinear",
    "EventRecord",
    "FirstSpike",
    "LatencyReport",
    "LatencyRow",
    "LayerActivity",
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
    "first_spike_layers",
    "from_relu",
    "grow",
    "latency",
    "latency_report",
    "register_ttfs_rule",
    "rescale",
    "safe_window",
    "set_windows",
    "simulate",
]

# training does not need the simulator
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        **dict.fromkeys(("EventRecord", "SpikeTable", "safe_window", "simulate"), f"{__name__}.events"),
        "events": f"{__name__}.events",
    },
)
