"""Auxiliary loss and estimator variance of a noisy run, per layer."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_snn.functional.bias_loss import BiasForm, hinge_bias, snr_bias, synapse_bias
from lightning_snn.functional.estimators import IWST, Estimator, chi_squared, iwst_weight, layer_factors
from lightning_snn.methods.bayes.layers import BayesianMap, BayesLinear
from lightning_snn.nn.folding import time_steps
from lightning_snn.nn.lengths import valid_rows
from lightning_snn.nn.moments import Moments
from lightning_snn.nn.neurons import Neuron
from lightning_snn.nn.phase import check_records
from lightning_snn.nn.run_context import outputs_observed
from lightning_snn.nn.sign import Sign


class NoisyCall(NamedTuple):
    """Statistics of the standardized pre-activations t of one call of a layer of noisy units.

    Attributes:
        name: of the layer.
        chi_squared: ``chi_0^2`` of IW-ST(0), weighted by the squared slope.
        slope_spread: ``E[phi^2] / E[phi]^2`` over all units, samples and steps.
        square: mean of ``t^2``.
        units: number of units per sample and step.
    """

    name: str
    chi_squared: Tensor
    slope_spread: Tensor
    square: Tensor
    units: int


class RunMonitor:
    """Context that records the auxiliary loss and the estimator variance of a noisy run by the names of the layers.

    Args:
        network: a prepared network.
        estimator: the gradient estimator; its variance is known for IW-ST.
        bias_form: form of the auxiliary loss to record; None for none.
        record_variance: record what the variance of the estimator depends on.

    Attributes:
        calls: statistics of the calls of noisy layers, in order; empty if not recorded.
        observe: function that `posterior_noise` must call with the noisy layers; None if it is not needed.
    """

    def __init__(
        self, network: nn.Module, estimator: Estimator, bias_form: BiasForm | None, record_variance: bool
    ) -> None:
        # a compiled network wraps the one that was prepared
        self._names: dict[nn.Module, str] = {
            module: name.removeprefix("_orig_mod").removeprefix(".") or "network"
            for name, module in network.named_modules()
            if isinstance(module, (BayesianMap, Neuron, Sign))
        }
        self._form = bias_form
        self._lam = estimator.lam if record_variance and isinstance(estimator, IWST) else None
        # one entry per call of a layer
        self._bias: dict[str, list[Tensor]] = defaultdict(list)
        self._variances: dict[BayesianMap, list[Tensor]] = defaultdict(list)
        self.calls: list[NoisyCall] = []
        self._last: str | None = None
        self._differentiable = torch.is_grad_enabled()
        self.observe = self._record_neurons if bias_form in ("snr", "hinge") or self._lam is not None else None

    def __enter__(self) -> None:
        layers = [layer for layer in self._names if isinstance(layer, BayesianMap)] if self._form == "synapse" else []
        self._observation = outputs_observed(layers, self._record_map)
        self._observation.__enter__()

    def __exit__(self, *failure: Any) -> None:
        self._observation.__exit__(*failure)

    @property
    def bias(self) -> dict[str, Tensor]:
        """Auxiliary loss of each hidden layer, a scalar with a gradient."""
        # not in the call of a layer, which activation checkpointing makes again without the hook
        of_maps = {
            self._names[layer]: [synapse_bias(layer.weight, variance) for variance in variances]
            for layer, variances in self._variances.items()
        }
        # the output of the last weight layer is the readout, which no binary unit receives
        found = {**self._bias, **of_maps}
        return {name: torch.stack(values).mean() for name, values in found.items() if name != self._last}

    @property
    def chi_squared(self) -> dict[str, Tensor]:
        """Variance over squared gradient of each layer, for lambda < 1 and a linear loss with equal slopes."""
        if self._lam is None or self._lam == 1:
            return {}
        values: dict[str, list[Tensor]] = defaultdict(list)
        for call in self.calls:
            values[call.name].append(call.chi_squared)
        return {name: (1 - self._lam) ** 2 * torch.stack(of_layer).mean() for name, of_layer in values.items()}

    @property
    def variance_factor(self) -> dict[str, Tensor]:
        """Factor of each layer on the second moment over the squared mean of gradients; ``all`` is their product."""
        if self._lam is None or not self.calls:
            return {}
        factors = layer_factors(
            torch.stack([call.chi_squared for call in self.calls]),
            torch.stack([call.slope_spread for call in self.calls]),
            self._lam,
        )
        found: dict[str, Tensor] = {}
        for call, factor in zip(self.calls, factors, strict=True):
            found[call.name] = found[call.name] * factor if call.name in found else factor
        return {**found, "all": factors.prod()}

    def _record_neurons(self, layer: nn.Module, t: Tensor) -> None:
        name, t = self._names[layer], _valid(t)
        if self._form in ("snr", "hinge"):
            self._check_records(layer)
            self._bias[name].append(snr_bias(t) if self._form == "snr" else hinge_bias(t))
        if self._lam is not None:
            t = t.detach()
            slope = iwst_weight(t, t, 1.0)
            # weighted by the squared gradient: saturated units have a large chi-squared and a vanishing gradient
            share = slope.square()
            chi = (share * chi_squared(t, 0.0)).sum() / share.sum()
            spread = share.mean() / slope.mean().square()
            self.calls.append(NoisyCall(name, chi, spread, t.square().mean(), t.shape[1:].numel()))

    def _record_map(self, layer: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        if not isinstance(layer, BayesianMap) or not isinstance(output, Moments):
            return
        self._check_records(layer)
        self._last = self._names[layer]
        # units must be in dimension 1
        variance = _valid(output.variance)
        variance = variance.flatten(0, -2) if isinstance(layer, BayesLinear) else variance
        self._variances[layer].append(variance)

    def _check_records(self, layer: nn.Module) -> None:
        if self._differentiable:
            check_records(layer, "`bias_weight`")


def _valid(rows: Tensor) -> Tensor:
    """Return the rows of a folded tensor that are no padding of sequences of different lengths."""
    steps = time_steps()
    return rows if steps is None else valid_rows(rows, steps)
