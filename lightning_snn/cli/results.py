"""Report of a recipe, and its results as text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_snn.callbacks import Report

_TABLE = {
    "accuracy": ("accuracy", ".4f"),
    "pair_accuracy": ("within-pair direction accuracy", ".4f"),
    "nll": ("negative log-likelihood (nats)", ".4f"),
    "ece": ("expected calibration error", ".4f"),
    "mse": ("mean squared error", ".4g"),
    "hardware/accuracy_unconstrained": ("validation accuracy without constraints", ".4f"),
    "hardware/accuracy_before": ("validation accuracy under constraints", ".4f"),
    "hardware/accuracy_after": ("validation accuracy after fine-tuning", ".4f"),
    "spikes_per_neuron": ("spikes per neuron", ".4f"),
    "latency": ("latency (input windows)", ".3f"),
    "spikes_per_neuron_per_step": ("spikes per neuron per step", ".4f"),
    "synaptic_operations_per_sample": ("synaptic operations per sample", ".3g"),
}


class RecipeReport(Report):
    """Report that a resumed run finds again in any folder."""

    @property
    def state_key(self) -> str:
        return self.__class__.__qualname__


def score_rows(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the label and the value of each score that a table of results shows, as text."""
    return [(label, format(results[name], form)) for name, (label, form) in _TABLE.items() if name in results]


def results_table(results: Mapping[str, Any], folder: Path) -> str:
    """Return the results of the test of a run as text."""
    rows = score_rows(results)
    parts = ", ".join(f"{name} {seconds:.0f}" for name, seconds in results["seconds"].items())
    rows += [("seconds", parts), ("report", str(folder))]
    width = max(len(label) for label, _ in rows)
    title = " ".join(str(results[name]) for name in ("method", "network", "data")) + f", seed {results['seed']}"
    return "\n".join(["", title, *(f"  {label:<{width}}  {value}" for label, value in rows)])
