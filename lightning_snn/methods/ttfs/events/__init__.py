"""Event-driven simulation of time-to-first-spike networks in continuous time, an independent check of the closed form.

A neuron integrates the ramps of its input spikes from one event to the next, and fires when its potential crosses its
threshold. With arrivals t_j of efficacy W_j, slopes A before and B from t_min on, and threshold theta:

    dV/dt = A + sum_j W_j H(t - t_j)  for t < t_min,      dV/dt = B  for t_min <= t < t_max,      V = 0 at the start
    spike: the first t in [t_min, t_max) with V(t) >= theta

The simulation does not call `functional.ttfs` and does not use remaining times, only spike times. Neurons of a layer
are simulated in parallel, each over its own sorted arrivals.

Cost: K log K per neuron with K synapses, without batching over samples: for tens of samples, not for training.

After Stanojevic et al. 2024, arXiv 2306.08744.
"""

from lightning_snn.methods.ttfs.events.record import EventRecord, SpikeTable
from lightning_snn.methods.ttfs.events.safety import safe_window
from lightning_snn.methods.ttfs.events.simulator import simulate

__all__ = ["EventRecord", "SpikeTable", "safe_window", "simulate"]
