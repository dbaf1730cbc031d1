r"""Spiking Bayesian networks: variational posteriors whose noise is the spike noise, trained by IW-ST gradients.

Every weight has a Gaussian posterior ``N(m, sigma^2)``. A layer passes on mean and variance of its pre-activation
(local reparameterisation), the neuron fires with ``P(spike) = Phi((U - threshold) / sqrt(Q))`` of its membrane
moments, and the backward pass is IW-ST(lambda). The objective is the tempered evidence bound

.. math::
    \text{loss} + \beta_t \, \mathrm{KL}(q \,\|\, p) / N , \qquad
    \beta_t = \beta \min(1, \text{noisy epochs} / \text{warm-up}) .

Approximates: IW-ST has little bias through time and a bias that grows with the number of layers; noise is redrawn
each step, which understates the variance of one static weight sample. Exact: the KL, the moments of one layer, the
gradient of linear losses. Cost: O(T) time and memory as for backpropagation through time, with two matrix products
where one was. After Walker, Khajehnejad & Razi 2025; what the library reconstructs rather than reproduces is said in
the README. Not dropout, and not a deep ensemble.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lightning_snn.checks import check_between, check_integer, check_positive
from lightning_snn.functional.surrogate import Smooth
from lightning_snn.functional.variational import sample
from lightning_snn.methods.base import Method, Step
from lightning_snn.methods.task import Prediction
from lightning_snn.nn.bayes import BayesConv2d, BayesianLayer, BayesLinear
from lightning_snn.nn.delays import SynapticDelays
from lightning_snn.nn.folding import run
from lightning_snn.nn.lif import LIF, LeakyLayer
from lightning_snn.nn.moments import Moments, posterior_noise


class SpikingBayes(Method):
    """Spiking Bayesian neural networks with IW-ST gradients (after Walker et al. 2025, arXiv 2505.17962).

    Args:
        lam: lambda of IW-ST in [0, 1]. 1 (straight-through) suits many time steps and layers, 0 (ReinMax) few layers
            and large batches.
        kl_weight: beta of the KL term, at least 0; below 1 the evidence bound is tempered, as small data needs. A
            fresh posterior has 0.8 nats a weight: the network learns where ``0.8 * weights * kl_weight / N`` stays
            below about 0.5.
        mean_epochs: epochs at the start in which the posterior means alone learn, without noise or KL term and by the
            surrogate gradients of the neurons, at least 0. Means that already fit need far fewer noisy epochs.
        warmup_epochs: epochs after those over which the KL weight rises linearly, at least 0.
        gain: initial posterior means are drawn from N(0, gain^2 / fan-in), larger than 0.
        kappa: initial posterior standard deviation of a weight over the one its mean is drawn with, larger than 0.
        prior_scale: prior standard deviation of a weight times sqrt(fan-in), larger than 0.
        samples: K of `predict`; 0 predicts with the posterior mean, one deterministic run.
        keep_weights: keep the network's weights as posterior means instead of drawing them.
        train_size: number of training samples N; None takes it from the Trainer's data.

    Raises:
        ValueError: if an argument is outside its range.
    """

    citation = """@article{walker2025principled,
  title = {A Principled Bayesian Framework for Training Binary and Spiking Neural Networks},
  author = {Walker, James A. and Khajehnejad, Moein and Razi, Adeel},
  journal = {arXiv preprint arXiv:2505.17962}, year = {2025}
}"""

    def __init__(
        self,
        lam: float = 0.5,
        kl_weight: float = 0.01,
        mean_epochs: float = 0.0,
        warmup_epochs: float = 1.0,
        gain: float = 2.0,
        kappa: float = 0.5,
        prior_scale: float = 2.0,
        samples: int = 0,
        keep_weights: bool = False,
        train_size: int | None = None,
    ) -> None:
        super().__init__()
        check_between("lam", lam, 0.0, 1.0)
        check_between("kl_weight", kl_weight, 0.0, float("inf"))
        check_between("mean_epochs", mean_epochs, 0.0, float("inf"))
        check_between("warmup_epochs", warmup_epochs, 0.0, float("inf"))
        check_positive("gain", gain)
        check_positive("kappa", kappa)
        check_positive("prior_scale", prior_scale)
        check_integer("samples", samples, 0)
        if train_size is not None:
            check_integer("train_size", train_size)
        self.lam, self.kl_weight = lam, kl_weight
        self.mean_epochs, self.warmup_epochs = mean_epochs, warmup_epochs
        self.gain, self.kappa, self.prior_scale, self.samples = gain, kappa, prior_scale, samples
        self.keep_weights, self.train_size = keep_weights, train_size

    def prepare(self, network: nn.Module) -> nn.Module:
        """Give every `nn.Linear` and `nn.Conv2d` a posterior; the network that was handed in stays as it is.

        Raises:
            ValueError: naming every layer with parameters that has no Bayesian counterpart.
        """
        refused = _untrainable(network)
        if refused:
            raise ValueError(
                "Expected a network of Linear, Conv2d, spiking and parameter-free layers for SpikingBayes, but got "
                f"{', '.join(refused)}. Normalisation is not needed: posterior noise scales with the input"
            )
        network = copy.deepcopy(network)
        if isinstance(network, (nn.Linear, nn.Conv2d)):
            return self._bayesian(network)
        replaced: dict[nn.Module, BayesianLayer] = {}
        for parent in list(network.modules()):
            # not named_children, which passes over the second place of a layer that stands twice in one parent
            for name, child in parent._modules.items():
                if isinstance(child, (nn.Linear, nn.Conv2d)):
                    layer = replaced[child] if child in replaced else replaced.setdefault(child, self._bayesian(child))
                    setattr(parent, name, layer)
        _mark_binary_inputs(network)
        return network

    def training_step(self, network: nn.Module, x: Tensor, y: Tensor) -> Step:
        noiseless = self.progress.epoch < self.mean_epochs
        output = self.task.read(run(network, x)) if noiseless else self._noisy_output(network, x)
        loss = self.task.loss(output, y)
        return Step(loss + self._kl_term(network), loss.detach(), output.detach())

    def predict(self, network: nn.Module, x: Tensor) -> Prediction:
        if self.samples == 0:
            return super().predict(network, x)
        return self.task.combine([self.task.predict(self._noisy_output(network, x)) for _ in range(self.samples)])

    def kl(self, network: nn.Module) -> Tensor | float:
        """KL of the whole posterior from the prior in nats, untempered; the sum over all Bayesian layers."""
        return sum((layer.kl() for layer in network.modules() if isinstance(layer, BayesianLayer)), 0.0)

    def extra_repr(self) -> str:
        return (
            f"lam={self.lam:g}, kl_weight={self.kl_weight:g}, mean_epochs={self.mean_epochs:g}, "
            f"warmup_epochs={self.warmup_epochs:g}, gain={self.gain:g}, kappa={self.kappa:g}, "
            f"prior_scale={self.prior_scale:g}, samples={self.samples}"
        )

    def _noisy_output(self, network: nn.Module, x: Tensor) -> Tensor:
        with posterior_noise(self.lam):
            outputs = run(network, x)
        return self.task.read(sample(outputs.mean, outputs.variance) if isinstance(outputs, Moments) else outputs)

    def _kl_term(self, network: nn.Module) -> Tensor | float:
        if self.kl_weight == 0:
            return 0.0
        train_size = self.train_size or self.progress.train_size
        if train_size is None:
            raise ValueError(
                "The KL term needs the number of training samples, which this data loader does not tell. "
                "Expected argument `train_size` of SpikingBayes to be an integer, but got None"
            )
        noisy_epochs = self.progress.epoch - self.mean_epochs
        if noisy_epochs < 0:
            return 0.0 * self.kl(network)  # nothing, yet every parameter has a gradient, as several processes require
        warmup = min(1.0, noisy_epochs / self.warmup_epochs) if self.warmup_epochs else 1.0
        return self.kl_weight * warmup * self.kl(network) / train_size

    def _bayesian(self, layer: nn.Linear | nn.Conv2d) -> BayesianLayer:
        options = {"gain": self.gain, "kappa": self.kappa, "prior_scale": self.prior_scale}
        made: BayesianLayer
        if isinstance(layer, nn.Linear):
            made = BayesLinear(layer.in_features, layer.out_features, layer.bias is not None, **options)
        else:
            made = BayesConv2d(
                layer.in_channels,
                layer.out_channels,
                layer.kernel_size,
                layer.stride,
                layer.padding,
                layer.dilation,
                layer.groups,
                layer.bias is not None,
                **options,
            )
        if self.keep_weights:
            made.weight.data = layer.weight.detach().clone()
            if made.bias is not None and layer.bias is not None:
                made.bias.data = layer.bias.detach().clone()
        made.to(layer.weight)
        for parameter in (made.weight, made.weight_log_std):
            parameter.data = torch.empty_like(layer.weight).copy_(parameter)  # the layer's memory format
        return made


def _untrainable(network: nn.Module) -> list[str]:
    """Names and kinds of the modules that own parameters or running statistics and have no Bayesian counterpart."""
    known = (nn.Linear, nn.Conv2d, BayesianLayer, LeakyLayer)
    refused = []
    for name, module in network.named_modules():
        kind = type(module).__name__
        owns = any(True for _ in module.parameters(recurse=False)) or isinstance(module, nn.modules.batchnorm._NormBase)
        if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
            kind += f" with padding_mode={module.padding_mode!r}"
        elif isinstance(module, LIF) and module.dynamics.order != "reset_then_leak":
            kind += f" with order={module.dynamics.order!r}"
        elif isinstance(module, known) or not owns:
            continue
        refused.append(f"{name or 'the network'} ({kind})")
    return refused


def _mark_binary_inputs(network: nn.Module) -> None:
    """Tell every Bayesian layer of a chain whether spikes alone drive it.

    Only `nn.Sequential` says what follows what; in any other module the general path stays.
    """
    driven: dict[BayesianLayer, list[bool]] = {}
    _follow_chain(network, False, driven)
    for layer, binary in driven.items():
        layer.binary_input = all(binary)


def _follow_chain(network: nn.Module, binary: bool, driven: dict[BayesianLayer, list[bool]]) -> bool:
    """Whether the output is binary, given whether the input is; `driven` gathers the inputs of the Bayesian layers."""
    if isinstance(network, nn.Sequential):
        for layer in network:
            binary = _follow_chain(layer, binary, driven)
        return binary
    if isinstance(network, BayesianLayer):
        driven.setdefault(network, []).append(binary)
        return False
    if isinstance(network, LIF):
        return not isinstance(network.dynamics.surrogate, Smooth)
    return binary and isinstance(network, (nn.Flatten, nn.Identity, nn.MaxPool2d, SynapticDelays))
