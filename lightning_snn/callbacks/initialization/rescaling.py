"""Data-dependent, fluctuation-driven initialization: weights for which fluctuations of the input cause the spikes.

After Rossbroich, Gygax & Zenke 2022, arXiv 2206.10226, who derive the weights' variance from rates and time constants.
Here the membrane potentials are measured on a batch. So any layers between weights and neurons are supported, and any
neurons whose membrane potential is linear in the input until they spike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize

from lightning_snn.callbacks.dry_run import Run, call_order, detached_copy, isolated_run
from lightning_snn.callbacks.initialization.findings import align_columns
from lightning_snn.callbacks.initialization.spiking import MembraneMoments, Recorder, contributing_layers
from lightning_snn.checks import check_positive
from lightning_snn.functional.fluctuation import fluctuation_factor
from lightning_snn.nn.conventions import conventions_of
from lightning_snn.nn.neurons import Neuron
from lightning_snn.nn.observation import LayerCall, observe
from lightning_snn.nn.registry import is_spiking_layer

XI = 1.0
_ROUNDS = 8
_TOLERANCE = 0.02
_ROUNDING = 1e-4
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)


class Rescaling(NamedTuple):
    """Result of the rescaling for a spiking layer.

    Attributes:
        layer: name of the spiking layer.
        weights: name of the module with the weights before the layer; empty if none is known.
        factor: factor of their weight and bias; 1 if they were not changed.
        shift: value that was added before that to the biases or, without a bias, to all weights, root mean square.
        distance: distance of the threshold from the mean of the free membrane potential before the rescaling, in
            standard deviations.
        reason: reason why nothing was changed; empty otherwise.
    """

    layer: str
    weights: str
    factor: float
    shift: float
    distance: float
    reason: str = ""


def rescale(
    module: nn.Module, run: Run, xi: float = XI, reduce: Callable[[Tensor], Tensor] | None = None
) -> list[Rescaling]:
    r"""Scale the weights of a module, in place, so that fluctuations of the input make its layers spike.

    .. math:: \frac{\theta - \mu}{\sigma} = \xi

    with :math:`\theta` the threshold, and :math:`\mu` and :math:`\sigma` the mean and standard deviation of the free
    membrane potential, that of neurons which never spike, over neurons, time steps, and samples. After Rossbroich,
    Gygax & Zenke 2022, arXiv 2206.10226.

    Layers are rescaled from the first to the last, in the order in which they run, each with the spikes of layers that
    are already rescaled. The weight and bias of the last module before the layer that has trained weights, or of a
    normalization layer with trained scales, are multiplied by one factor; if branches join before the layer, those of
    the last branch alone. Before that, disturbing means are removed. Means of neurons or channels that are larger than
    the fluctuations around them are removed by the bias, so that inputs and not biases cause spikes. Without a bias, a
    mean of all neurons of more than half a standard deviation is removed by shifting all weights equally. Silent layers
    become active, and saturated layers less active.

    Layers are left as they are, with a reason, if the membrane potential is not known; if the loss does not depend on
    their spikes; if their weights feed another layer too; if they are called in several places with different weights;
    or if their membrane potential does not scale with the weights, for example with a normalization layer without
    trained scales in between. Readouts after the last spiking layer and weights of recurrent connections are not
    changed.

    Args:
        module: any module. Its parameters are changed in place, so an optimizer keeps them.
        run: function from a copy of the module to its loss on a batch. It is called two times per layer if weights are
            only scaled, four times if means are removed, and at most 16 times.
            If it returns no loss, all layers are rescaled.
        xi: distance of the threshold from the mean in standard deviations, larger than 0; smaller values cause more
            spikes. Values of 1 to 3 are in use, and accuracy hardly depends on it: an `MLP` with 6 hidden layers of
            128, silent at first, had after two epochs of 3,000 digits of MNIST (10 steps, Adam 1e-3, seeds 0 to 2) 78,
            80, 77 % with 1 and 80, 81, 76 % with 3; with its default initialization it had 62, 49, 44 %. A value of 1
            keeps rates further from silence, 4 to 7 % of spikes.
        reduce: function that sums a tensor over all processes; None for one process.

    Returns:
        One result per spiking layer, in the order in which they run.

    Raises:
        ValueError: if `xi` is out of range, or no spiking layer runs.

    Example:
        >>> from lightning_snn import LIF, run
        >>> network = nn.Sequential(nn.Linear(4, 8), LIF(), nn.Linear(8, 3))
        >>> x = torch.rand(10, 16, 4)
        >>> [rescaling.weights for rescaling in rescale(network, lambda copied: run(copied, x).mean())]
        ['0']
    """
    check_positive("xi", xi)
    found = []
    layer_of: dict[nn.Parameter, str] = {}
    for layer in _layers(module, run):
        reason = layer.reason or _reason_against(module, layer.source, layer_of)
        if reason:
            found.append(Rescaling(layer.name, layer.source, 1.0, 0.0, math.nan, reason))
            continue
        weighted = module.get_submodule(layer.source)
        layer_of[weighted.weight] = layer.name  # type: ignore[index]
        found.append(_rescale_layer(weighted, layer, partial(_measure_free_membrane, module, layer, run, reduce), xi))
    if not found:
        raise ValueError(f"Expected a module whose spiking layers run for a rescaling, but got {type(module).__name__}")
    return found


def rescalings_table(rescalings: Sequence[Rescaling]) -> str:
    """Return rescalings as a table of text."""
    rows = [("layer", "weights", "factor", "shift", "distance before", "")]
    for each in rescalings:
        numbers = (each.factor, each.shift, each.distance) if not each.reason else ()
        cells = [f"{number:.4g}" for number in numbers] or [""] * 3
        rows.append(
            (each.layer, each.weights, cells[0], cells[1], cells[2], f"not changed: {each.reason}" * bool(each.reason))
        )
    return "\n".join(align_columns(rows))


class _Layer(NamedTuple):
    """Spiking layer to rescale.

    Attributes:
        name: name of the layer, unique per record.
        path: name of the layer within the module.
        threshold: firing threshold.
        source: name of the module with the weights before the layer; empty if none is known.
        reason: reason why it cannot be rescaled; empty otherwise.
    """

    name: str
    path: str
    threshold: float | Tensor | None
    source: str
    reason: str


def _layers(module: nn.Module, run: Run) -> list[_Layer]:
    """Return the spiking layers in the order in which they run."""
    with isolated_run(module):
        copied = detached_copy(module)
        recorder, sources = Recorder(), _WeightSources()

        def record(call: LayerCall) -> None:
            recorder(call)
            sources(call)

        with observe(copied, record, membranes=True), call_order(copied, _spikes_or_has_weights) as order:
            loss = run(copied)
        depends = isinstance(loss, Tensor) and loss.requires_grad
        names = {each.name for each in recorder.layers}
        contributing = contributing_layers(loss, recorder.layers) if depends else names
    paths = {part: path for path, part in copied.named_modules()}
    # recurrent weights are part of their neurons
    within = {id(part) for layer in copied.modules() if is_spiking_layer(layer) for part in layer.modules()}
    found: list[_Layer] = []
    for each in recorder.layers:
        path = paths[each.layer]
        if path in (known.path for known in found):
            continue
        before = [source for source in order[: order.index(path)] if id(copied.get_submodule(source)) not in within]
        reason = "" if each.membrane.sums is not None else "its membrane potential is not known"
        reason = "its calls have different weights" if sources.differ(each.layer) else reason
        reason = reason if each.name in contributing else "the loss does not depend on its spikes"
        found.append(_Layer(each.name, path, each.threshold, before[-1] if before else "", reason))
    return found


class _WeightSources:
    """Trained parameters between the last spikes and the input current of each spiking layer, common to its calls."""

    def __init__(self) -> None:
        self._common: dict[nn.Module, set[int]] = {}
        self._spikes: set[Any] = set()

    def __call__(self, call: LayerCall) -> None:
        found = set() if call.current is None else self._parameters(call.current.grad_fn)
        if found:
            self._common[call.layer] = self._common.get(call.layer, found) & found
        self._spikes.add(call.output.grad_fn)

    def differ(self, layer: nn.Module) -> bool:
        """Return whether the calls of a layer that have trained parameters have none in common."""
        return layer in self._common and not self._common[layer]

    def _parameters(self, start: Any) -> set[int]:
        found, seen, remaining = set(), {None, *self._spikes}, [start]
        while remaining:
            node = remaining.pop()
            if node in seen:
                continue
            seen.add(node)
            variable = getattr(node, "variable", None)
            if isinstance(variable, Tensor):
                found.add(id(variable))
            remaining += [before for before, _ in node.next_functions]
        return found


def _spikes_or_has_weights(layer: nn.Module) -> bool:
    """Return whether a module spikes, or scales its input by trained parameters."""
    trained = [each for each in layer.parameters(recurse=False) if each.requires_grad]
    scales = any(each.dim() > 1 for each in trained) or (bool(trained) and isinstance(layer, _NORMS))
    return is_spiking_layer(layer) or scales or parametrize.is_parametrized(layer)


def _reason_against(module: nn.Module, source: str, layer_of: dict[nn.Parameter, str]) -> str:
    """Return the reason why a module's weights cannot be scaled; empty otherwise."""
    if not source:
        return "no trained weights feed it"
    weighted = module.get_submodule(source)
    weight = weighted._parameters.get("weight")
    if weight is None or not weight.requires_grad or parametrize.is_parametrized(weighted):
        return f"{source} has no trained parameter `weight`"
    return f"the weights of {source} feed {layer_of[weight]} too" if weight in layer_of else ""


