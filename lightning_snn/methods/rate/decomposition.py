"""Difference between the gradients of rates and through time, by layer and by the number of windows."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lightning_snn.checks import check_integer
from lightning_snn.functional.rate_windows import joined_weights, lost_credit, walk_share, white_share
from lightning_snn.methods.rate.captured import decomposition_refusals
from lightning_snn.methods.rate.decomposed import GradientDecomposition, LayerDecomposition, WindowErrors, recommend
from lightning_snn.methods.rate.tape import replaced_layers
from lightning_snn.methods.rate.terms import Gradient, Terms
from lightning_snn.methods.tasks import Loss, mean_cross_entropy
from lightning_snn.nn.folding import check_samples
from lightning_snn.nn.inputs import first_input
from lightning_snn.nn.layer_rules import refuse
from lightning_snn.nn.lengths import lengths_of

Split = Callable[[Gradient], dict[str, Tensor]]


def gradient_decomposition(
    network: nn.Module,
    batch: tuple[Tensor, Tensor],
    loss: Loss | None = None,
    windows: Sequence[int] | None = None,
    measure: bool = True,
    lags: int = 6,
    tolerance: float = 0.3,
) -> GradientDecomposition:
    r"""Split the difference of `run`'s gradient and `rate_run`'s into its two terms, and predict it for any windows.

    .. math::
        \mathrm{BPTT} - \mathrm{rate} = \sum_t (\delta_t - \bar\delta)(s_t - \bar s)^T + E\, \bar s^T

    The first term is the covariance over time of errors and presynaptic spikes; the remainder is what errors lose where
    they vary together with the answers of the neurons that they pass (`methods.rate.terms`). The identity is exact.

    Predicted errors of K windows need one run through time, and no run with windows. Linked: both terms, with
    variations within windows only. Without links: the credit that crosses borders besides, in quadrature
    (`functional.rate_windows`), as if all neurons above a layer came one after the other and were as likely to answer
    at all steps. Batch normalization while training, and other modules that do not commute with the mean, count as if
    steps were independent. All errors are relative to the norm of the gradient through time.

    Works for networks of `rate_run` whose neurons have a state of their own each. The network, its gradients and the
    random state do not change. Cost: that of backpropagation through time about ``2 K + lags`` times, and T backward
    passes of each layer of neurons, with the memory of `lags` sequences of each. Use float64 and a few samples to see
    residuals of 1e-12.

    Args:
        network: a plain module.
        batch: inputs `[T, B, ...]` and targets `[B, ...]`.
        loss: from outputs `[T, B, ...]` and targets to a scalar; None is the cross-entropy of the mean over time.
        windows: numbers of windows K, divisors of T; None is all divisors.
        measure: also run `rate_run` with each number of windows, with and without links, and measure its error.
        lags: number of lags between a current and the spike that answers, by which the covariance is split, from 1 to
            T (more are cut to T).
        tolerance: relative error that the recommended number of windows should not exceed, larger than 0. 0.3 is a
            cosine of about 0.96.

    Returns:
        The decomposition. Its `str` is a table.

    Raises:
        ValueError: if an argument is out of range, no parameter is trained, or within `nn.sequence_lengths`; and for
            modules that cannot be treated, by name: those that `rate_run` refuses, such as recurrent layers, delays,
            divisive normalization, and dropout while training.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), LIF(0.2), nn.Linear(8, 3))
        >>> found = gradient_decomposition(network, (torch.rand(6, 2, 4), torch.tensor([0, 2])))
        >>> found.layers["2"].error < 1e-6, sorted(found.layers["0"].windows)
        (True, [1, 2, 3, 6])
    """
    x, y = batch
    check_samples(x)
    steps, samples = first_input(x).shape[:2]
    check_integer("lags", lags)
    if not tolerance > 0:
        raise ValueError(f"Expected argument `tolerance` to be larger than 0, but got {tolerance}")
    chosen_windows = [each for each in range(1, steps + 1) if steps % each == 0] if windows is None else list(windows)
    for each in chosen_windows:
        white_share(steps, each)  # checks it
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError("Expected argument `network` to have parameters that require a gradient, but got none")
    if lengths_of(samples) is not None:
        raise ValueError("Expected sequences of the same length, but got `nn.sequence_lengths`: compare whole windows")
    refuse("gradient_decomposition", decomposition_refusals(network))
    chosen = mean_cross_entropy if loss is None else loss
    copied = copy.deepcopy(network)
    devices = {parameter.device.index for parameter in copied.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(sorted(devices)), torch.enable_grad():
        terms = Terms(copied, replaced_layers(copied), x, lambda outputs: chosen(outputs, y), min(lags, steps))
        return _decompose(terms, sorted({1, *chosen_windows}), measure, tolerance)


def _decompose(terms: Terms, windows: list[int], measure: bool, tolerance: float) -> GradientDecomposition:
    split = _by_layer(terms)
    exact, rate = split(terms.exact), split(terms.rate)
    covariance, remainder = split(terms.covariance()), split(terms.remainder())
    by_lag = [split(each) for each in terms.covariance_by_lag()]
    errors = _window_errors(terms, split, windows, measure)
    layers = {}
    for name, gradient in exact.items():
        difference, first, second = gradient - rate[name], covariance[name], remainder[name]
        layers[name] = LayerDecomposition(
            cosine=_cosine(gradient, rate[name]),
            error=_ratio(difference, gradient),
            covariance=_ratio(first, gradient),
            remainder=_ratio(second, gradient),
            covariance_cosine=_cosine(difference, first),
            residual=_ratio(difference - first - second, gradient),
            lags=_shares([each[name] for each in by_lag], first, gradient),
            windows=errors[name],
        )
    return GradientDecomposition(
        time_steps=terms.steps,
        layers=layers,
        linked=recommend(errors["all"], terms.steps, True, tolerance),
        detached=recommend(errors["all"], terms.steps, False, tolerance),
    )


def _window_errors(terms: Terms, split: Split, windows: list[int], measure: bool) -> dict[str, dict[int, WindowErrors]]:
    """Return the errors of the gradients of windows, by layer and number of windows."""
    exact, rate = split(terms.exact), split(terms.rate)
    lost = _lost_credits(terms, exact, windows)
    found: dict[str, dict[int, WindowErrors]] = {name: {} for name in exact}
    for count in windows:
        covariance, remainder = split(terms.covariance(count)), split(terms.remainder(count))
        detached, linked = (
            (split(terms.gradient_of_rates(count, link)) if count > 1 else rate) if measure else {}
            for link in (False, True)
        )
        for name, gradient in exact.items():
            one = _ratio(gradient - rate[name], gradient)
            predicted = _ratio(covariance[name] + remainder[name], gradient)
            found[name][count] = WindowErrors(
                linked_predicted=predicted,
                linked_measured=_ratio(gradient - linked[name], gradient) if measure else math.nan,
                detached_predicted=math.hypot(predicted, lost[name][count]),
                detached_measured=_ratio(gradient - detached[name], gradient) if measure else math.nan,
                white=one * white_share(terms.steps, count),
                walk=one * walk_share(terms.steps, count),
                lost_credit=lost[name][count],
            )
    return found


def _by_layer(terms: Terms) -> Split:
    """Return a function that splits a gradient into vectors by module, in float64, with the whole under "all"."""
    place = {id(parameter): index for index, parameter in enumerate(terms.parameters)}
    owned = {
        name: [place[id(parameter)] for parameter in module.parameters(recurse=False) if id(parameter) in place]
        for name, module in _named(terms).items()
    }
    owned = {name: indices for name, indices in owned.items() if indices}
    owned["all"] = list(range(len(terms.parameters)))

    def split(gradient: Gradient) -> dict[str, Tensor]:
        return {
            name: torch.cat([gradient[index].detach().double().flatten() for index in indices])
            for name, indices in owned.items()
        }

    return split


def _named(terms: Terms) -> dict[str, nn.Module]:
    return {name or type(terms.network).__name__: module for name, module in terms.network.named_modules()}


def _lost_credits(terms: Terms, exact: dict[str, Tensor], windows: list[int]) -> dict[str, dict[int, float]]:
    """Return the credit that windows without links lose, by layer and number of windows."""
    found: dict[str, dict[int, float]] = {}
    named = _named(terms)
    for name in exact:
        if name != "all":
            above = [answers.weights for answers in terms.answers[terms.neurons_before.get(named[name], 0) :]]
            weights = joined_weights(above, terms.steps)
            # neurons that answer to nothing pass no credit that could be lost
            found[name] = {
                count: lost_credit(weights, terms.steps, count) if any(weights) else 0.0 for count in windows
            }
    norms = {name: float(exact[name].norm()) for name in found}
    whole = math.hypot(*norms.values())
    found["all"] = {
        count: math.hypot(*(norms[name] * each[count] for name, each in found.items())) / whole if whole else math.nan
        for count in windows
    }
    return found


def _shares(parts: list[Tensor], whole: Tensor, gradient: Tensor) -> tuple[float, ...]:
    """Return the shares of parts in the direction of the whole; nan if it is nothing but rounding, or has no parts."""
    square = float(whole.square().sum())
    rounding = 100 * torch.finfo(torch.float32).eps * float(gradient.norm())
    if square <= rounding**2 or not any(part.any() for part in parts):
        return (math.nan,) * len(parts)
    return tuple(float(torch.dot(part, whole)) / square for part in parts)


def _ratio(part: Tensor, gradient: Tensor) -> float:
    return float(part.norm() / gradient.norm())


def _cosine(first: Tensor, second: Tensor) -> float:
    return float((torch.dot(first, second) / (first.norm() * second.norm())).clamp(-1, 1))
