"""Activity and gradients of a module as it is initialized, on one batch."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from lightning_snn.callbacks.dry_run import Run, first_calls, prepared_copy, without_a_trace
from lightning_snn.callbacks.initialization.findings import Finding, judged
from lightning_snn.callbacks.initialization.relu import RECTIFIERS, rectifier_findings, watched
from lightning_snn.callbacks.initialization.spiking import Recorder, names_heard, spiking_findings
from lightning_snn.callbacks.initialization.thresholds import Thresholds
from lightning_snn.functional.jacobian import gradient_ratio
from lightning_snn.methods.task import Loss, mean_cross_entropy
from lightning_snn.methods.ttfs.layers import OffsetMap
from lightning_snn.nn.folding import run as run_folded
from lightning_snn.nn.observation import named_spiking_layers, observe
from lightning_snn.nn.registry import is_spiking_layer


def check_initialization(
    network: nn.Module, batch: tuple[Tensor, Tensor], loss: Loss | None = None, thresholds: Thresholds | None = None
) -> list[Finding]:
    """Measure how activity and gradients go through a network with time folded into the batch, and judge it.

    `measure_initialization` of ``loss(run(network, x), y)``.

    Args:
        network: a plain module that maps `[T*B, ...]` to `[T*B, ...]`.
        batch: inputs `[T, B, ...]` and targets `[B, ...]`.
        loss: from outputs `[T, B, ...]` and targets to a scalar; None is cross-entropy of the mean over time.
        thresholds: when it passes; None are the defaults.

    Returns:
        what was found, in the order of the layers.

    Raises:
        ValueError: if the network has no layer of neurons or rectifiers, or no trained weight matrix.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), LIF(), nn.Linear(8, 3))
        >>> findings = check_initialization(network, (torch.rand(10, 16, 4), torch.arange(16) % 3))
        >>> print(findings_table(findings))
    """
    return measure_initialization(network, folded_loss(batch, loss), thresholds)


def folded_loss(batch: tuple[Tensor, Tensor], loss: Loss | None = None) -> Run:
    """A run of a network with time folded into the batch, to its loss; None is cross-entropy of the mean over time."""
    x, y = batch
    measured = mean_cross_entropy if loss is None else loss
    return lambda network: measured(run_folded(network, x), y)


def measure_initialization(module: nn.Module, run: Run, thresholds: Thresholds | None = None) -> list[Finding]:
    r"""Measure how activity and gradients go through a module, and judge it.

    For each spiking layer `firing_rate`, spikes per neuron and step; `dead_share`, that of its neurons which never
    spike; `saturated_share`, that of neurons which spike in more than 95 % of the steps; `membrane_mean` and
    `membrane_sd` in units of the threshold, where the membrane is known; `spike_gain`, :math:`\|J\|_F / \sqrt{N}` of
    the Jacobian, through time and by the surrogate derivatives, of all its spikes with respect to all of the layer
    before; and of the last layer with respect to the first `depth_gain`. Layers of whose spikes the loss does not hear,
    those whose membranes are read out, say, are measured and not judged. A silent output, with no weights after it,
    still learns, and is no more than a warning.

    In a module without spiking layers, for each ReLU, `FirstSpike`, `AlphaLinear` and `AlphaConv2d`: `active_fraction`,
    that of neurons and samples with an output above 0, `dead_share`, and `silent_samples`, those for which no neuron of
    the layer is active. For `AlphaLinear` and `AlphaConv2d` `smallest_slope` and `slopes_not_positive`; for neurons
    with windows the fraction that should have spiked before (`overflow`). Of the Jacobian of each layer with respect to
    the one before it, mean over samples: `spectral_radius` of square ones and `singular_value`, and `depth_gain`.

    For each weight matrix `gradient_norm`, and the `gradient_ratio` of the first to the last in the order in which they
    are used, of those that the loss depends on. Where it does not depend on all, `spike_derivative` is 0 for layers
    whose spikes pass no gradient on.

    All is measured on a copy in evaluation mode, in which batch normalization has the statistics of the batch, or its
    own where the module has it in evaluation mode. The module, what it keeps and all random numbers stay as they are.

    Args:
        module: any module.
        run: from such a module, a copy, to a scalar loss. It is called once, with batch normalization twice.
        thresholds: when it passes; None are the defaults.

    Returns:
        what was found, in the order in which layers run.

    Raises:
        ValueError: if the module has no layer of neurons or rectifiers that runs, no trained weight matrix, or its loss
            depends on none.
    """
    thresholds = Thresholds() if thresholds is None else thresholds
    check_layers(module)
    with without_a_trace(module):
        copied = prepared_copy(module, run)
        weights = _weights(copied)
        if not weights:
            raise ValueError("Expected argument `network` to have layers of trained weights, but got none")
        recorder = Recorder()
        with (
            observe(copied, recorder, membranes=True),
            watched(copied) as calls,
            first_calls(copied, lambda layer: is_spiking_layer(layer) or _weight(layer) is not None) as order,
        ):
            loss = run(copied)
        if not recorder.layers and not calls:
            raise ValueError("Expected a run that calls neurons or rectifiers, but got one that calls none of them")
        # by use, where that is known
        names = sorted(weights, key=lambda name: order.index(name) if name in order else len(order))
        if not loss.requires_grad:
            raise ValueError("Expected a loss that depends on trained weights, but got one without a gradient")
        gradients = torch.autograd.grad(loss, [weights[name] for name in names], retain_graph=True, allow_unused=True)
        if recorder.layers:
            all_learn = all(gradient is not None for gradient in gradients)
            heard = names_heard(loss, recorder.layers)
            hidden = {each.name for each in recorder.layers if _feeds_weights(copied, each.layer, order, weights)}
            found = spiking_findings(recorder.layers, heard, hidden, all_learn, thresholds)
        else:
            found = rectifier_findings(calls, thresholds)
    learning: dict[str, float] = {}
    for name, gradient in zip(names, gradients, strict=True):
        norm = 0.0 if gradient is None else gradient.double().norm().item()
        name = name or type(module).__name__
        found.append(Finding("gradient_norm", name, norm, None))
        if gradient is not None:
            learning[name] = norm
    if not learning:
        raise ValueError("Expected a loss that depends on trained weights, but got one that depends on none")
    return [*found, _ratio(learning, thresholds)]


def _ratio(norms: dict[str, float], thresholds: Thresholds) -> Finding:
    """The ratio of the first gradient norm to the last, and across which weights most of it arises."""
    found = judged("gradient_ratio", "all", gradient_ratio([*norms.values()]), thresholds.gradient_ratio)
    changes = {after: norms[before] / norms[after] for before, after in pairwise(norms) if norms[after] > 0}
    if found.verdict == "ok" or not math.isfinite(found.value) or not changes:
        return found
    small = found.value < thresholds.gradient_ratio.passes[0]
    where = (min if small else max)(changes, key=lambda name: changes[name])
    too = "small" if small else "large"
    return found._replace(remedy=f"look first at {where}, whose weights may be too {too}: {found.remedy}")


def check_layers(module: nn.Module) -> None:
    """Refuse a module with nothing to measure.

    Raises:
        ValueError: if it has no layer of neurons or rectifiers.
    """
    if not named_spiking_layers(module) and not any(isinstance(layer, RECTIFIERS) for layer in module.modules()):
        raise ValueError(
            f"Expected a module with layers of neurons or rectifiers for InitializationCheck, but got "
            f"{type(module).__name__}, which has none; `register_spiking_layer` makes neurons of one's own known"
        )


def _feeds_weights(network: nn.Module, layer: nn.Module, order: list[str], weights: dict[str, Tensor]) -> bool:
    """Whether trained weights are used after a layer, or it is an output of the network."""
    after = order[next(index for index, name in enumerate(order) if network.get_submodule(name) is layer) + 1 :]
    return any(name in weights for name in after)


def _weights(network: nn.Module) -> dict[str, Tensor]:
    """The trained weight matrix of each module that has one."""
    found = ((name, _weight(layer)) for name, layer in network.named_modules())
    return {name: weight for name, weight in found if weight is not None}


def _weight(layer: nn.Module) -> Tensor | None:
    trained = (each for each in layer.parameters(recurse=False) if each.requires_grad and each.dim() > 1)
    return None if isinstance(layer, OffsetMap) else next(trained, None)