@torch.no_grad()
def _rescale_layer(
    weighted: nn.Module, layer: _Layer, measure: Callable[[], tuple[Tensor, float]], xi: float
) -> Rescaling:
    """Shift and scale a module's bias and weight until the distance of the layer's threshold is `xi`."""
    own = [weighted._parameters.get(name) for name in ("weight", "bias")]
    parameters = [each for each in own if each is not None and each.requires_grad]
    before = [each.clone() for each in parameters]
    shifted = parameters[-1]  # the bias if there is one
    factor, distance, largest = 1.0, math.nan, 0.0
    shift = torch.zeros_like(shifted)
    reason = "its membrane potential does not scale with the weights"
    for _ in range(_ROUNDS):
        means, square = measure()
        mean = means.mean().item()
        deviation = math.sqrt(max(square - mean**2, 0.0)) if math.isfinite(square) else math.nan
        largest = max(largest, math.sqrt(square)) if math.isfinite(square) else math.nan
        if not deviation > _ROUNDING * largest:
            finite = math.isfinite(deviation)
            reason = "its membrane potential is constant" if finite else "its membrane potential is not finite"
            break
        distance = (1 - mean) / deviation if math.isnan(distance) else distance
        offsets = means.square().mean().item()
        of_channels = shifted.shape == means.shape and offsets > square - offsets
        if of_channels or abs(mean) > deviation / 2:
            unwanted = means if shifted.shape == means.shape else means.mean()
            # linear in the shift, so two points determine it; a step of the size of the weights limits rounding errors
            step = parameters[0].abs().mean()
            shifted.add_(step)
            slope = ((measure()[0] - means) / step).to(means)
            slope = slope if unwanted.dim() else slope.mean()
            away = (unwanted / slope).to(shifted)
            shifted.sub_(step + away)
            shift -= away
            if not shifted.isfinite().all():
                break
        elif abs((1 - mean) / (xi * deviation) - 1) < _TOLERANCE:
            size = (shift / factor).square().mean().sqrt().item()
            return Rescaling(layer.name, layer.source, factor, size, distance)
        else:
            change = fluctuation_factor(mean, deviation, xi)
            factor, shift = factor * change, shift * change
            for each in parameters:
                each.mul_(change)
    for each, value in zip(parameters, before, strict=True):
        each.copy_(value)
    return Rescaling(layer.name, layer.source, 1.0, 0.0, distance, reason)


