r"""Layers of time-to-first-spike networks: thin modules over `functional.ttfs`.

Between layers flows the remaining time :math:`\hat x = t_\max - t \ge 0`, a plain tensor `[B, ...]`, 0 for silence:
what a ReLU would give. Synapses onto neurons of unit slope are ordinary ``nn.Linear`` and ``nn.Conv`` layers (weight:
efficacies W; bias: threshold offset D; zero padding: silent neurons), and `FirstSpike` stands where the ReLU stood.

After Stanojevic et al. 2024, arXiv 2306.08744.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_snn.checks import check_between, check_choice, check_positive
from lightning_snn.functional.ttfs import (
    OVERFLOWS,
    Overflow,
    TimeConstraints,
    relu_from_two_phase,
    remaining_time,
    through_time,
    two_phase_from_relu,
)


class TimeWindow(nn.Module):
    r"""What all spiking layers share: a window from `t_min` to `t_max`, in float64 whatever the layer is cast to.

    Attributes:
        window: length :math:`\Delta` of the window, a scalar buffer.
        t_min: begin of the window, a scalar buffer.
        constraints: what hardware does to the spike times of this layer; None for nothing.
    """

    window: Tensor
    t_min: Tensor
    constraints: TimeConstraints | None

    def _open_window(self, window: float, t_min: float, device: torch.device | None = None) -> None:
        check_positive("window", window)
        self.register_buffer("window", torch.tensor(window, dtype=torch.float64, device=device))
        self.register_buffer("t_min", torch.tensor(t_min, dtype=torch.float64, device=device))
        self.constraints = None

    @property
    def t_max(self) -> Tensor:
        """End of the window."""
        return self.t_min + self.window

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        window, t_min = self.window, self.t_min
        super()._apply(fn, recurse)
        if self.window.dtype != window.dtype and not window.is_meta:
            self.window, self.t_min = window.to(self.window.device), t_min.to(self.t_min.device)
        return self


class FirstSpike(TimeWindow):
    r"""Integrate-and-fire neurons that spike at most once, with unit slope, where a ReLU would stand.

    .. math:: t = \min(t_\min + \Delta - u, t_\max), \quad \hat x = t_\max - t = \max(0, u), \quad
        u = V(t_\min) + D, \quad \theta = \Delta - D

    Without time-domain effects only remaining times are computed, for the cost of a ReLU. Effects are constraints, and
    spikes that would come before `t_min`.

    Args:
        window: length :math:`\Delta` of the window, in units of the input window, larger than 0.
        overflow: where a spike would come before `t_min`, "pass" keeps the closed form and with it the ReLU, "clip"
            lets the neuron fire at `t_min` as hardware does, with a gradient of 0, "error" refuses; it waits for the
            device in every call.
        time_domain: compute absolute spike times and remaining times from them: for tests, and to see rounding.

    Attributes:
        adaptive: whether the window follows the largest activation in training, see `methods.ttfs.grow`.
        peak: largest drive u of training batches since the window was last adapted, None before the first and where
            the layer is not adaptive; not in the state dict. What is larger than `window` spiked before `t_min`.
        overflow_fraction: of the last call, the fraction of neurons and samples that would have spiked before `t_min`;
            None after training steps with ``overflow="pass"``, where counting would cost more than the layer.

    Raises:
        ValueError: if an argument is outside its range; in a call, for ``overflow="error"``, if a spike would come
            before `t_min`.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), FirstSpike(), nn.Linear(8, 3))
        >>> network(torch.rand(2, 4)).shape
        torch.Size([2, 3])
    """

    def __init__(self, window: float = 1.0, overflow: Overflow = "pass", time_domain: bool = False) -> None:
        super().__init__()
        check_choice("overflow", overflow, OVERFLOWS)
        self._open_window(window, 1.0)
        self.overflow, self.time_domain, self.adaptive = overflow, time_domain, True
        self.overflow_fraction: Tensor | None = None
        # at most one; in a list, as assigning an attribute of a module takes as long as finding the peak
        self._peaks: list[Tensor] = []

    @property
    def peak(self) -> Tensor | None:
        """Largest drive since `forget_peak`."""
        return self._peaks[0] if self._peaks else None

    def forget_peak(self) -> None:
        """Begin to look for the largest drive anew."""
        self._peaks.clear()

    def forward(self, u: Tensor) -> Tensor:
        """Remaining times `[B, ...]` of the drive `u [B, ...]`."""
        if self.training and self.adaptive:
            peak = u.detach().amax()
            if self._peaks:
                peak = torch.maximum(self._peaks.pop(), peak)
            self._peaks.append(peak)
        if self.training and self.overflow == "pass":
            if self.overflow_fraction is not None:
                self.overflow_fraction = None
        else:
            self._count(u.detach())
        constraints = self.constraints
        if self.time_domain or (constraints is not None and constraints.active):
            t_min = self.t_min if self.time_domain else 0.0
            return through_time(u, self.window, t_min, self.overflow, constraints)
        remaining = F.relu(u)
        return _at_most(remaining, self.window) if self.overflow == "clip" else remaining

    def _count(self, u: Tensor) -> None:
        # several times faster than to compare and count
        self.overflow_fraction = (u - self.window).sign_().clamp_(min=0).mean()
        if self.overflow == "error" and bool(self.overflow_fraction > 0):
            raise ValueError(
                f"Expected all spikes within the window of length {self.window.item():g}, but got a drive of "
                f"{u.amax().item():g}, whose spike would come before the window begins; see "
                "`lightning_snn.methods.ttfs.windows.calibrate`"
            )

    def extra_repr(self) -> str:
        parts = [f"window={self.window.item():g}", f"t_min={self.t_min.item():g}"]
        parts += [f"overflow={self.overflow!r}"] if self.overflow != "pass" else []
        parts += ["time_domain=True"] if self.time_domain else []
        return ", ".join(parts + ([f"{self.constraints}"] if self.constraints is not None else []))


def _at_most(remaining: Tensor, window: Tensor) -> Tensor:
    # at equality the constant, with its gradient of 0
    return torch.where(remaining < window, remaining, window.to(remaining.dtype))


class SpikeEncoder(TimeWindow):
    r"""Inputs as spikes in a window of length 1: :math:`\hat x = (x - l) / (h - l)`, the larger the earlier.

    Values outside [low, high] are moved to its ends and counted, and warned about once; so that training never waits
    for the device, the count is looked at in calls 1, 2, 4, 8 and so on. Mismatched slopes do not apply to inputs.

    Args:
        low: input that stays silent.
        high: input that spikes at time 0, larger than `low`.

    Attributes:
        outside: number of values outside [low, high] so far, a scalar tensor; None if there was none for certain; not
            in the state dict.

    Raises:
        ValueError: if the range is empty.
    """

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        for name, value in (("low", low), ("high", high)):
            check_between(name, value, -float("inf"), float("inf"))
        if not low < high:
            raise ValueError(f"Expected argument `high` to be larger than low = {low}, but got {high!r}")
        self.low, self.high = low, high
        self._open_window(1.0, 0.0)
        self.outside: Tensor | None = None
        self._calls, self._warned = 0, False

    def forward(self, x: Tensor) -> Tensor:
        """Remaining times in [0, 1] of inputs `[B, ...]`."""
        remaining = x if (self.low, self.high) == (0, 1) else (x - self.low) / (self.high - self.low)
        inside = remaining
        if not _known_inside(remaining.detach()):
            inside = remaining.clamp(0, 1)
            self._count(remaining.detach(), inside.detach())
        if self.constraints is None or not self.constraints.active:
            return inside
        return through_time(inside, self.window, 0.0, "clip", replace(self.constraints, slope_mismatch=0.0))

    def _count(self, remaining: Tensor, inside: Tensor) -> None:
        # several times faster than to compare and count
        wide = torch.promote_types(inside.dtype, torch.float32)
        outside = (remaining - inside).abs_().sign_().sum(dtype=wide).double()
        self.outside = outside if self.outside is None else self.outside.to(outside.device) + outside
        self._calls += 1
        due = self._calls & (self._calls - 1) == 0
        if due and not self._warned and bool(self.outside > 0):
            self._warned = True
            warnings.warn(
                f"{int(self.outside)} inputs were outside the range [{self.low:g}, {self.high:g}] of the spike "
                "encoder and moved to its ends",
                stacklevel=3,
            )

    def extra_repr(self) -> str:
        return f"low={self.low:g}, high={self.high:g}"


def _known_inside(remaining: Tensor) -> bool:
    """Whether all values are seen to be in [0, 1]; False is no answer: devices would have to be waited for."""
    if remaining.device.type != "cpu" or remaining.numel() == 0:
        return False
    # one pass, and by far the cheapest: to clamp and count costs as much as a layer of neurons
    low, high = remaining.aminmax()
    return low.item() >= 0 and high.item() <= 1


class OffsetMap(nn.Module):
    """Threshold offsets that depend on the position: ``u + D(i, p)``.

    Args:
        shape: shape of the offsets without the batch, `[C, H, W]` for images; they begin at 0.

    Attributes:
        offset: D, a parameter.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(*shape))

    def forward(self, u: Tensor) -> Tensor:
        return u + self.offset

    def extra_repr(self) -> str:
        return f"shape={tuple(self.offset.shape)}"


