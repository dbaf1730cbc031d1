"""What `SpikingBayes` looks at in a noisy run: the auxiliary loss and the variance of the estimator, layer by layer."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

from lightning_snn.functional.bias_loss import BiasForm, hinge_bias, snr_bias, synapse_bias
from lightning_snn.functional.estimators import IWST, Estimator, chi_squared, iwst_weight
from lightning_snn.methods.bayes.layers import BayesianMap, BayesLinear
from lightning_snn.nn.moments import Moments


class Watch:
    """Gathers, within its context, what the auxiliary loss and the monitor need, by the names of the layers.

    Args:
        network: a prepared network.
        estimator: of the gradient; `chi_squared` is known for IW-ST with lambda below 1.
        bias_form: which auxiliary loss to gather, None for none.
        looks: whether to gather `chi_squared`.

    Attributes:
        observe: what `posterior_noise` is to call with the noisy layers; None if nothing asks for it.
    """

    def __init__(self, network: nn.Module, estimator: Estimator, bias_form: BiasForm | None, looks: bool) -> None:
        self._names = {module: name or "network" for name, module in network.named_modules()}
        self._form = bias_form
        self._lam = estimator.lam if looks and isinstance(estimator, IWST) and estimator.lam < 1 else None
        # a layer that is called twice has two of each
        self._bias: dict[str, list[Tensor]] = defaultdict(list)
        self._chi_squared: dict[str, list[Tensor]] = defaultdict(list)
        self._last: str | None = None
        self.observe = self._see_neurons if bias_form in ("snr", "hinge") or self._lam is not None else None

    def __enter__(self) -> None:
        watched = [layer for layer in self._names if isinstance(layer, BayesianMap)] if self._form == "synapse" else []
        self._hooks = [layer.register_forward_hook(self._see_map) for layer in watched]

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    @property
    def bias(self) -> dict[str, Tensor]:
        """The auxiliary loss of every hidden layer, a scalar with a gradient."""
        # what the last weight layer gives is read out: no binary unit hears it
        return {name: torch.stack(values).mean() for name, values in self._bias.items() if name != self._last}

    @property
    def chi_squared(self) -> dict[str, Tensor]:
        """Variance of the gradient of every layer of neurons over its square, for a linear loss of equal slopes."""
        return {name: torch.stack(values).mean() for name, values in self._chi_squared.items()}

    def _see_neurons(self, layer: nn.Module, t: Tensor) -> None:
        name = self._names[layer]
        if self._form in ("snr", "hinge"):
            self._bias[name].append(snr_bias(t) if self._form == "snr" else hinge_bias(t))
        if self._lam is not None:
            t = t.detach()
            # saturated units have a large chi-squared and hardly a gradient: each counts by the square of its own
            share = iwst_weight(t, t, 1.0).square()
            self._chi_squared[name].append((share * chi_squared(t, self._lam)).sum() / share.sum())

    def _see_map(self, layer: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        if not isinstance(layer, BayesianMap) or not isinstance(output, Moments):
            return
        self._last = self._names[layer]
        # units in dimension 1
        variance = output.variance.flatten(0, -2) if isinstance(layer, BayesLinear) else output.variance
        self._bias[self._last].append(synapse_bias(layer.weight, variance))
