"""Numerical probes of what a neuron declares: small runs in float64 on a copy, instead of promises."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lightning_snn.nn.neurons.base import Neuron, State, membrane

_STEPS = 3
_TOLERANCE = 1e-6


def elementwise_refusal(layer: nn.Module) -> str | None:
    """Return why the steps of a layer have no elementwise derivative, None if they have one or cannot be run.

    Forward-mode differentiation along ones gives the derivative of each neuron only if neuron i reads entry i. Along
    random signs the derivative must then be the one along ones, times the signs.

    Args:
        layer: a layer with a ``step(x, state) -> (output, state)``.
    """
    probed, shape = _copy_and_shape(layer)
    if shape is None:
        return None
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, shape, generator=generator).mul_(2).sub_(1).double()
    state: State = None
    for x in _currents(shape, generator):

        def output(current: Tensor, before: State = state) -> tuple[Tensor, State]:
            return probed.step(current, before)  # type: ignore[operator, no-any-return]

        try:
            _, along_ones, state = torch.func.jvp(output, (x,), (torch.ones_like(x),), has_aux=True)
            _, along_signs, _ = torch.func.jvp(output, (x,), (signs,), has_aux=True)
        except RuntimeError:
            return "its step has no forward-mode derivative: use `lightning_snn.functional.spike`, or define a `jvp`"
        if not torch.allclose(along_signs, along_ones * signs, rtol=_TOLERANCE, atol=_TOLERANCE):
            return "its neurons receive each other's current within a step"
    return None


def gain_refusal(neuron: Neuron) -> str | None:
    """Return why the `gain` of a neuron cannot be used for noise, None if it can or the neuron cannot be run.

    The derivative of the membrane potential with respect to the current of the same step must not be 0, and must be the
    declared gain where there is one.
    """
    probed, shape = _copy_and_shape(neuron)
    if shape is None:
        return None
    assert isinstance(probed, Neuron)
    state: State = None
    for x in _currents(shape, torch.Generator().manual_seed(0)):
        before = probed.initial_state(x) if state is None else state

        def potential(current: Tensor, before: State = before) -> Tensor:
            return membrane(probed.charge(current, before))

        _, slope = torch.func.jvp(potential, (x,), (torch.ones_like(x),))
        if slope.abs().min() == 0:
            return "its membrane does not depend on the current of the same step"
        if probed.gain is not None:
            declared = torch.as_tensor(probed.gain, dtype=slope.dtype).expand_as(slope)
            if not torch.allclose(slope, declared, rtol=_TOLERANCE, atol=_TOLERANCE):
                moved = f"{slope.flatten()[0].item():g}"
                return f"declares gain = {neuron.gain}, but its membrane moves by {moved} per unit of current"
        state = probed.step(x, before)[1]
    return None


def _currents(shape: tuple[int, ...], generator: torch.Generator) -> Iterator[Tensor]:
    return (torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(_STEPS))


def _copy_and_shape(layer: nn.Module) -> tuple[nn.Module, tuple[int, ...] | None]:
    """Return a copy in float64, and the first shape of a step that it accepts; None if it accepts none that is tried.

    The number of channels is that of its parameters or buffers, which is the only thing known of its input here.
    """
    probed = copy.deepcopy(layer).double()
    sizes = [value.shape[0] for value in (*probed.parameters(), *probed.buffers()) if value.dim() > 0]
    for channels in dict.fromkeys([*sizes, 3]):
        for shape in ((2, channels), (2, channels, 2, 2)):
            try:
                probed.step(torch.zeros(shape, dtype=torch.float64), None)  # type: ignore[operator]
            except (RuntimeError, ValueError, IndexError):  # it takes steps of another shape
                continue
            return probed, shape
    return probed, None
