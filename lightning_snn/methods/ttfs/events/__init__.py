"""A time-to-first-spike network run in continuous time, event by event: the independent proof of the closed form.

A neuron integrates the ramps that its input spikes start, from one event to the next, and fires where its potential
crosses its threshold. With arrivals t_j of efficacy W_j, slopes A before and B from t_min on, and threshold theta:

    dV/dt = A + sum_j W_j H(t - t_j)  for t < t_min,      dV/dt = B  for t_min <= t < t_max,      V = 0 at the start
    spike: the first t in [t_min, t_max) with V(t) >= theta

Nothing of `functional.ttfs` is called, no remaining time is handed on, and what spikes reach is found from times alone.
Neurons of a layer are walked through side by side, each over its own sorted arrivals.

Cost: K log K a neuron with K synapses, and no batching over samples: for tens of samples, not for training.

After Stanojevic et al. 2024, arXiv 2306.08744.
"""

from lightning_snn.methods.ttfs.events.safety import safe_window
from lightning_snn.methods.ttfs.events.simulator import EventRecord, SpikeTable, simulate

__all__ = ["EventRecord", "SpikeTable", "safe_window", "simulate"]
