"""Exact conversion between ReLU networks and networks of neurons that spike at most once.

After Stanojevic et al. 2024, arXiv 2306.08744. Border maps for any kernel, skip connections and concatenations are
ours.
"""

from lightning_snn.methods.ttfs.mapping.network import TTFSNetwork, from_relu
from lightning_snn.methods.ttfs.mapping.rules import register_ttfs_rule

__all__ = ["TTFSNetwork", "from_relu", "register_ttfs_rule"]
