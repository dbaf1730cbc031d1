"""Data-dependent, fluctuation-driven initialization: weights of such a size that neurons spike by chance, not by drift.

After Rossbroich, Gygax & Zenke 2022, arXiv 2206.10226, who derive the weights' variance from rates and time constants.
Here the membranes are measured on a batch, so that any layers do between weights and neurons, and any neurons whose
membrane is linear in its input until they spike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize

from lightning_snn.callbacks.dry_run import Run, first_calls, prepared_copy, without_a_trace
from lightning_snn.callbacks.initialization.findings import aligned
from lightning_snn.callbacks.initialization.spiking import MembraneMoments, Recorder, names_heard
from lightning_snn.checks import check_positive
from lightning_snn.functional.fluctuation import fluctuation_factor
from lightning_snn.nn.neurons import LIF
from lightning_snn.nn.observation import LayerCall, observe
from lightning_snn.nn.registry import conventions_of, is_spiking_layer

XI = 1.0
_ROUNDS = 8
_TOLERANCE = 0.02
_ROUNDING = 1e-4
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)


class Rescaling(NamedTuple):
    """What became of the input of a spiking layer.

    Attributes:
        layer: name of the spiking layer.
        weights: name of the module that feeds it; empty if none is known.
        factor: by which its weight and bias were multiplied; 1 where nothing was done.
        shift: what was added before that to its biases, or without one to all of its weights, root mean square.
        distance: of the threshold from the mean of the free membrane, in standard deviations, before.
        reason: why nothing was done; empty if it was.
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
    r"""Scale the weights of a module, in place, so that its spiking layers are driven by fluctuations.

    .. math:: \frac{\theta - \mu}{\sigma} = \xi

    with :math:`\theta` the threshold, :math:`\mu` and :math:`\sigma` mean and standard deviation of the free membrane,
    that of neurons which never spike, over neurons, time steps and samples. After Rossbroich, Gygax & Zenke 2022, arXiv
    2206.10226.

    From the first layer to the last, in the order in which they run, each with the spikes of layers that are rescaled
    already. Scaled are weight and bias of the last module with trained weights, or normalization with trained scales,
    that ran before the layer; of branches that join before it, the last alone. Before, means that stand in the way are
    removed: those of neurons or channels by the bias, where they are larger than the fluctuations about them, so that
    inputs make neurons spike and not their biases; and where there is no bias, a mean of all neurons of more than half
    a standard deviation, by shifting all weights alike. Silent layers become active, and saturated ones calm.

    What is left as it was, with the reason: layers whose membrane is not known; those whose spikes the loss does not
    hear, and readouts after the last of them; those fed by weights that feed another layer too; those that are called
    in several places, each fed by other weights; those whose membrane does not scale with their weights, as where
    normalization without trained scales comes between. Weights of recurrent connections stay.

    Args:
        module: any module. Its parameters are changed in place, so that an optimizer keeps them.
        run: from a copy of the module to its loss on a batch; called two times a layer where its weights are only
            scaled, four where means are removed, at most 16, and with batch normalization twice as often. A run that
            gives no loss has all layers rescaled.
        xi: distance of the threshold from the mean in standard deviations, larger than 0: the smaller, the more spikes.
            1 to 3 are in use, and accuracy hardly depends on it: an `MLP` of 6 hidden layers of 128, silent at first,
            after two passes over 3,000 digits of MNIST (10 steps, Adam 1e-3, seeds 0 to 2) had 78, 80, 77 % with 1 and
            80, 81, 76 % with 3; as it is initialized by default it had 62, 49, 44 %. 1 gives rates farther from
            silence, 4 to 7 % of spikes.
        reduce: of several processes, the sum of a tensor over all; None for one process.

    Returns:
        one for each spiking layer, in the order in which they run.

    Raises:
        ValueError: if `xi` is out of range, or no spiking layer runs.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), LIF(), nn.Linear(8, 3))
        >>> rescale(network, lambda copied: run(copied, x))
    """
    check_positive("xi", xi)
    found = []
    fed: dict[nn.Parameter, str] = {}
    for layer in _layers(module, run):
        reason = layer.reason or _refusal(module, layer.source, fed)
        if reason:
            found.append(Rescaling(layer.name, layer.source, 1.0, 0.0, math.nan, reason))
            continue
        carrier = module.get_submodule(layer.source)
        fed[carrier.weight] = layer.name  # type: ignore[index]
        found.append(_rescaled(carrier, layer, partial(_free_membrane, module, layer, run, reduce), xi))
    if not found:
        raise ValueError(f"Expected a module whose spiking layers run, to rescale, but got {type(module).__name__}")
    return found


