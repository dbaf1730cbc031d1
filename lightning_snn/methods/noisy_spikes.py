r"""Noisy spikes without a posterior: straight-through training with noise of a fixed size on the input currents.

The neurons of layer l fire with ``P(spike) = Phi((U - threshold) / std_l)``, by default with ``std_l = std sqrt(l)``,
the profile of a new posterior in residual networks. The gradient is that of IW-ST(lambda), and the objective is the
loss. Exact and approximate in the same respects as `SpikingBayes`. Cost: that of backpropagation through time, without
further parameters and without a second matrix product.

A baseline that separates the effect of the noise in a Bayesian network from that of its posterior. Noise on input
currents while training goes back to Bengio et al. 2013. Not dropout, and without uncertainty of the weights.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

from lightning_snn.checks import check_choice, check_positive
from lightning_snn.functional.estimators import Estimator, EstimatorName
from lightning_snn.functional.noisy_lif import NoiseMode
from lightning_snn.methods.base import Step
from lightning_snn.methods.noisy import NoisyMethod, noise_refusals
from lightning_snn.nn.layer_rules import copy_network, refuse
from lightning_snn.nn.neurons import Neuron
from lightning_snn.nn.registry import parts_of_neurons
from lightning_snn.nn.residual import GaussianNoise
from lightning_snn.nn.sign import Sign

Profile = Literal["constant", "sqrt_depth"]


class NoisySpikes(NoisyMethod):
    """Straight-through training with spike noise of a fixed size: a non-Bayesian baseline.

    Args:
        std: standard deviation of the noise on the input current of the first layer of neurons, larger than 0, in units
            of the membrane potential.
        profile: "sqrt_depth" multiplies it by ``sqrt(l)`` at the l-th layer of neurons in order of registration;
            "constant" does not.
        lam: lambda of IW-ST in [0, 1].
        estimator: gradient estimator in place of IW-ST(lambda), by name or as an `Estimator` for Gaussian noise.
        noise_mode: "moment" or "step", see `functional.noisy_lif`.
        samples: number of samples K of `predict`; 0 predicts without noise.
        sample_memory: memory in MiB that the activations of one layer may take while K samples run in parallel.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> module = SpikingModule(network, NoisySpikes(std=0.5, samples=4), num_classes=3)
        >>> module.method.predict(module.network, x).samples.shape
        torch.Size([4, 2, 3])
    """

    citation = """@article{bengio2013estimating,
  title = {Estimating or Propagating Gradients Through Stochastic Neurons for Conditional Computation},
  author = {Bengio, Yoshua and L{\\'e}onard, Nicholas and Courville, Aaron},
  journal = {arXiv preprint arXiv:1308.3432}, year = {2013}
}"""

    def __init__(
        self,
        std: float = 0.5,
        profile: Profile = "sqrt_depth",
        lam: float = 1.0,
        estimator: EstimatorName | Estimator | None = None,
        noise_mode: Literal["moment", "step"] = "moment",
        samples: int = 0,
        sample_memory: float = 512.0,
    ) -> None:
        mode: NoiseMode = noise_mode
        check_choice("noise_mode", mode, ("moment", "step"))
        super().__init__(lam, estimator, mode, samples, "noise", sample_memory)
        check_positive("std", std)
        check_choice("profile", profile, ("constant", "sqrt_depth"))
        self.std, self.profile = std, profile

    def prepare(self, network: nn.Module) -> nn.Module:
        """Return a copy of the network with a `GaussianNoise` before every neuron and `Sign` layer.

        Raises:
            ValueError: if the network has no such layer, or if a layer cannot fire by noise; the message names all of
                them.
        """
        refuse("NoisySpikes", noise_refusals(network, self.noise_mode))
        network = copy_network("NoisySpikes", network)
        parts = parts_of_neurons(network)
        places = [
            (parent, name, child)
            for parent in network.modules()
            for name, child in parent._modules.items()
            if isinstance(child, (Neuron, Sign)) and child not in parts
        ]
        if not places:
            raise ValueError("Expected a network with neurons or Sign layers inside for NoisySpikes, but got none")
        inside = {child for _, _, child in places}
        depths = {layer: depth for depth, layer in enumerate((m for m in network.modules() if m in inside), 1)}
        for parent, name, child in places:
            growth = math.sqrt(depths[child]) if self.profile == "sqrt_depth" else 1.0
            setattr(parent, name, nn.Sequential(GaussianNoise(self.std * growth), child))
        return network

    def training_step(self, network: nn.Module, x: Tensor, y: Tensor) -> Step:
        return self.step_on_loss(self.noisy_output(network, x), y)

    def extra_repr(self) -> str:
        return f"std={self.std:g}, profile={self.profile}, {super().extra_repr()}"
