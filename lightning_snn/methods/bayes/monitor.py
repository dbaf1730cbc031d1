"""Auxiliary loss and estimator variance of a noisy run, per layer."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from lightning_snn.functional.bias_loss import BiasForm, hinge_bias, snr_bias, synapse_bias
from lightning_snn.functional.estimators import IWST, Estimator, chi_squared, iwst_weight
from lightning_snn.methods.bayes.layers import BayesianMap, BayesLinear
from lightning_snn.nn.folding import time_steps
from lightning_snn.nn.lengths import valid_rows
from lightning_snn.nn.moments import Moments
from lightning_snn.nn.neurons import Neuron
from lightning_snn.nn.phase import check_records
from lightning_snn.nn.run_context import outputs_observed
from lightning_snn.nn.sign import Sign


class RunMonitor:
    """Context that records the auxiliary loss and the estimator variance of a noisy run by the names of the layers.

    Args:
        network: a prepared network.
        estimator: the gradient estimator; `chi_squared` is known for IW-ST with lambda below 1.
        bias_form: form of the auxiliary loss to record; None for none.
        record_chi_squared: record `chi_squared`.

    Attributes:
        observe: function that `posterior_noise` must call with the noisy layers; None if it is not needed.
    """

    def __init__(
        self, network: nn.Module, estimator: Estimator, bias_form: BiasForm | None, record_chi_squared: bool
    ) -> None:
        # a compiled network wraps the one that was prepared
        self._names: dict[nn.Module, str] = {
            module: name.removeprefix("_orig_mod").removeprefix(".") or "network"
            for name, module in network.named_modules()
            if isinstance(module, (BayesianMap, Neuron, Sign))
        }
        self._form = bias_form
        self._lam = estimator.lam if record_chi_squared and isinstance(estimator, IWST) and estimator.lam < 1 else None
        # one entry per call of a layer
        self._bias: dict[str, list[Tensor]] = defaultdict(list)
        self._variances: dict[BayesianMap, list[Tensor]] = defaultdict(list)
        self._chi_squared: dict[str, list[Tensor]] = defaultdict(list)
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
        """Variance over squared gradient of each layer of neurons, for a linear loss with equal slopes."""
        return {name: torch.stack(values).mean() for name, values in self._chi_squared.items()}

    def _record_neurons(self, layer: nn.Module, t: Tensor) -> None:
        name, t = self._names[layer], _valid(t)
        if self._form in ("snr", "hinge"):
            self._check_records(layer)
            self._bias[name].append(snr_bias(t) if self._form == "snr" else hinge_bias(t))
        if self._lam is not None:
            t = t.detach()
            # weighted by the squared gradient: saturated units have a large chi-squared and a vanishing gradient
            share = iwst_weight(t, t, 1.0).square()
            self._chi_squared[name].append((share * chi_squared(t, self._lam)).sum() / share.sum())

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