def rescalings_table(rescalings: Sequence[Rescaling]) -> str:
    """Rescalings as lines of text."""
    rows = [("layer", "weights", "factor", "shift", "distance before", "")]
    for each in rescalings:
        numbers = (each.factor, each.shift, each.distance) if not each.reason else ()
        cells = [f"{number:.4g}" for number in numbers] or [""] * 3
        rows.append(
            (each.layer, each.weights, cells[0], cells[1], cells[2], f"left: {each.reason}" * bool(each.reason))
        )
    return "\n".join(aligned(rows))


class _Layer(NamedTuple):
    """A spiking layer: its name and path within the module, its threshold, the path of what feeds it, and why it cannot
    be rescaled."""

    name: str
    path: str
    threshold: float | Tensor | None
    source: str
    reason: str


def _layers(module: nn.Module, run: Run) -> list[_Layer]:
    """Spiking layers in the order in which they run."""
    with without_a_trace(module):
        copied = prepared_copy(module, run)
        recorder, sources = Recorder(), _Sources()

        def keep(call: LayerCall) -> None:
            recorder(call)
            sources(call)

        with observe(copied, keep, membranes=True), first_calls(copied, _carries_weights) as order:
            loss = run(copied)
        depends = isinstance(loss, Tensor) and loss.requires_grad
        names = {each.name for each in recorder.layers}
        heard = names_heard(loss, recorder.layers) if depends else names
    paths = {part: path for path, part in copied.named_modules()}
    # recurrent weights are parts of their neurons
    within = {id(part) for layer in copied.modules() if is_spiking_layer(layer) for part in layer.modules()}
    found: list[_Layer] = []
    for each in recorder.layers:
        path = paths[each.layer]
        if path in (known.path for known in found):
            continue
        before = [source for source in order[: order.index(path)] if id(copied.get_submodule(source)) not in within]
        reason = "" if each.membrane.sums is not None else "its membrane is not known"
        reason = "several weights feed it, each in other calls" if sources.differ(each.layer) else reason
        reason = reason if each.name in heard else "the loss does not hear of its spikes"
        found.append(_Layer(each.name, path, each.threshold, before[-1] if before else "", reason))
    return found


class _Sources:
    """By which trained parameters, from other neurons on, each call of a spiking layer got its current."""

    def __init__(self) -> None:
        self._common: dict[nn.Module, set[int]] = {}
        self._spikes: set[Any] = set()

    def __call__(self, call: LayerCall) -> None:
        found = set() if call.current is None else self._parameters(call.current.grad_fn)
        if found:
            self._common[call.layer] = self._common.get(call.layer, found) & found
        self._spikes.add(call.output.grad_fn)

    def differ(self, layer: nn.Module) -> bool:
        """Whether no parameter feeds a layer in all of its calls that any feed."""
        return layer in self._common and not self._common[layer]

    def _parameters(self, start: Any) -> set[int]:
        found, seen, left = set(), {None, *self._spikes}, [start]
        while left:
            node = left.pop()
            if node in seen:
                continue
            seen.add(node)
            variable = getattr(node, "variable", None)
            if isinstance(variable, Tensor):
                found.add(id(variable))
            left += [before for before, _ in node.next_functions]
        return found


