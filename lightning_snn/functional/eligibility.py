r"""Firing rates and eligibilities of LIF neurons for rate-based backpropagation, in one pass over time without a graph.

The eligibility of a neuron is the derivative of its firing rate with respect to a constant shift :math:`\epsilon` of
its input current. With the surrogate h for the derivative of the spike, forward-mode differentiation gives

.. math::
    e = \frac{\partial r}{\partial \epsilon} = \frac{1}{n} \sum_t h(v_t - \theta)\, \rho_t, \qquad
    \rho_1 = 1, \quad \rho_{t+1} = 1 + \beta\, \frac{\partial u_t}{\partial v_t}\, \rho_t ,

where v is the membrane potential before its reset and u after it. The tangents along the decay and the threshold follow
the same recursion with other source terms: ``u_t`` and, for ``d(v_t - threshold) / d threshold``, the reset.

The n steps of a mean form a window. At the start of a window, all tangents are zero: its first membrane is a constant.
If windows are linked, the tangent along that membrane is computed, too, which is 1 at the start and has no source, and
the record holds the derivatives of the membrane after the window (`functional.linked_windows`). The membrane is meant
as its contribution to the next step, after reset and leak.

Cost: time O(T); memory of a few steps, independent of T. With a detached reset that subtracts, rho is the same for all
neurons of equal decay, and the surrogate is the only work besides the spikes.

This eligibility belongs to a neuron and has one value per window. It is not the eligibility trace of a synapse.

After Yu et al. 2024, arXiv 2410.11488; the tangents of decay and threshold are our extension.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_snn.functional.dynamics import Dynamics
from lightning_snn.functional.lif import check_input
from lightning_snn.functional.linked_windows import WindowLink
from lightning_snn.functional.scans.buffers import empty_state
from lightning_snn.functional.scans.rate_loop import (
    Trace,
    rate_loop,
    shared_link,
    shared_tangent,
    tangent_is_shared,
)
from lightning_snn.functional.scans.rate_operator import rate_scan
from lightning_snn.functional.scans.variants import built_in, tensor_and_number
from lightning_snn.functional.tracing import plain_operations


class RateRecord(NamedTuple):
    """Means over the steps of a window, each `[B, ...]`, in float32 or wider.

    Attributes:
        rate: mean number of spikes per step, in [0, 1].
        eligibility: derivative of the rate with respect to a constant shift of the input current.
        beta: derivative of the rate of each neuron with respect to its decay; None if not requested.
        threshold: derivative of the rate of each neuron with respect to its threshold; None if not requested.
    """

    rate: Tensor
    eligibility: Tensor
    beta: Tensor | None
    threshold: Tensor | None


class MembraneLink(NamedTuple):
    """What links windows, beside the traces.

    Attributes:
        trace: trace along the membrane before the window.
        current: derivative of the membrane after the steps so far with respect to a constant shift of the input
            current, where it is a number.
        membrane: its derivative with respect to the membrane before the window, where it is a number.
        threshold: its derivative with respect to the threshold, `[B, ...]`; None if not requested.
    """

    trace: Trace
    current: float | None = None
    membrane: float | None = None
    threshold: Tensor | None = None


class RateState(NamedTuple):
    """State of `lif_rate` between calls. It owns its buffers, and the next call overwrites them.

    Attributes:
        membrane: membrane potential after its reset, or before it if the reset is pending, `[B, ...]`.
        steps: number of steps since the start of the window.
        spikes: sum of the spikes, `[B, ...]`; None at the start of a window, like the traces below.
        input: trace along a constant shift of the input current.
        beta: trace along the decay; None if not requested.
        threshold: trace along the threshold; None if not requested.
        link: what links this window with its neighbors; None if not requested.
    """

    membrane: Tensor
    steps: int = 0
    spikes: Tensor | None = None
    input: Trace | None = None
    beta: Trace | None = None
    threshold: Trace | None = None
    link: MembraneLink | None = None

    def record(self) -> RateRecord:
        """Return means over the steps since the start of the window, in new tensors.

        Raises:
            RuntimeError: if the window has no step yet.
        """
        if self.spikes is None or self.input is None:
            raise RuntimeError("Expected the window to have at least one step before its record, but got none")
        return RateRecord(
            self.spikes / self.steps,
            self.input.total / self.steps,
            None if self.beta is None else self.beta.total / self.steps,
            None if self.threshold is None else self.threshold.total / self.steps,
        )

    def link_record(self) -> WindowLink:
        """Return the derivatives that link the window with its neighbors, in new tensors.

        Raises:
            RuntimeError: if they were not requested, or the window has no step yet.
        """
        if self.link is None or self.input is None:
            raise RuntimeError("Expected steps of a window that is linked before its record, but got none")
        current: float | Tensor | None = self.link.current
        if current is None:
            assert self.input.tangent is not None
            current = self.input.tangent - 1  # the source of the next step is not of this window
        membrane: float | Tensor | None = self.link.membrane
        if membrane is None:
            assert self.link.trace.tangent is not None
            membrane = self.link.trace.tangent.clone()
        parameters = []
        if self.beta is not None and self.beta.tangent is not None:
            parameters.append((self.beta.tangent - self.membrane,))
        if self.link.threshold is not None:
            parameters.append((self.link.threshold,))
        return WindowLink((self.link.trace.total / self.steps,), (current,), ((membrane,),), tuple(parameters))

    def next_window(self) -> RateState:
        """Return the state at the start of a new window: the membrane as a constant, without tangents and sums."""
        return RateState(self.membrane)


@torch.no_grad()
def lif_rate(
    x: Tensor,
    beta: float | Tensor,
    threshold: float | Tensor = 1.0,
    dynamics: Dynamics = Dynamics(),
    state: RateState | None = None,
    wanted: tuple[bool, bool] = (False, False),
    link: bool = False,
) -> tuple[Tensor, RateState]:
    """Compute the spikes of `lif`, bit for bit, and the derivatives of their rate, without a graph.

    Args:
        x: input current of the next t steps, shape `[t, B, ...]`, any floating dtype and strides.
        beta: decay of the membrane in [0, 1], a number or a tensor that broadcasts to `[B, ...]`.
        threshold: firing threshold, a number or a tensor that broadcasts to `[B, ...]`.
        dynamics: reset, order and surrogate.
        state: state that the previous call returned; this call overwrites it. None is the resting neuron.
        wanted: whether to compute the derivatives with respect to the decay and to the threshold; constant within a
            window.
        link: whether to compute the derivatives that link windows; constant within a window.

    Returns:
        spikes in {0, 1} of the shape and dtype of `x`, and the state, whose `record` covers all steps of the window.

    Raises:
        ValueError: if `x` has no time axis or is not floating point, if `state` has another shape, or if `wanted`
            or `link` changes within a window.

    Example:
        >>> spikes, state = lif_rate(torch.tensor([[0.6], [0.8], [1.0]]), beta=0.5)
        >>> spikes.flatten(), state.record().rate
        (tensor([0., 1., 1.]), tensor([0.6667]))
    """
    check_input(x)
    dynamics.check()
    rested = state is None
    if state is None:
        state = RateState(empty_state(x))
    elif state.membrane.shape != x.shape[1:]:
        raise ValueError(
            f"Expected argument `state` to have the shape of one step of `x`, {tuple(x.shape[1:])}, "
            f"but got {tuple(state.membrane.shape)}"
        )
    if state.spikes is None or state.input is None:
        state = _window(state.membrane, beta, dynamics, wanted, link)
    elif wanted != (state.beta is not None, state.threshold is not None):
        raise ValueError(
            f"Expected argument `wanted` to be {(state.beta is not None, state.threshold is not None)} until the next "
            f"window, but got {wanted}"
        )
    elif link != (state.link is not None):
        raise ValueError(f"Expected argument `link` to be {not link} until the next window, but got {link}")
    membrane, steps, spike_count, along_input, along_beta, along_threshold, links = state
    along_membrane = None if links is None else links.trace
    assert spike_count is not None
    assert along_input is not None
    surrogate = built_in(dynamics.surrogate)
    if surrogate is None or plain_operations(opaque=True):
        traces = (along_input, along_beta, along_threshold, along_membrane)
        spikes = rate_loop(x, beta, threshold, membrane, spike_count, *traces, steps, rested, dynamics)
    else:
        spikes = rate_scan(
            x,
            *tensor_and_number(beta),
            *tensor_and_number(threshold),
            membrane,
            spike_count,
            *along_input,
            *(along_beta or (None, None)),
            *(along_threshold or (None, None)),
            *(along_membrane or (None, None)),
            steps,
            rested,
            dynamics.reset,
            dynamics.order,
            dynamics.detach_reset,
            *surrogate,
        )
    if links is not None:
        links = _after(links, along_threshold, spikes, beta, steps + len(x), dynamics)
    return spikes, state._replace(steps=steps + len(x), link=links)


def _after(
    links: MembraneLink,
    along_threshold: Trace | None,
    spikes: Tensor,
    beta: float | Tensor,
    steps: int,
    dynamics: Dynamics,
) -> MembraneLink:
    """Return the derivatives of the membrane after some steps of a window that no trace holds."""
    if tangent_is_shared(dynamics) and not isinstance(beta, Tensor):
        links = links._replace(current=shared_tangent(beta, steps) - 1, membrane=shared_link(beta, steps))
    if along_threshold is not None and along_threshold.tangent is not None:
        # without what the next step adds: its distance to the threshold, and its pending reset
        of_next_step = spikes[-1] + 1 if dynamics.pending_reset else 1
        links = links._replace(threshold=along_threshold.tangent + of_next_step)
    return links


def _window(
    membrane: Tensor, beta: float | Tensor, dynamics: Dynamics, wanted: tuple[bool, bool], link: bool
) -> RateState:
    """Return the state at the start of a window, whose counts and traces the scan fills."""
    tangent: Tensor | None = None
    if not tangent_is_shared(dynamics):
        tangent = torch.empty_like(membrane)
    elif isinstance(beta, Tensor):
        tangent = torch.empty_like(beta, dtype=membrane.dtype)
    along_input = Trace(tangent, torch.empty_like(membrane))
    along_beta, along_threshold = (
        Trace(torch.empty_like(membrane), torch.empty_like(membrane)) if trace else None for trace in wanted
    )
    links = None
    if link:
        is_number = tangent_is_shared(dynamics) and not isinstance(beta, Tensor)
        links = MembraneLink(Trace(None if is_number else torch.empty_like(membrane), torch.empty_like(membrane)))
    return RateState(membrane, 0, torch.empty_like(membrane), along_input, along_beta, along_threshold, links)
