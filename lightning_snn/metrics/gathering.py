"""Activity counted in several processes, some of which may have had no batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lightning_snn.metrics.activity import Activity
from lightning_snn.processes import gather

_COUNTS = ("spikes", "neuron_steps", "operations", "accumulates", "dense", "rows")


def activity_of_processes(activity: Activity) -> Activity:
    """Return the sum of the activities of all processes, some of which may have counted nothing.

    All processes have to call this function. The spikes of the first sample stay those of this process.

    Args:
        activity: counts of this process.

    Example:
        >>> activity_of_processes(Activity(spikes={"1": torch.tensor(3)}, neuron_steps={"1": 12})).spike_rates()
        {'1': 0.25}
    """
    # plain numbers, because tensors of one device may not exist in another process
    own = {name: {layer: int(count) for layer, count in getattr(activity, name).items()} for name in _COUNTS}
    every = gather((own, activity.samples, activity.steps, activity.uncounted))
    total: dict[str, Any] = {name: {} for name in _COUNTS}
    for counts, *_ in every:
        for name, layers in counts.items():
            for layer, count in layers.items():
                total[name][layer] = total[name].get(layer, 0) + count
    samples, steps, uncounted = zip(*(rest for _, *rest in every), strict=True)
    return replace(
        activity,
        **total,
        samples=sum(samples),
        steps=max(steps),
        uncounted=list(dict.fromkeys(layer for each in uncounted for layer in each)),
    )