class SpikePool2d(nn.Module):
    """The earliest spike of every pool, or the latest: max-pooling of remaining times, or min-pooling.

    A race needs no window and no neuron of its own. The gradient goes to the spike that wins, among equals to the one
    that ``F.max_pool2d`` chooses.

    Args:
        kernel_size, stride, padding, dilation, ceil_mode: as in ``nn.MaxPool2d``. Padding never wins.
        sign: per channel, 1 for the earliest spike and -1 for the latest, silent if any member is: the max-pool of
            activations that a negative scale turns around. None takes the earliest everywhere.

    Raises:
        ValueError: if `sign` holds anything but 1 and -1.
    """

    sign: Tensor | None

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
        sign: Tensor | None = None,
        dilation: int | tuple[int, int] = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, kernel_size if stride is None else stride
        self.padding, self.dilation, self.ceil_mode = padding, dilation, ceil_mode
        if sign is not None and not (sign.dim() == 1 and bool((sign.abs() == 1).all())):
            raise ValueError(f"Expected argument `sign` to hold 1 and -1, one a channel, but got {sign!r}")
        self.register_buffer("sign", sign)

    def forward(self, remaining: Tensor) -> Tensor:
        """Remaining times `[B, C, H', W']` of the winners among `[B, C, H, W]`."""
        if self.sign is None:
            return self._max(remaining)
        sign = self.sign.to(remaining.dtype).view(-1, 1, 1)
        return self._max(remaining * sign) * sign

    def _max(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)

    def extra_repr(self) -> str:
        latest = "" if self.sign is None else f", latest={int((self.sign < 0).sum())}"
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}{latest}"


