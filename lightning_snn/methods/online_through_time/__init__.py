"""Online training through time: runs that are cut in time, and traces of the inputs of weights."""

from lightning_snn.methods.online_through_time.cut_run import CutRun
from lightning_snn.methods.online_through_time.method import OnlineThroughTime
from lightning_snn.methods.online_through_time.traces import trace_refusals

__all__ = ["CutRun", "OnlineThroughTime", "trace_refusals"]
