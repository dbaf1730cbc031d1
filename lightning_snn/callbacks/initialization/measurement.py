"""Measurement of activity and gradients of an initialized module on one batch."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from lightning_snn.callbacks.dry_run import Run, call_order, detached_copy, frozen_copy, isolated_run
from lightning_snn.callbacks.initialization.findings import Finding, judge_by_band
from lightning_snn.callbacks.initialization.relu import RELU_LAYERS, record_calls, relu_findings
from lightning_snn.callbacks.initialization.spiking import Recorder, contributing_layers, spiking_findings
from lightning_snn.callbacks.initialization.thresholds import Thresholds
from lightning_snn.functional.jacobian import gradient_ratio
from lightning_snn.methods.tasks import Loss, mean_cross_entropy
from lightning_snn.methods.ttfs import OffsetMap
from lightning_snn.nn.folding import run as run_folded
from lightning_snn.nn.observation import named_spiking_layers, observe
from lightning_snn.nn.registry import is_spiking_layer, remedy_for_missing_layers


def check_initialization(
    network: nn.Module, batch: tuple[Tensor, Tensor], loss: Loss | None = None, thresholds: Thresholds | None = None
) -> list[Finding]:
    """Measure how activity and gradients pass through a network with time folded into the batch.

    It is `measure_initialization` of ``loss(run(network, x), y)``.

    Args:
        network: plain module that maps `[T*B, ...]` to `[T*B, ...]`.
        batch: inputs `[T, B, ...]` and targets `[B, ...]`.
        loss: function from outputs `[T, B, ...]` and targets to a scalar; None is cross-entropy of the mean over time.
        thresholds: limits of the verdicts; None uses the defaults.

    Returns:
        Findings in the order of the layers.

    Raises:
        ValueError: if the network has no spiking layer or ReLU, or no trained weight matrix.

    Example:
        >>> from lightning_snn import LIF
        >>> network = nn.Sequential(nn.Linear(4, 8), LIF(), nn.Linear(8, 3))
        >>> findings = check_initialization(network, (torch.rand(10, 16, 4), torch.arange(16) % 3))
        >>> [finding.quantity for finding in findings][:3]
        ['firing_rate', 'dead_share', 'saturated_share']
    """
    return measure_initialization(network, folded_loss(batch, loss), thresholds)


def folded_loss(batch: tuple[Tensor, Tensor], loss: Loss | None = None) -> Run:
    """Return a function from a network with time folded into the batch to its loss on a batch.

    Without `loss` it is the cross-entropy of the mean over time.
    """
    x, y = batch
    measured = mean_cross_entropy if loss is None else loss
    return lambda network: measured(run_folded(network, x), y)


def measure_initialization(module: nn.Module, run: Run, thresholds: Thresholds | None = None) -> list[Finding]:
    r"""Measure how activity and gradients pass through a module.

    Findings for each spiking layer:

    - `firing_rate`: spikes per neuron and time step;
    - `dead_share`: fraction of neurons that never spike;
    - `saturated_share`: fraction of neurons that spike in more than 95 % of the time steps;
    - `membrane_mean` and `membrane_sd`: mean and standard deviation of the membrane potential in units of the
      threshold, if it is known;
    - `spike_gain`: :math:`\|J\|_F / \sqrt{N}` of the Jacobian of all its spikes with respect to all those of the layer
      before, through time and by the surrogate derivatives; for the last layer with respect to the first, `depth_gain`.

    Layers whose spikes do not affect the loss, for example with a readout of the membrane potential, have no verdicts.
    A silent output layer, without weights after it, still learns and is only a warning.

    Findings in a module without spiking layers, for each ReLU, `FirstSpike`, `AlphaLinear`, and `AlphaConv2d`:

    - `active_fraction`: fraction of neurons and samples with an output above 0;
    - `dead_share`: fraction of neurons that are never active;
    - `silent_samples`: fraction of samples for which no neuron of the layer is active;
    - for `AlphaLinear` and `AlphaConv2d`, `smallest_slope` and `slopes_not_positive`; for neurons with windows,
      `overflow`, the fraction that should have spiked before;
    - of the Jacobian of each layer with respect to the one before, mean over samples: `spectral_radius`, if it is
      square, and `singular_value`; for the last layer with respect to the first, `depth_gain`.

    Findings for each weight matrix: `gradient_norm`; and `gradient_ratio`, that of the first to the last, in the order
    of their use, of those that the loss depends on. If it does not depend on all, `spike_derivative` is 0 for layers
    whose spikes have no gradient.

    All is measured on a copy in the mode of the module, which is training mode in a fit: with dropout, and with batch
    normalization by the batch, unless the module has it in evaluation mode. In a module without spiking layers the
    statistics of the batch are held fixed, for Jacobians of single samples. The module, its buffers and state, and all
    random generators stay unchanged.

    Args:
        module: any module.
        run: function from a copy of the module to a scalar loss. It is called once, or twice
            for ReLUs with batch normalization.
        thresholds: limits of the verdicts; None uses the defaults.

    Returns:
        Findings in the order in which layers run.

    Raises:
        ValueError: if the module has no spiking layer or ReLU that runs, no trained weight matrix, or if its loss
            depends on none.
    """
    thresholds = Thresholds() if thresholds is None else thresholds
    check_layers(module)
    with isolated_run(module):
        # samples must not affect one another in the Jacobians of single samples
        copied = detached_copy(module) if named_spiking_layers(module) else frozen_copy(module, run)
        weights = _weights(copied)
        if not weights:
            raise ValueError("Expected argument `network` to have layers with trained weights, but got none")
        recorder = Recorder()
        with (
            observe(copied, recorder, membranes=True),
            record_calls(copied) as calls,
            call_order(copied, lambda layer: is_spiking_layer(layer) or _weight(layer) is not None) as order,
        ):
            loss = run(copied)
        if not recorder.layers and not calls:
            raise ValueError("Expected a run that calls spiking layers or ReLUs, but got one that calls none")
        # in the order of their use, if it is known
        names = sorted(weights, key=lambda name: order.index(name) if name in order else len(order))
        if not loss.requires_grad:
            raise ValueError("Expected a loss that depends on trained weights, but got one without a gradient")
        gradients = torch.autograd.grad(loss, [weights[name] for name in names], retain_graph=True, allow_unused=True)
        if recorder.layers:
            all_learn = all(gradient is not None for gradient in gradients)
            contributing = contributing_layers(loss, recorder.layers)
            hidden = {each.name for each in recorder.layers if _feeds_weights(copied, each.layer, order, weights)}
            found = spiking_findings(recorder.layers, contributing, hidden, all_learn, thresholds)
        else:
            found = relu_findings(calls, thresholds)
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
    """Return the ratio of the first gradient norm to the last, and the weights that contribute most to it."""
    found = judge_by_band("gradient_ratio", "all", gradient_ratio([*norms.values()]), thresholds.gradient_ratio)
    changes = {after: norms[before] / norms[after] for before, after in pairwise(norms) if norms[after] > 0}
    if found.verdict == "ok" or not math.isfinite(found.value) or not changes:
        return found
    small = found.value < thresholds.gradient_ratio.passes[0]
    where = (min if small else max)(changes, key=lambda name: changes[name])
    too = "small" if small else "large"
    return found._replace(remedy=f"check {where} first, whose weights may be too {too}: {found.remedy}")


def check_layers(module: nn.Module) -> None:
    """Raise an error for a module with nothing to measure.

    Raises:
        ValueError: if it has no spiking layer or ReLU.
    """
    if not named_spiking_layers(module) and not any(isinstance(layer, RELU_LAYERS) for layer in module.modules()):
        raise ValueError(
            f"Expected a module with spiking layers or ReLUs for InitializationCheck, but got {type(module).__name__} "
            f"without any. {remedy_for_missing_layers(module)}"
        )


def _feeds_weights(network: nn.Module, layer: nn.Module, order: list[str], weights: dict[str, Tensor]) -> bool:
    """Return whether trained weights are used after a layer."""
    after = order[next(index for index, name in enumerate(order) if network.get_submodule(name) is layer) + 1 :]
    return any(name in weights for name in after)


def _weights(network: nn.Module) -> dict[str, Tensor]:
    """Return the trained weight matrix of each module that has one."""
    found = ((name, _weight(layer)) for name, layer in network.named_modules())
    return {name: weight for name, weight in found if weight is not None}


def _weight(layer: nn.Module) -> Tensor | None:
    trained = (each for each in layer.parameters(recurse=False) if each.requires_grad and each.dim() > 1)
    return None if isinstance(layer, OffsetMap) else next(trained, None)