class _AlphaNeurons(TimeWindow):
    r"""Neurons with the slopes A = 1 and B = 1 + sum_j W_j, and threshold :math:`\theta = \Delta + \Delta' + D`."""

    weight: Any
    bias: Any

    @property
    def slope(self) -> Tensor:
        """B = 1 + sum_j W_j, shape `[out]`. Neurons with ``B <= 0`` never spike."""
        return 1 + self.weight.flatten(1).sum(1)

    def _fire(self, weighted: Tensor) -> Tensor:
        # A times the inputs' window is in V as in the threshold
        per_channel = (-1, *(1,) * (weighted.dim() - 2))
        offset = 0 if self.bias is None else self.bias.view(per_channel)
        window = self.window.to(weighted.dtype)
        return remaining_time(weighted, window + offset, self.slope.view(per_channel), window)

    def copy_relu(self, layer: nn.Linear | nn.Conv2d) -> None:
        r"""Take the parameters that compute ``relu(layer(x))`` with this window, with :math:`B = 1 / (1 - \sum_j w_j)`.

        Raises:
            ValueError: if a neuron's weights sum to 1 or more, which has no image (see `bound_row_sums`), or this layer
                has no bias to hold the threshold offsets.
        """
        if self.bias is None:
            raise ValueError(f"Expected {type(self).__name__} to have a bias for the threshold offsets, but got none")
        weight = layer.weight.detach()
        sums = weight.flatten(1).sum(1)
        if bool((sums >= 1).any()):
            raise ValueError(
                f"Expected the incoming weights of every neuron to sum to less than 1, but got {sums.max().item():g}"
            )
        bias = torch.zeros_like(sums) if layer.bias is None else layer.bias.detach()
        efficacies, thresholds = two_phase_from_relu(weight, bias, 0.0, 1 / (1 - sums), self.window, 0.0)
        with torch.no_grad():
            self.weight.copy_(efficacies)
            self.bias.copy_(thresholds - self.window)

    def relu_parameters(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the ReLU layer that this layer computes; for neurons with a slope larger than 0."""
        window = self.window.to(self.weight.dtype)
        threshold = window.expand(len(self.weight)) if self.bias is None else window + self.bias
        return relu_from_two_phase(self.weight, threshold, 0.0, self.slope, window, 0.0)


class AlphaLinear(_AlphaNeurons, nn.Linear):
    r"""Synapses and neurons of the naive baseline, for comparison: trained badly, as its slopes are random.

    .. math:: B_i = 1 + \sum_j W_{ij}, \quad
        \hat x_i = \max(0, (\sum_j W_{ij} \hat x_j + B_i \Delta - \Delta - D_i) / B_i)

    Its parameters are W (`weight`) and D (`bias`), and the function depends on the window.

    Args:
        in_features, out_features, bias, device, dtype: as in ``nn.Linear``.
        window: length of the window, in units of the input window, larger than 0.

    Raises:
        ValueError: if `window` is not positive.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, window: float = 1.0, **kind: Any
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias, **kind)
        self._open_window(window, 1.0)

    def forward(self, remaining: Tensor) -> Tensor:
        """Remaining times `[B, out]` of remaining times `[B, in]`."""
        return self._fire(F.linear(remaining, self.weight))


