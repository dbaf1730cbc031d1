r"""Noise of windows that are shorter than the largest activation, or have few time steps; windows with little noise.

A window :math:`\Delta_n` clips the activations x of a layer, and N time steps round them. This is a gain and noise,

.. math:: r(x) = a_n x + \text{noise}, \quad a_n = E[x r] / E[x^2], \quad
    \mathrm{NSR}_n = E[r^2] E[x^2] / E[x r]^2 - 1.

ReLU networks with small biases are homogeneous: gains of earlier layers only make the activations of later ones
smaller, so layer n behaves as if its window were :math:`\Delta_n / \prod_{m<n} a_m`. The noise-to-signal ratio of the
logits is predicted to be the sum of the ratios at these *sequential* windows. It ignores that errors of several layers
depend on each other and on the class, so it is too optimistic for windows shorter than about an eighth of the largest
activation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_snn.functional.linear_response import gain_and_noise

_CANDIDATES = 64
_CANDIDATES_PER_OCTAVE = 8
_ITERATIONS = 100
_NO_NOISE = 1e-12


class LayerPotentials(NamedTuple):
    """Positive potentials of a layer without clipping, as a histogram.

    Attributes:
        values: potentials, float64 `[bins]`, larger than 0.
        counts: number of potentials of each value, float64 `[bins]`.
        sources: places of the presynaptic layers in the list of layers; empty for those of the inputs.
    """

    values: Tensor
    counts: Tensor
    sources: tuple[int, ...] = ()

    def response(self, window: Tensor, steps: int | None) -> Tensor:
        """Return the remaining times of the potentials in a window, rounded to the ends of its steps."""
        clipped = torch.minimum(self.values, window)
        if window.isinf():  # inputs that never spike
            return torch.zeros_like(clipped)
        return clipped if steps is None else (clipped * steps / window).round() * (window / steps)


def sequential_noise(
    layers: Sequence[LayerPotentials], windows: Tensor, steps: int | None = None, sequential: bool = True
) -> tuple[Tensor, Tensor]:
    """Compute the gain and the noise-to-signal ratio of each layer at its sequential window.

    Args:
        layers: layers in causal order.
        windows: length of the window of each layer, float64 `[layers]`, larger than 0.
        steps: number of time steps of a window; None for continuous times. Then results have a gradient.
        sequential: whether gains of presynaptic layers lengthen the window relative to the activations. False, for
            comparison, takes the windows as they are.

    Returns:
        gains and noise-to-signal ratios, float64 `[layers]`; their sum predicts the ratio of the logits. With several
        presynaptic layers, activations are scaled by the mean of the gains of the paths.

    Example:
        >>> layer = LayerPotentials(torch.tensor([1.0, 2.0]).double(), torch.ones(2).double())
        >>> gains, noise = sequential_noise([layer, layer._replace(sources=(0,))], torch.ones(2).double())
        >>> gains
        tensor([0.6000, 0.8667], dtype=torch.float64)
    """
    paths: list[Tensor] = []  # product of the gains up to and including a layer
    gains, ratios = [], []
    for layer, window in zip(layers, windows.unbind(), strict=True):
        before = _gain_before(layer, paths)
        effective = window / before if sequential else window
        gain, ratio = gain_and_noise(layer.values, layer.response(effective, steps), layer.counts)
        gains.append(gain)
        ratios.append(ratio)
        paths.append(before * gain)
    return torch.stack(gains), torch.stack(ratios)


def optimized_windows(layers: Sequence[LayerPotentials], windows: Tensor, free: Tensor) -> Tensor:
    r"""Find windows of the same total length with the smallest sum of sequential noise-to-signal ratios.

    At the minimum all free windows have the same marginal noise :math:`\partial \sum_m \mathrm{NSR}_m / \partial
    \Delta_n`, including the effect of their gains on later layers.

    Args:
        layers: layers in causal order.
        windows: windows to start from, float64 `[layers]`.
        free: windows that may change, bool `[layers]`, at least one; the sum of these is kept.

    Returns:
        windows, float64 `[layers]`, whose sum of ratios is at most that of `windows`.

    Example:
        >>> small = LayerPotentials(torch.linspace(0.1, 1.0, 10).double(), torch.ones(10).double())
        >>> layers = [small, small._replace(values=4 * small.values, sources=(0,))]
        >>> start = torch.tensor([1.0, 1.0]).double()
        >>> windows = optimized_windows(layers, start, torch.tensor([True, True]))
        >>> bool(windows[1] > 2 * windows[0]), round(windows.sum().item(), 6)
        (True, 2.0)
    """
    total, position = windows[free].sum(), windows[free].log().requires_grad_()
    optimizer = torch.optim.LBFGS([position], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def chosen() -> Tensor:
        return windows.masked_scatter(free, total * position.softmax(0))

    def objective() -> Tensor:
        # windows beyond the largest activation have no noise and no gradient
        loss = (sequential_noise(layers, chosen())[1].sum() + _NO_NOISE).log()
        optimizer.zero_grad()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(objective)
    found = chosen().detach()
    before, after = (sequential_noise(layers, each)[1].sum() for each in (windows, found))
    return found if after < before else windows


def windows_of_steps(layers: Sequence[LayerPotentials], windows: Tensor, free: Tensor, steps: int) -> Tensor:
    """Choose windows, none longer than given, whose clipping and rounding to time steps have the least noise together.

    Args:
        layers: layers in causal order.
        windows: longest windows, float64 `[layers]`.
        free: windows that may be shorter, bool `[layers]`.
        steps: number of time steps of each window.

    Returns:
        windows, float64 `[layers]`: each has the smallest ratio of its layer among an eighth of an octave each.

    Example:
        >>> layer = LayerPotentials(torch.tensor([0.5, 4.0]).double(), torch.tensor([1000.0, 1.0]).double())
        >>> windows_of_steps([layer], torch.tensor([4.0]).double(), torch.tensor([True]), steps=2) < 2
        tensor([True])
    """
    exponents = torch.arange(_CANDIDATES, dtype=windows.dtype) / _CANDIDATES_PER_OCTAVE
    paths: list[Tensor] = []
    chosen = []
    for layer, longest, may_change in zip(layers, windows, free, strict=True):
        before = _gain_before(layer, paths)
        trials = longest * 2.0**-exponents if may_change else longest[None]
        found = [gain_and_noise(layer.values, layer.response(trial / before, steps), layer.counts) for trial in trials]
        # a response of 0 has infinite noise
        best = int(torch.stack([ratio for _, ratio in found]).nan_to_num(nan=torch.inf).argmin())
        chosen.append(trials[best])
        paths.append(before * found[best][0])
    return torch.stack(chosen)


def _gain_before(layer: LayerPotentials, paths: list[Tensor]) -> Tensor:
    """Return the gain of a layer's inputs, from the gains of the paths that end in each earlier layer."""
    return torch.stack([paths[each] for each in layer.sources]).mean() if layer.sources else layer.values.new_ones(())
