r"""Integrate-and-fire neurons that spike at most once, with unit slope.

Layers exchange the remaining time :math:`\hat x = t_\max - t \ge 0`, a plain tensor `[B, ...]`, 0 for silence. It
equals the activation of a ReLU. Synapses onto neurons of unit slope are ordinary ``nn.Linear`` and ``nn.Conv`` layers
(weight: efficacies W; bias: threshold offset D; zero padding: silent neurons), and `FirstSpike` replaces the ReLU.

After Stanojevic et al. 2024, arXiv 2306.08744.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_snn.checks import check_choice
from lightning_snn.functional.ttfs import OVERFLOWS, Overflow, through_time
from lightning_snn.methods.ttfs.time_window import TimeWindow


class FirstSpike(TimeWindow):
    r"""Integrate-and-fire neurons that spike at most once, with unit slope, in place of a ReLU.

    .. math:: t = \min(t_\min + \Delta - u, t_\max), \quad \hat x = t_\max - t = \max(0, u), \quad
        u = V(t_\min) + D, \quad \theta = \Delta - D

    Without time-domain effects only remaining times are computed, at the cost of a ReLU. Time-domain effects are
    constraints, and spikes that would come before `t_min`.

    Args:
        window: length :math:`\Delta` of the window, in units of the input window, larger than 0.
        overflow: for spikes that would come before `t_min`, "pass" keeps the closed form, which is the ReLU; "clip"
            lets the neuron fire at `t_min` as hardware does, with a gradient of 0; "error" raises an error, and
            synchronizes with the device in every call.
        time_domain: compute absolute spike times and remaining times from them: for tests, and to include rounding.

    Attributes:
        adaptive: whether the window follows the largest activation while training, see `methods.ttfs.grow`.
        peak: largest potential u of training batches since the window was last adapted; None before the first batch
            and if the layer is not adaptive; not in the state dict. Neurons with u above `window` spike before `t_min`.
        overflow_fraction: of the last call, the fraction of neurons and samples that would spike before `t_min`; None
            after training steps with ``overflow="pass"``, where counting would cost more than the layer.

    Raises:
        ValueError: if an argument is outside its range; in a call, for ``overflow="error"``, if a spike would come
            before `t_min`.

    Example:
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Linear(4, 8), FirstSpike(), nn.Linear(8, 3))
        >>> network(torch.rand(2, 4)).shape
        torch.Size([2, 3])
    """

    def __init__(self, window: float = 1.0, overflow: Overflow = "pass", time_domain: bool = False) -> None:
        super().__init__()
        check_choice("overflow", overflow, OVERFLOWS)
        self._register_window(window, 1.0)
        self.overflow, self.time_domain, self.adaptive = overflow, time_domain, True
        self.overflow_fraction: Tensor | None = None
        # at most one; in a list, because assigning an attribute of a module takes as long as finding the peak
        self._peaks: list[Tensor] = []

    @property
    def peak(self) -> Tensor | None:
        """Largest potential since `forget_peak`."""
        return self._peaks[0] if self._peaks else None

    def forget_peak(self) -> None:
        """Reset the largest potential."""
        self._peaks.clear()

    def forward(self, u: Tensor) -> Tensor:
        """Return the remaining times `[B, ...]` of potentials `u [B, ...]`."""
        # a prediction while another thread trains leaves no trace
        trained = self.training and torch.is_grad_enabled()
        if trained and self.adaptive and u.numel():
            peak = u.detach().amax()
            if self._peaks:
                peak = torch.maximum(self._peaks.pop(), peak)
            self._peaks.append(peak)
        if trained and self.overflow == "pass":
            if self.overflow_fraction is not None:
                self.overflow_fraction = None
        elif trained or not self.training or self.overflow == "error":
            self._count_overflow(u.detach())
        constraints = self.constraints
        if self.time_domain or (constraints is not None and constraints.active):
            t_min = self.t_min if self.time_domain else 0.0
            return through_time(u, self.window, t_min, self.overflow, constraints)
        remaining = F.relu(u)
        if self.overflow != "clip":
            return remaining
        # at equality the constant, with its gradient of 0; NaN stays NaN
        return torch.where(remaining >= self.window, self.window.to(remaining.dtype), remaining)

    def _count_overflow(self, u: Tensor) -> None:
        # several times faster than comparing and counting, and NaN stays NaN
        self.overflow_fraction = (u - self.window).clamp_(0, 1).ceil_().mean()
        if self.overflow == "error" and bool(self.overflow_fraction > 0):
            raise ValueError(
                f"Expected all spikes to be within the window of length {self.window.item():g}, but got a potential of "
                f"{u.amax().item():g}, whose spike would come before the window starts. Set windows with "
                "`lightning_snn.methods.ttfs.calibrate`"
            )

    def extra_repr(self) -> str:
        parts = [f"window={self.window.item():g}", f"t_min={self.t_min.item():g}"]
        parts += [f"overflow={self.overflow!r}"] if self.overflow != "pass" else []
        parts += ["time_domain=True"] if self.time_domain else []
        return ", ".join(parts + ([f"{self.constraints}"] if self.constraints is not None else []))


def first_spike_layers(network: nn.Module) -> dict[str, FirstSpike]:
    """Return the `FirstSpike` layers of a network by name, in order of registration."""
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, FirstSpike)}
