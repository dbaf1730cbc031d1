"""Binary activations in {-1, 1}: the neurons of binary networks, which have no state."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_snn.functional.dynamics import Dynamics
from lightning_snn.functional.lif import lif
from lightning_snn.functional.noisy_lif import noisy_lif
from lightning_snn.functional.surrogate import Surrogate, SurrogateName, surrogate_named
from lightning_snn.nn.moments import Moments
from lightning_snn.nn.noise import spike_noise


class Sign(nn.Module):
    r"""Binary neurons that take the place of a ReLU: ``y = sign(x)`` in {-1, 1}, with ``sign(0) = -1``.

    If the input is `Moments` of a Bayesian layer, ``P(y = 1) = Phi(mean / sqrt(variance))``, with the gradient
    estimator of the enclosing `posterior_noise`. Otherwise the output is deterministic, with the derivative of the
    surrogate. There is no state, so time steps are independent.

    Args:
        surrogate: derivative of the step function: a `Surrogate`, or its name ("arctangent", "fast_sigmoid",
            "sigmoid", "triangular").

    Shape:
        input and output `[T*B, ...]`.

    Example:
        >>> Sign()(torch.tensor([-0.5, 0.0, 2.0]))
        tensor([-1., -1.,  1.])
    """

    def __init__(self, surrogate: SurrogateName | Surrogate = "arctangent") -> None:
        super().__init__()
        self.surrogate = surrogate_named(surrogate)

    def forward(self, x: Tensor | Moments) -> Tensor:
        # a LIF neuron with threshold 0 that runs for one step
        if not isinstance(x, Moments):
            spikes = lif(x[None], 0.0, 0.0, Dynamics(surrogate=self.surrogate))[0]
            return 2 * spikes[0] - 1
        noise = spike_noise()
        if noise is None:
            raise RuntimeError("Sign received a Gaussian activation outside `posterior_noise`")
        spikes, standardized = noisy_lif(
            x.expectation[None], x.variance[None], 0.0, 0.0, estimator=noise.estimator, generator=noise.generator
        )
        if noise.observe is not None:
            noise.observe(self, standardized[0])
        return 2 * spikes[0] - 1

    def extra_repr(self) -> str:
        return f"surrogate={self.surrogate}"