class AlphaConv2d(_AlphaNeurons, nn.Conv2d):
    """Convolutional `AlphaLinear`: a slope a channel, that of a kernel all of whose inputs are within the image.

    Args:
        in_channels, out_channels, kernel_size, ...: as in ``nn.Conv2d``; padding by zeros.
        window: length of the window, in units of the input window, larger than 0.

    Raises:
        ValueError: if `window` is not positive.
    """

    def __init__(self, *args: Any, window: float = 1.0, **kwargs: Any) -> None:
        nn.Conv2d.__init__(self, *args, **kwargs)
        self._open_window(window, 1.0, self.weight.device)

    def forward(self, remaining: Tensor) -> Tensor:
        """Remaining times `[B, out, H', W']` of remaining times `[B, in, H, W]`."""
        return self._fire(self._conv_forward(remaining, self.weight, None))


def bound_row_sums(layers: Sequence[nn.Linear], low: float = -10.0, high: float = 0.99) -> None:
    """Rescale hidden neurons in place so that incoming weights sum to [low, high]; the ReLU network stays the same.

    Where a neuron's weights sum to c outside of it, they and its bias are multiplied by ``bound / c`` and its outgoing
    weights divided by that: `AlphaLinear` has an image of sums below 1 only.

    Args:
        layers: successive ``nn.Linear`` layers with ReLU in between; the last one is the readout, which stays free.
        low: smallest sum, smaller than 0.
        high: largest sum, between 0 and 1.
    """
    for layer, following in pairwise(layers):
        sums = layer.weight.detach().sum(1)
        factor = torch.where(sums > high, high / sums, torch.where(sums < low, low / sums, 1))
        with torch.no_grad():
            layer.weight.mul_(factor[:, None])
            if layer.bias is not None:
                layer.bias.mul_(factor)
            following.weight.div_(factor)


def first_spike_layers(network: nn.Module) -> dict[str, FirstSpike]:
    """Return the `FirstSpike` layers of a network by name, in order of registration."""
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, FirstSpike)}
