"""Comparison of learning rules: one network, one data set, one budget in optimizer steps and one in seconds.

A recipe calls `compare(__file__, defaults, rules)`. Every rule has runs at several learning rates, of which validation
data choose one. Every run is a folder that a process claims, and that a later one continues or leaves as it is.
"""

from lightning_snn.cli.comparison.command import compare
from lightning_snn.cli.comparison.results import figures_of, markdown_of

__all__ = ["compare", "figures_of", "markdown_of"]