def _measure_free_membrane(
    module: nn.Module, layer: _Layer, run: Run, reduce: Callable[[Tensor], Tensor] | None
) -> tuple[Tensor, float]:
    """Return the means per channel and the mean square of the membrane potential of neurons that never spike.

    Both are in units of the threshold.
    """
    moments = MembraneMoments()

    def record(call: LayerCall) -> None:
        if call.layer is measured:
            potentials = call.free_membrane() if isinstance(measured, Neuron) else call.membrane()
            assert potentials is not None
            # in the run of another library's layer the threshold is raised, so it is not the unit
            moments.add(potentials if isinstance(measured, Neuron) else potentials / cast(float, layer.threshold))

    with isolated_run(module):
        copied = detached_copy(module)
        measured = copied.get_submodule(layer.path)
        if not isinstance(measured, Neuron):
            _prevent_spikes(measured)
        with observe(copied, record, membranes=True):
            run(copied)
    return moments.compute(reduce)


def _prevent_spikes(layer: nn.Module) -> None:
    """Set the threshold of another library's spiking layer to a value that is never reached."""
    dtypes = {each.dtype for each in layer.parameters()}
    # finite, because a reset multiplies it by 0
    reach = 3e4 if torch.float16 in dtypes else 1e30
    known = conventions_of(layer)
    assert known is not None
    assert known.threshold is not None
    threshold = getattr(layer, known.threshold)
    if isinstance(threshold, Tensor):
        threshold.data.fill_(reach)
    else:
        setattr(layer, known.threshold, reach)
