r"""Windows of time-to-first-spike networks: their start, their length and their growth while training.

With unit slopes the function of the network does not depend on its windows if no spike would come before `t_min`, so
windows may be adapted at any time. They determine latency and the effects of hardware on spike times. Layers with other
slopes keep their windows, because their function depends on them.

If processes train together (``torch.distributed``), `calibrate` and `grow` set the same windows on all of them; every
process has to call them.

After Stanojevic et al. 2024, arXiv 2306.08744. Calibration, quantiles and synchronization of processes are ours.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_snn.checks import check_between, check_choice, check_fraction, check_positive
from lightning_snn.methods.ttfs.activations import LargestPotential, PotentialHistogram, combined, evaluating, recorded
from lightning_snn.methods.ttfs.encoder import SpikeEncoder
from lightning_snn.methods.ttfs.neurons import FirstSpike, first_spike_layers
from lightning_snn.methods.ttfs.time_window import TimeWindow
from lightning_snn.processes import is_distributed

_INPUT_WINDOW = 1.0


def cascade(network: nn.Module) -> None:
    """Start each window at the end of the last presynaptic window: ``t_min = max t_max``.

    Args:
        network: one with the names of its neurons in causal order (`spiking`) and of their presynaptic layers
            (`sources`), or a chain of spiking layers in order of registration.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), FirstSpike(2.0), nn.Linear(8, 8), FirstSpike(3.0))
        >>> cascade(network)
        >>> network[1].t_min.item(), network[3].t_min.item()
        (1.0, 3.0)
    """
    with torch.no_grad():
        for layer, presynaptic in wiring(network):
            if len(presynaptic) == 1:
                (window, t_min), (_, own) = _times(presynaptic[0]), _times(layer)
                torch.add(t_min, window, out=own)
            elif presynaptic:
                layer.t_min.copy_(_end(presynaptic))
            else:
                layer.t_min.fill_(_INPUT_WINDOW)


def latency(network: nn.Module) -> Tensor:
    """Return the time at which the readout is read, the end of the last window.

    Args:
        network: as in `cascade`.

    Returns:
        A scalar in float64, in units of the input window.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), FirstSpike(2.0), nn.Linear(8, 3))
        >>> latency(network)
        tensor(3., dtype=torch.float64)
    """
    layers = in_order(network)
    return _end(layers) if layers else torch.tensor(_INPUT_WINDOW, dtype=torch.float64)


def grow(network: nn.Module, gamma: float = 10.0) -> Tensor | None:
    r"""Lengthen windows after a training step, :math:`\Delta \leftarrow \max(\Delta, \gamma \max \hat x)`.

    Later windows are shifted, as in `cascade`.

    Args:
        network: as in `cascade`. Layers with ``adaptive = False`` keep their windows.
        gamma: smallest length of a window, in units of the largest remaining time of the batch, at least 1.

    Returns:
        The largest part of its window that any layer used before, a scalar in float64: above 1 a spike would have come
        before `t_min`. None if no window is adaptive.

    Raises:
        ValueError: if `gamma` is outside its range.

    Example:
        >>> layer = FirstSpike(window=1.0)
        >>> _ = layer(torch.tensor([[0.5, 2.0]]))
        >>> grow(nn.Sequential(layer), gamma=10.0), layer.window
        (tensor(2., dtype=torch.float64), tensor(20., dtype=torch.float64))
    """
    check_between("gamma", gamma, 1, float("inf"))
    layers = [layer for layer in in_order(network) if isinstance(layer, FirstSpike) and layer.adaptive]
    if not layers:
        return None
    windows = [_times(layer)[0] for layer in layers]
    used = _used_fraction(layers, windows)
    grows = used is None or gamma * used.item() > 1
    if grows:
        with torch.no_grad():
            largest = [
                torch.zeros_like(window) if layer.peak is None else layer.peak
                for layer, window in zip(layers, windows, strict=True)
            ]
            # a step that overflowed in half precision is skipped and must not cause infinite windows
            peaks = torch.nan_to_num(torch.stack(largest).double(), nan=0.0, posinf=0.0, neginf=0.0)
            peaks = combined(peaks, "MAX")
            used = (peaks / torch.stack(windows)).amax()
            torch._foreach_maximum_(windows, (gamma * peaks).unbind())
    if grows or not _is_mapped(network):
        # windows of a converted network are consecutive; those of layers made one by one may start anywhere
        cascade(network)
    for layer in layers:
        layer.forget_peak()
    return used


def calibrate(
    network: nn.Module, batches: Tensor | Iterable[Tensor], zeta: float = 0.5, quantile: float | None = None
) -> None:
    r"""Set windows from activations on data, :math:`\Delta = (1 + \zeta) X`, and then `cascade`.

    The network runs in evaluation mode, without constraints and clipping.

    Args:
        network: as in `cascade`.
        batches: inputs of the network `[B, ...]`, one batch or several.
        zeta: margin above X, larger than -1.
        quantile: X is this quantile of the remaining times of emitted spikes, with a precision of 0.05 %, for networks
            that clip earlier spikes (``overflow="clip"``); None takes the largest.

    Raises:
        ValueError: if an argument is outside its range, there is no batch, or potentials are NaN or too large.

    Warns:
        UserWarning: if layers never spiked, with their names; they keep their windows.

    Example:
        >>> network = nn.Sequential(FirstSpike())
        >>> calibrate(network, torch.tensor([[0.5, 2.0]]), zeta=0.5)
        >>> network[0].window
        tensor(3., dtype=torch.float64)
    """
    check_between("zeta", zeta, -1, float("inf"))
    if zeta == -1:
        raise ValueError(f"Expected argument `zeta` to be larger than -1, but got {zeta!r}")
    if quantile is not None:
        check_fraction("quantile", quantile)
    layers = first_spike_layers(network)
    records = {
        name: LargestPotential(layer.window.device) if quantile is None else PotentialHistogram(layer.window.device)
        for name, layer in layers.items()
    }
    empty = True
    with evaluating(network), recorded(network, records), torch.no_grad():
        for batch in [batches] if isinstance(batches, Tensor) else batches:
            network(batch)
            empty = False
    if empty:
        raise ValueError("Expected argument `batches` to have at least one batch, but got none")
    silent = []
    for name, layer in layers.items():
        record = records[name]
        largest = record.quantile(quantile or 1.0) if isinstance(record, PotentialHistogram) else record.value()
        if not math.isfinite(largest):
            raise ValueError(
                f"Expected argument `batches` to give finite potentials, but got {largest:g} in layer {name}. Look for "
                "NaN and infinities in the inputs and weights"
            )
        if largest > 0:
            layer.window.fill_((1 + zeta) * largest)
        else:
            silent.append(name)
    if silent:
        warnings.warn(f"These layers never spiked and keep their windows: {', '.join(silent)}", stacklevel=2)
    cascade(network)


def rescale(network: nn.Module, factor: float) -> None:
    """Multiply the windows of all unit-slope layers by a factor, and then `cascade`.

    Args:
        network: as in `cascade`.
        factor: larger than 0.

    Raises:
        ValueError: if `factor` is not positive.

    Example:
        >>> network = nn.Sequential(FirstSpike(window=2.0))
        >>> rescale(network, 0.5)
        >>> network[0].window
        tensor(1., dtype=torch.float64)
    """
    check_positive("factor", factor)
    for layer in first_spike_layers(network).values():
        layer.window.mul_(factor)
    cascade(network)


def set_windows(network: nn.Module, windows: Mapping[str, float], clip: bool = True) -> None:
    r"""Set the windows of layers by name, and then `cascade`, for example to those that a `LatencyReport` chose.

    Args:
        network: as in `cascade`.
        windows: length of the window of each `FirstSpike` layer to set, by its name in `first_spike_layers`, larger
            than 0, in units of the input window. Other layers keep theirs.
        clip: also set ``overflow="clip"`` in these layers, so that earlier spikes occur at the start of their window as
            on hardware, and ``adaptive=False``, so that training does not lengthen it. A `TimeToFirstSpike` that is
            created for the network afterwards sets its own: pass it ``overflow="clip", gamma=None``.

    Raises:
        ValueError: if there is no such layer, or a window is not positive; then no window changes.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), FirstSpike(2.0), nn.Linear(8, 8), FirstSpike(3.0))
        >>> set_windows(network, {"1": 0.5})
        >>> network[1].window.item(), network[1].overflow, network[3].t_min.item()
        (0.5, 'clip', 1.5)
    """
    layers = first_spike_layers(network)
    for name, window in windows.items():
        check_choice("windows", name, tuple(layers))
        check_positive(f"windows[{name!r}]", window)
    for name, window in windows.items():
        layers[name].window.fill_(window)
        if clip:
            layers[name].overflow, layers[name].adaptive = "clip", False
    cascade(network)


def in_order(network: nn.Module) -> list[TimeWindow]:
    """Return the spiking layers in causal order, without encoders."""
    mapped = _mapped(network)
    if mapped is not None:
        return [layer for _, layer in mapped.spiking]
    return [
        layer for layer in network.modules() if isinstance(layer, TimeWindow) and not isinstance(layer, SpikeEncoder)
    ]


def wiring(network: nn.Module) -> list[tuple[TimeWindow, list[TimeWindow]]]:
    """Return the spiking layers in causal order, each with its presynaptic layers, without inputs."""
    mapped = _mapped(network)
    if mapped is None:
        chain = in_order(network)
        return [(layer, chain[place - 1 : place]) for place, layer in enumerate(chain)]
    named: dict[str, TimeWindow] = dict(mapped.spiking)
    sources: dict[str, list[str]] = mapped.sources
    return [(layer, [named[each] for each in sources[name] if each in named]) for name, layer in named.items()]


def _mapped(network: nn.Module) -> Any:
    """Return the first module that names its neurons and their presynaptic layers, or None."""
    return next(filter(_is_mapped, network.modules()), None)


def _is_mapped(module: nn.Module) -> bool:
    # faster than `hasattr`, which searches all parameters and modules; this runs once per training step
    return hasattr(type(module), "sources") or "sources" in module.__dict__


def _times(layer: TimeWindow) -> tuple[Tensor, Tensor]:
    """Return window and t_min; attribute access of a module would take longer than their sum."""
    buffers: dict[str, Any] = layer._buffers
    return buffers["window"], buffers["t_min"]


def _end(layers: list[TimeWindow]) -> Tensor:
    windows, starts = zip(*map(_times, layers), strict=True)
    return (torch.stack(starts) + torch.stack(windows)).amax()


def _used_fraction(layers: list[FirstSpike], windows: list[Tensor]) -> Tensor | None:
    """Return the result of `grow` without growing, on the CPU of one process, where this is faster; else None."""
    if not windows[0].is_cpu or is_distributed() or torch.compiler.is_compiling():
        return None
    parts = []
    for layer, window in zip(layers, windows, strict=True):
        peak = 0.0 if layer.peak is None else layer.peak.item()
        parts.append(peak / window.item() if math.isfinite(peak) else 0.0)
    return windows[0].new_full((), max(parts))