def _carries_weights(layer: nn.Module) -> bool:
    """Whether a module spikes, or scales what it is given by something trained."""
    trained = [each for each in layer.parameters(recurse=False) if each.requires_grad]
    scales = any(each.dim() > 1 for each in trained) or (bool(trained) and isinstance(layer, _NORMS))
    return is_spiking_layer(layer) or scales or parametrize.is_parametrized(layer)


def _refusal(module: nn.Module, source: str, fed: dict[nn.Parameter, str]) -> str:
    """Why a module's weights are not to be scaled; empty if they are."""
    if not source:
        return "no trained weights feed it"
    carrier = module.get_submodule(source)
    weight = carrier._parameters.get("weight")
    if weight is None or not weight.requires_grad or parametrize.is_parametrized(carrier):
        return f"{source} has no trained parameter `weight`"
    return f"{source} feeds {fed[weight]} too" if weight in fed else ""


@torch.no_grad()
def _rescaled(carrier: nn.Module, layer: _Layer, measure: Callable[[], tuple[Tensor, float]], xi: float) -> Rescaling:
    """Move and scale a module's bias and weight until the layer that it feeds is as it should be."""
    own = [carrier._parameters.get(name) for name in ("weight", "bias")]
    parameters = [each for each in own if each is not None and each.requires_grad]
    before = [each.clone() for each in parameters]
    moved = parameters[-1]  # the bias if there is one
    factor, distance, largest = 1.0, math.nan, 0.0
    shift = torch.zeros_like(moved)
    reason = "its membrane does not scale with them"
    for _ in range(_ROUNDS):
        means, square = measure()
        mean = means.mean().item()
        deviation = math.sqrt(max(square - mean**2, 0.0)) if math.isfinite(square) else math.nan
        largest = max(largest, math.sqrt(square)) if math.isfinite(square) else math.nan
        if not deviation > _ROUNDING * largest:
            reason = "its membrane does not move" if math.isfinite(deviation) else "its membrane is not finite"
            break
        distance = (1 - mean) / deviation if math.isnan(distance) else distance
        offsets = means.square().mean().item()
        of_channels = moved.shape == means.shape and offsets > square - offsets
        if of_channels or abs(mean) > deviation / 2:
            unwanted = means if moved.shape == means.shape else means.mean()
            # linear in what is added: two points tell how far to go. Of the size of the weights, against rounding
            step = parameters[0].abs().mean()
            moved.add_(step)
            slope = ((measure()[0] - means) / step).to(means)
            slope = slope if unwanted.dim() else slope.mean()
            away = (unwanted / slope).to(moved)
            moved.sub_(step + away)
            shift -= away
            if not moved.isfinite().all():
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


def _free_membrane(
    module: nn.Module, layer: _Layer, run: Run, reduce: Callable[[Tensor], Tensor] | None
) -> tuple[Tensor, float]:
    """Means of the channels and the mean square, in units of the threshold, of the membrane of neurons that never
    spike."""
    moments = MembraneMoments()

    def keep(call: LayerCall) -> None:
        if call.layer is watched:
            membrane = call.membrane()
            assert membrane is not None
            assert layer.threshold is not None
            moments.add(membrane / layer.threshold)

    with without_a_trace(module):
        copied = prepared_copy(module, run)
        watched = copied.get_submodule(layer.path)
        _silence(watched)
        with observe(copied, keep, membranes=True):
            run(copied)
    return moments.found(reduce)


def _silence(layer: nn.Module) -> None:
    """Raise a spiking layer's threshold out of reach."""
    dtypes = {each.dtype for each in layer.parameters()}
    # finite, since a reset multiplies it by 0
    reach = 3e4 if torch.float16 in dtypes else 1e30
    if isinstance(layer, LIF):
        if layer._threshold is not None:
            layer._threshold = reach
        elif layer.learn_threshold:
            layer.threshold_log.data.fill_(math.log(reach))
        else:
            layer.threshold_channels.fill_(reach)
        return
    known = conventions_of(layer)
    assert known is not None
    assert known.threshold is not None
    threshold = getattr(layer, known.threshold)
    if isinstance(threshold, Tensor):
        threshold.data.fill_(reach)
    else:
        setattr(layer, known.threshold, reach)
