"""The smooth calibration error: a kernel instead of bins, with a bandwidth that follows from the data."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from lightning_snn.checks import check_choice
from lightning_snn.metrics.functional._inputs import accumulation_dtype
from lightning_snn.metrics.functional.calibration import top_label

Kernel = Literal["reflected", "logit"]

KERNELS: tuple[Kernel, ...] = ("reflected", "logit")
_SMALLEST_BANDWIDTH = 1e-4
_LOGIT_MARGIN = 1e-3
# The Gaussian exp(-x^2 / 2) is less than 1e-16 beyond this x.
_TAIL = 8.6
_POINTS_PER_BANDWIDTH = 32
_BISECTIONS = 30
_CHUNK = 8192


def smooth_calibration_error(probabilities: Tensor, targets: Tensor, kernel: Kernel = "reflected") -> Tensor:
    """Compute the smooth calibration error of the most probable class, which has no bins.

    ``smECE(s) = integral |1/N sum_n K_s(t, f_n) (y_n - f_n)| dt``, with the confidence f_n = max_c p_n[c], y_n = 1 if
    this is the true class and else 0, and a Gaussian kernel K_s of the bandwidth s; the result is the s at which
    smECE(s) = s

    There is exactly one such s, because smECE(s) does not increase with s. With the distance d to the nearest
    calibrated predictor, the error of the reflected kernel is from d / 2 to 2 sqrt(d). It therefore changes little if
    confidences change little, unlike errors in bins.

    - ``kernel="reflected"``: a Gaussian over the confidence, reflected at 0 and 1, so that it stays in [0, 1].
    - ``kernel="logit"``: a Gaussian over log(f / (1 - f)) / 4, which has the scale of f at f = 1/2 and resolves
      confidences near 1. Confidences are first clamped to [0.001, 0.999], so the logit is finite.

    Args:
        probabilities: class probabilities, shape `(N, C)`, in [0, 1].
        targets: true classes, integers of shape `(N,)`, in [0, C).
        kernel: "reflected" or "logit".

    Returns:
        A scalar in float64 (float32 on Apple's MPS), within [0, 1]; nan if there is no sample. It is exact to about
        1e-7. An error below 1e-4 is exact to 1e-4 only, because the bandwidth is not made smaller than this.

    Raises:
        ValueError: if an argument is not as stated above.

    Source: after J. Blasiok and P. Nakkiran, "Smooth ECE: principled reliability diagrams via kernel smoothing", ICLR
    2024.

    Example:
        >>> probabilities = torch.tensor([[0.75, 0.25], [0.25, 0.75], [1.0, 0.0], [1.0, 0.0]])
        >>> smooth_calibration_error(probabilities, torch.tensor([1, 0, 0, 0]))
        tensor(0.3750, dtype=torch.float64)
    """
    check_choice("kernel", kernel, KERNELS)
    return smooth_gap(*top_label(probabilities, targets), kernel)


def smooth_gap(confidence: Tensor, correct: Tensor, kernel: Kernel = "reflected") -> Tensor:
    """Compute the smooth calibration error from confidences and correctness; see `smooth_calibration_error`.

    Args:
        confidence: probability of the most probable class, shape `(N,)`, from `top_label`.
        correct: whether this is the true class, bool of shape `(N,)`, from `top_label`.
        kernel: "reflected" or "logit".

    Returns:
        A scalar in float64 (float32 on Apple's MPS), within [0, 1]; nan if there is no sample.

    Raises:
        ValueError: if `kernel` is not one of these.

    Example:
        >>> smooth_gap(torch.tensor([0.9, 0.6, 0.8]), torch.tensor([True, True, True]))
        tensor(0.2333, dtype=torch.float64)
    """
    check_choice("kernel", kernel, KERNELS)
    wide = confidence.detach().to(accumulation_dtype(confidence.device))
    if not len(wide):
        return wide.new_tensor(math.nan)
    scaled = wide.clamp(_LOGIT_MARGIN, 1 - _LOGIT_MARGIN).logit() / 4 if kernel == "logit" else wide
    places, index = scaled.unique(return_inverse=True)
    residuals = torch.zeros_like(places).index_add(0, index, correct.to(wide.dtype) - wide) / len(wide)
    return wide.new_tensor(_fixed_point(places, residuals, reflects=kernel == "reflected"))


def _fixed_point(places: Tensor, residuals: Tensor, reflects: bool) -> float:
    """Return the bandwidth at which the smoothed error equals it.

    Args:
        places: where the residuals are, shape `(M,)`.
        residuals: their sum at each place, divided by the number of samples, shape `(M,)`.
        reflects: whether the kernel is reflected at 0 and 1.
    """
    # the error lies between these at every bandwidth, so the fixed point does too
    low, high = residuals.sum().abs().item(), residuals.abs().sum().item()
    while high - low > 1e-12 * high and high > _SMALLEST_BANDWIDTH:
        half = max(high / 2, low, _SMALLEST_BANDWIDTH)
        smoothed = _Smoothed(places, residuals, half, high, reflects)
        error = smoothed.error(half)
        if error < half:
            high, low = half, max(low, error)
            continue
        low = half
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if smoothed.error(middle) > middle else (low, middle)
        break
    return low if high <= _SMALLEST_BANDWIDTH else (low + high) / 2


class _Smoothed:
    """Residuals convolved with Gaussian kernels, as a cosine series: 1/N sum_n K_s(t, f_n) (y_n - f_n).

    The kernel that is reflected at both ends of an interval of length L is
    ``K_s(t, f) = 1/L + 2/L sum_k exp(-(pi k s / L)^2 / 2) cos(pi k t / L) cos(pi k f / L)``.
    Without reflection the interval is wide enough for the kernel to vanish at its ends.

    Args:
        places: where the residuals are, shape `(M,)`; within [0, 1] if the kernel is reflected.
        residuals: the residuals, shape `(M,)`.
        smallest: smallest bandwidth that `error` will be given.
        largest: largest bandwidth that `error` will be given.
        reflects: whether the kernel is reflected at 0 and 1.
    """

    def __init__(self, places: Tensor, residuals: Tensor, smallest: float, largest: float, reflects: bool) -> None:
        start, self.length = 0.0, 1.0
        if not reflects:
            start = places.min().item() - _TAIL * largest
            self.length = places.max().item() + _TAIL * largest - start
        modes = math.ceil(_TAIL * self.length / (math.pi * smallest)) + 1
        self.points = math.ceil(_POINTS_PER_BANDWIDTH * self.length / smallest)
        self.frequencies = torch.arange(modes, device=places.device, dtype=places.dtype) * math.pi
        self.coefficients = _cosine_sums((places - start) / self.length, residuals, modes)

    def error(self, bandwidth: float) -> float:
        """Return the integral of the absolute value of the smoothed residuals."""
        relative = bandwidth / self.length
        amplitudes = self.coefficients * (-(self.frequencies * relative).square() / 2).exp()
        amplitudes[1:] *= 2
        # values on a grid over [0, 1], and the integral from 0 to each point
        values = self._on_grid(amplitudes)
        slopes = amplitudes[1:] / self.frequencies[1:]
        steps = torch.arange(self.points + 1, device=values.device, dtype=values.dtype) / self.points
        integral = amplitudes[0] * steps + self._on_grid(torch.cat([slopes.new_zeros(1), slopes]), sine=True)
        total = integral.diff().abs().sum()
        # In a cell with a change of sign the parts cancel: add twice the smaller part, a triangle.
        left, right = values[:-1], values[1:]
        smaller = torch.minimum(left.abs(), right.abs()).square() / (left.abs() + right.abs())
        return (total + smaller[left * right < 0].sum() / self.points).item()

    def _on_grid(self, amplitudes: Tensor, sine: bool = False) -> Tensor:
        """Return ``sum_k a_k cos(pi k j / points)``, or with sines, for j = 0, ..., points."""
        zeros = torch.zeros_like(amplitudes)
        spectrum = torch.complex(zeros, -amplitudes) if sine else torch.complex(amplitudes, zeros)
        spectrum[0] *= 2  # the other frequencies have a conjugate of their own
        values: Tensor = torch.fft.irfft(spectrum * self.points, n=2 * self.points)
        return values[: self.points + 1]


def _cosine_sums(places: Tensor, weights: Tensor, modes: int) -> Tensor:
    """Return ``sum_n w_n cos(pi k x_n)`` for k = 0, ..., modes - 1.

    With k = a B + b, cos(pi k x) = cos(pi a B x) cos(pi b x) - sin(pi a B x) sin(pi b x), so the sums are two matrix
    products, with cosines and sines of 2 sqrt(modes) multiples only.
    """
    block = math.isqrt(modes) + 1
    fine = math.pi * torch.arange(block, device=places.device, dtype=places.dtype)
    coarse = fine * block
    sums = places.new_zeros(block, block)
    for x, w in zip(places.split(_CHUNK), weights.split(_CHUNK), strict=True):
        far, near = x.unsqueeze(1) * coarse, x.unsqueeze(1) * fine
        weighted = w.unsqueeze(1)
        sums += (weighted * far.cos()).T @ near.cos() - (weighted * far.sin()).T @ near.sin()
    return sums.flatten()[:modes]
