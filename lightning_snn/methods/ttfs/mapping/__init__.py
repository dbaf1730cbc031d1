"""Exact maps between ReLU networks and networks of neurons that spike at most once.

After Stanojevic et al. 2024, arXiv 2306.08744; border maps for any kernel, skip connections and concatenations are
ours.
"""

from lightning_snn.methods.ttfs.mapping.network import TTFSNetwork, from_relu
from lightning_snn.methods.ttfs.mapping.signals import OneToOne

__all__ = ["OneToOne", "TTFSNetwork", "from_relu"]
