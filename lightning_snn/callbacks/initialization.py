"""Whether a network can be trained as it was initialised, said with the first batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_snn.callbacks.modules import network_of, read_batch, task_loss
from lightning_snn.checks import check_choice, check_integer
from lightning_snn.functional.jacobian import (
    Band,
    Thresholds,
    Verdict,
    gain,
    gradient_ratio,
    largest_singular_value,
    slope_statistics,
    spectral_radius,
)
from lightning_snn.nn.folding import run
from lightning_snn.nn.registry import is_spiking_layer
from lightning_snn.nn.ttfs import AlphaConv2d, AlphaLinear, FirstSpike, OffsetMap

Loss = Callable[[Tensor, Tensor], Tensor]

_ALPHA = (AlphaLinear, AlphaConv2d)
_RECTIFIERS = (nn.ReLU, FirstSpike, *_ALPHA)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Finding(NamedTuple):
    """One measured value.

    Attributes:
        quantity: what was measured.
        layer: where; "all" is the whole network.
        value: the value.
        verdict: "pass", "warn" or "fail"; None where a value is for information only.
    """

    quantity: str
    layer: str
    value: float
    verdict: Verdict | None


def check_initialization(
    network: nn.Module, batch: tuple[Tensor, Tensor], loss: Loss | None = None, thresholds: Thresholds | None = None
) -> list[Finding]:
    """Measure how activity and gradients go through a network, and judge it.

    For each layer of neurons or rectifiers: `active_fraction`, that of neurons and samples with an output above 0 (with
    time steps, at any of them), `dead_neurons`, those that no sample makes active, and `silent_samples`, those for
    which no neuron of the layer is. For each weight matrix `gradient_norm`, and the `gradient_ratio` of the first to
    the last. For `AlphaLinear` and `AlphaConv2d` `smallest_slope` and `slopes_not_positive`; for neurons with windows
    the fraction that should have spiked before (`overflow`). Where no layer has a state in time, also the Jacobian of
    each layer with respect to the one before it, mean over samples: `spectral_radius` of square ones and
    `singular_value`, and of the product over depth `depth_gain`, ||P||_F / sqrt(N).

    All is measured on a copy in evaluation mode, in which batch normalisation has the statistics of the batch.

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
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> findings = check_initialization(network, (torch.rand(1, 16, 4), torch.arange(16) % 3))
        >>> print(findings_table(findings))
    """
    thresholds = Thresholds() if thresholds is None else thresholds
    x, y = batch
    copied = copy.deepcopy(network).eval()
    copied.zero_grad()
    with torch.random.fork_rng([x.device.index] if x.device.type == "cuda" else []), torch.enable_grad():
        _take_batch_statistics(copied, x)
        layers, outputs = _outputs(copied, x)
        weights = _weights(copied)
        if not layers or not weights:
            missing = "neurons or rectifiers" if not layers else "trained weights"
            raise ValueError(f"Expected argument `network` to have layers of {missing}, but got none")
        found = _activity(layers, len(x), thresholds)
        if not any(is_spiking_layer(layer) and not isinstance(layer, _RECTIFIERS) for _, layer, _, _ in layers):
            found += _jacobians([(name, output) for name, _, output, _ in layers], thresholds)
        loss = _mean_cross_entropy if loss is None else loss
        gradients = torch.autograd.grad(
            loss(outputs, y), list(weights.values()), allow_unused=True, materialize_grads=True
        )
    norms = [gradient.double().norm().item() for gradient in gradients]
    found += [Finding("gradient_norm", name, norm, None) for name, norm in zip(weights, norms, strict=True)]
    found.append(_judged("gradient_ratio", "all", gradient_ratio(norms), thresholds.gradient_ratio))
    return found


def findings_table(findings: Sequence[Finding]) -> str:
    """Findings as lines of text."""
    rows = [("quantity", "layer", "value", "verdict")]
    rows += [(each.quantity, each.layer, f"{each.value:.4g}", each.verdict or "") for each in findings]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


class InitializationCheck(pl.Callback):
    """Says with the first batch of a fit whether activity and gradients go through the network.

    Measured is what `check_initialization` finds, before the first step and on copies, in the precision of the
    parameters: training goes on to the last bit as it would without this callback. It is logged as
    `initialization/QUANTITY/LAYER` and printed as a table. A fit that resumes from a checkpoint is not measured. Of
    several processes each measures its own part of the first batch; what is logged is the mean, what is printed that of
    the first, and a failure in one is a failure of all.

    It works on any LightningModule with a network that maps `[T*B, ...]` to one tensor `[T*B, ...]`; a network without
    time takes a batch of one time step. Where the module has a `method` with a `task`, as a `SpikingModule` has, the
    loss is the method's.

    Args:
        on_fail: what a verdict "fail" brings: "warn" or "error".
        network: name of the network within the module, dots and all.
        loss: from outputs `[T, B, ...]` and targets to a scalar; None is that of the module's method, or, where it has
            none, the cross-entropy of the mean over time.
        read_batch: from a batch to ``(x [T, B, ...], y [B, ...])``; None takes batches that are just that.
        samples: how many samples of the batch to use, from the first.
        thresholds: when it passes; None are the defaults.

    Raises:
        ValueError: if an argument is outside its range; with the first batch, if the module has no such network, or one
            without layers to measure.
        RuntimeError: with the first batch, for ``on_fail="error"``, naming what failed.

    Example:
        >>> trainer = Trainer(callbacks=[InitializationCheck(on_fail="error")])
        >>> trainer.fit(module, data)
    """

    def __init__(
        self,
        on_fail: Literal["warn", "error"] = "warn",
        network: str = "network",
        loss: Loss | None = None,
        read_batch: Callable[[Any], tuple[Tensor, Tensor]] | None = None,
        samples: int = 16,
        thresholds: Thresholds | None = None,
    ) -> None:
        check_choice("on_fail", on_fail, ("warn", "error"))
        check_integer("samples", samples)
        self.on_fail, self.network, self.loss = on_fail, network, loss
        self.read_batch, self.samples, self.thresholds = read_batch, samples, thresholds
        self.findings: list[Finding] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.findings = []
        network_of(pl_module, self.network)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # with accumulated gradients several batches come before the first step
        if trainer.global_step > 0 or self.findings:
            return
        x, y = read_batch(batch, self.read_batch, type(self).__name__)
        self.findings = check_initialization(
            network_of(pl_module, self.network),
            (x[:, : self.samples], y[: self.samples]),
            self.loss or task_loss(pl_module),
            self.thresholds,
        )
        values = {f"initialization/{each.quantity}/{each.layer}": each.value for each in self.findings}
        pl_module.log_dict(values, on_step=True, on_epoch=False, sync_dist=trainer.world_size > 1)
        if trainer.is_global_zero:
            print(findings_table(self.findings))
        failed = [
            f"{each.quantity} of {each.layer} is {each.value:.4g}" for each in self.findings if each.verdict == "fail"
        ]
        if not trainer.strategy.reduce_boolean_decision(bool(failed), all=False):
            return
        message = (
            "The network cannot be expected to train from its initialization: "
            f"{'; '.join(failed) or 'another process says so'}"
        )
        if self.on_fail == "error":
            raise RuntimeError(message)
        rank_zero_warn(message)


# name, module, output [T*B, ...] and input of a call
_Call = tuple[str, nn.Module, Tensor, Tensor]


def _outputs(network: nn.Module, x: Tensor) -> tuple[list[_Call], Tensor]:
    """Calls of neurons and rectifiers in their order, and what the network returns."""
    calls: list[_Call] = []

    def keep(name: str) -> Any:
        def hook(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            number = sum(each is layer for _, each, _, _ in calls)
            spikes = output[0] if isinstance(output, tuple) else output
            calls.append((f"{name}_{number + 1}" if number else name, layer, spikes, args[0]))

        return hook

    for name, layer in network.named_modules():
        if isinstance(layer, _RECTIFIERS) or is_spiking_layer(layer):
            layer.register_forward_hook(keep(name or type(layer).__name__))
    return calls, run(network, x)


def _weights(network: nn.Module) -> dict[str, Tensor]:
    """The trained weight matrix of each module that has one."""
    found = {}
    for name, layer in network.named_modules():
        trained = [each for each in layer.parameters(recurse=False) if each.requires_grad and each.dim() > 1]
        if trained and not isinstance(layer, OffsetMap):
            found[name or type(layer).__name__] = trained[0]
    return found


def _activity(layers: list[_Call], time_steps: int, thresholds: Thresholds) -> list[Finding]:
    found = []
    for name, layer, output, heard in layers:
        active = output.detach().unflatten(0, (time_steps, -1)).flatten(2) > 0
        over_time = is_spiking_layer(layer) and not isinstance(layer, _RECTIFIERS)
        band = thresholds.active_over_time if over_time else thresholds.active_fraction
        fraction = (active.any(0) if over_time else active).double().mean().item()
        silent = (~active.any(0).any(1)).double().mean().item()
        found.append(_judged("active_fraction", name, fraction, band))
        found.append(Finding("dead_neurons", name, (~active.any(0).any(0)).double().mean().item(), None))
        found.append(Finding("silent_samples", name, silent, "warn" if silent > 0 else "pass"))
        if isinstance(layer, _ALPHA):
            slopes = slope_statistics(layer.slope)
            found.append(Finding("smallest_slope", name, slopes.minimum, slopes.verdict(thresholds)))
            found.append(Finding("slopes_not_positive", name, slopes.not_positive, None))
        if isinstance(layer, (FirstSpike, *_ALPHA)):
            drive = heard if isinstance(layer, FirstSpike) else output
            found.append(Finding("overflow", name, (drive > layer.window).double().mean().item(), None))
    return found


def _jacobians(outputs: list[tuple[str, Tensor]], thresholds: Thresholds) -> list[Finding]:
    """Jacobians of each layer with respect to the one before, and of the last with respect to the first."""
    found = []
    seed = torch.Generator(outputs[0][1].device).manual_seed(0)
    for (_, before), (name, output) in pairwise(outputs):
        if before[0].numel() == output[0].numel():
            radius = spectral_radius(output, before, generator=seed).mean().item()
            found.append(_judged("spectral_radius", name, radius, thresholds.spectral_radius))
        value = largest_singular_value(output, before, generator=seed).mean().item()
        found.append(Finding("singular_value", name, value, None))
    if len(outputs) > 1:
        # of all samples together, so that one of them may not hide the others
        depth = gain(outputs[-1][1], outputs[0][1], generator=seed).square().mean().sqrt().item()
        found.append(_judged("depth_gain", "all", depth, thresholds.depth_gain))
    return found


def _take_batch_statistics(network: nn.Module, x: Tensor) -> None:
    norms = [layer for layer in network.modules() if isinstance(layer, _NORMS)]
    if not norms:
        return
    for layer in norms:
        # not the batch of all processes: nobody else measures in step
        layer.momentum = 1.0
        layer.train()
    with torch.no_grad():
        run(network, x)
    for layer in norms:
        layer.eval()


def _judged(quantity: str, layer: str, value: float, band: Band) -> Finding:
    return Finding(quantity, layer, value, band.verdict(value))


def _mean_cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(outputs.mean(0), y)
