"""Numerical probes that check what a neuron declares, by small runs in float64 on a copy."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._pytree import tree_map

from lightning_snn.nn.neurons.base import InitialStateError, Neuron
from lightning_snn.nn.neurons.firing import membrane
from lightning_snn.nn.stateful import over_channels
from lightning_snn.nn.states import State

_STEPS = 3
_TOLERANCE = 1e-6
_UNKNOWN = "its derivative is NaN: look at its constants and parameters"
_NO_DERIVATIVE = "no forward-mode derivative: use `lightning_snn.functional.spike`, or define a `jvp`"
_MIXED = "its neurons receive each other's current within a step"


def elementwise_refusal(layer: nn.Module) -> str | None:
    """Return why the outputs of a layer have no elementwise derivative, None if they have one or cannot be found.

    Forward-mode differentiation along ones gives the derivative of each neuron only if neuron i reads entry i. Along
    random signs the derivative must then be the one along ones, times the signs. The derivative is that of several
    steps; of neurons that are declared not to be `independent`, it is that of each step with the state before it as a
    constant.

    Args:
        layer: a layer with a ``step(x, state) -> (output, state)``.
    """
    try:
        probed, shape = _copy_and_shape(layer)
    except InitialStateError as error:
        return str(error)
    if shape is None:
        return None
    generator = torch.Generator().manual_seed(0)
    signs = _signs(shape, generator)
    currents = list(_currents(shape, generator))
    independent = getattr(layer, "independent", True)

    def outputs(shift: Tensor) -> Tensor:
        state: State = None
        found = []
        for current in currents:
            output, state = probed.step(current + shift, state)  # type: ignore[operator]
            found.append(output)
            if not independent:
                state = tree_map(lambda leaf: forward_ad.unpack_dual(leaf).primal, state)
        return torch.stack(found)

    rest = torch.zeros(shape, dtype=torch.float64)
    try:
        with forward_ad.dual_level():
            along_ones, along_signs = (
                forward_ad.unpack_dual(outputs(forward_ad.make_dual(rest, direction))).tangent
                for direction in (torch.ones_like(rest), signs)
            )
    except (RuntimeError, NotImplementedError):
        return f"its step has {_NO_DERIVATIVE}"
    if along_ones is None or along_signs is None:
        return None
    if along_ones.isnan().any():
        return _UNKNOWN
    if _close(along_signs, along_ones * signs):
        return None
    within_a_step = not _close(along_signs[0], along_ones[0] * signs)
    return _MIXED if within_a_step else "its neurons receive each other's spikes: declare `independent = False`"


def gain_refusal(neuron: Neuron) -> str | None:
    """Return why the `gain` of a neuron cannot be used for noise, None if it can or the neuron cannot be run.

    The derivative of the membrane potential with respect to the current of the same step must be that of each neuron
    alone, must not be 0, and must be the declared gain where there is one.
    """
    try:
        probed, shape = _copy_and_shape(neuron)
    except InitialStateError as error:
        return str(error)
    if shape is None:
        return None
    assert isinstance(probed, Neuron)
    state: State = None
    generator = torch.Generator().manual_seed(0)
    for x in _currents(shape, generator):
        before = probed.initial_state(x) if state is None else state

        def potential(current: Tensor, before: State = before) -> Tensor:
            return membrane(probed.charge(current, before))

        try:
            slope = torch.func.jvp(potential, (x,), (torch.ones_like(x),))[1]
        except (RuntimeError, NotImplementedError):  # a plain autograd.Function, for one
            return f"its charge has {_NO_DERIVATIVE}"
        if slope.isnan().any():
            return _UNKNOWN
        if slope.abs().max() == 0:
            return "its membrane does not depend on the current of the same step"
        if slope.abs().min() == 0:
            return (
                "in some states its membrane does not depend on the current of the same step; to keep neurons silent, "
                "raise `firing_threshold`"
            )
        signs = _signs(shape, generator)
        if not _close(torch.func.jvp(potential, (x,), (signs,))[1], slope * signs):
            return _MIXED
        if probed.gain is not None:
            declared = over_channels(torch.as_tensor(probed.gain, dtype=slope.dtype), slope)
            assert isinstance(declared, Tensor)
            if not _close(slope, declared.expand_as(slope)):
                moved = f"{slope.flatten()[0].item():g}"
                return f"declares gain = {neuron.gain}, but its membrane moves by {moved} per unit of current"
        state = probed.step(x, before)[1]
    return None


def _currents(shape: tuple[int, ...], generator: torch.Generator) -> Iterator[Tensor]:
    return (torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(_STEPS))


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator).mul_(2).sub_(1).double()


def _close(one: Tensor, other: Tensor) -> bool:
    # relative to the largest entry, because units of current and membrane potential are those of the neuron
    scale = other.abs().max().item()
    return torch.allclose(one, other, rtol=_TOLERANCE, atol=_TOLERANCE * scale)


def _copy_and_shape(layer: nn.Module) -> tuple[nn.Module, tuple[int, ...] | None]:
    """Return a copy in float64 and the shape of a step that it accepts, None if it accepts none of those tried.

    The number of channels is that of its parameters or buffers; nothing else is known of its input here.

    Raises:
        InitialStateError: if the state of rest has another shape, dtype or device than a step.
    """
    probed = copy.deepcopy(layer).double()
    sizes = [value.shape[0] for value in (*probed.parameters(), *probed.buffers()) if value.dim() > 0]
    for channels in dict.fromkeys([*sizes, 3]):
        for shape in ((2, channels), (2, channels, 2, 2)):
            try:
                probed.step(torch.zeros(shape, dtype=torch.float64), None)  # type: ignore[operator]
            except InitialStateError:
                raise
            except (RuntimeError, ValueError, IndexError):  # it takes steps of another shape
                continue
            return probed, shape
    return probed, None


def one_step_refusal(neuron: Neuron, shape: tuple[int, ...]) -> str | None:
    """Return why one step from rest is not a comparison of the current with a constant, None if it is.

    At rest, ``membrane - threshold - current`` must not vary with the current of the neuron, nor with that of another
    channel.

    Args:
        neuron: the neurons.
        shape: of their current without the batch, `(C,)` or `(C, 1, 1)`.
    """
    if not neuron.independent:
        return "its neurons receive each other's spikes"
    magnitudes = torch.logspace(-3, 3, 13, dtype=torch.float64)
    currents = torch.cat([-magnitudes, torch.zeros(1, dtype=torch.float64), magnitudes])
    alike = currents.view(-1, *(1,) * len(shape)).expand(-1, *shape)
    others = alike.clone()
    others[:, 0] = others[:, 0].flip(0)  # another current in the first channel
    probed = copy.deepcopy(neuron).double()
    distances = []
    try:
        for x in (alike, others):
            state = probed.charge(x, probed.checked_initial_state(x))
            distances.append(membrane(state) - probed.firing_threshold(state) - x)
    except InitialStateError as error:
        return str(error)
    except (RuntimeError, ValueError, IndexError) as error:
        return f"it cannot run on the {shape[0]} channels that it receives: {error}"
    tolerance = 1e-9 * currents.abs().max()
    if not (torch.stack(distances) - distances[0][:1]).abs().max() <= tolerance:  # NaN is no constant
        return "at rest its distance to the threshold is not its current plus a constant"
    return None
