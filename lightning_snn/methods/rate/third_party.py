r"""Rate-based backpropagation through any module with spiking layers of this or of third-party libraries.

Rate-based backpropagation takes means over time on both sides of a spiking layer. With :math:`e_t` the error of its
spikes :math:`s_t` and :math:`c_t` its currents, t = 1..T,

.. math::
    \bar e = \frac{1}{T} \sum_t e_t, \qquad
    \frac{\partial L}{\partial c_t} = \bar e \, \frac{\partial r}{\partial \epsilon}, \qquad
    \frac{\partial r}{\partial \epsilon} = \frac{1}{T} \sum_{j,k} \frac{\partial s_j}{\partial c_k} ,

where the last term is the eligibility of the neuron: the derivative of its rate with respect to a shift of its current
that is constant in time (`functional.eligibility`). Parameters of the layer itself receive the mean error too. This
needs one run and no rule for any module: the graph is cut on both sides of every spiking layer, and the pieces between
the cuts are differentiated from the last to the first.

A connection between two spiking layers that is the same at every step, such as a linear map, a convolution or a
pooling, then has the gradient of `rate_run`: its errors are constant in time, so the gradient depends on the mean of
its inputs only. Differences from `rate_run`:

- Modules after the last spikes learn by backpropagation through time: a readout with a loss at every step, or membrane
  potentials that are read out, including those of spiking layers.
- Batch normalization with the statistics of the batch, and layers with a state that never spike, pass errors that vary
  in time to the connection before them. `rate_run` uses the means of these errors.

Cost: a run, a backward pass, and two more through the spiking layers only; the memory of backpropagation through time.

After Yu et al. 2024, arXiv 2410.11488.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_snn.methods.rate.alignment import Alignment, compare_gradients
from lightning_snn.nn.moments import Moments
from lightning_snn.nn.observation import as_steps, first_argument, named_spiking_layers, takes_all_steps


def module_alignment(
    module: nn.Module, loss: Callable[[nn.Module], Tensor], make_copy: Callable[[nn.Module], nn.Module] = copy.deepcopy
) -> dict[str, Alignment]:
    """Compare the gradient of `rate_backward` with that of `backward` by cosine and norm ratio.

    As `gradient_alignment`, both gradients are computed on copies and leave module and random state unchanged.

    Args:
        module: any module with spiking layers.
        loss: returns a scalar for a copy of the module.
        make_copy: returns a copy of the module.

    Returns:
        The alignment per layer and as a whole, as in `gradient_alignment`.

    Raises:
        ValueError: if no parameter is trained, or as in `rate_backward`.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), LIF(0.2), nn.Linear(8, 3))
        >>> x = torch.rand(6, 2, 4)
        >>> module_alignment(network, lambda copied: run(copied, x).square().mean())["all"].cosine > 0.9
        True
    """
    return compare_gradients(
        "module",
        module,
        make_copy,
        lambda copied: rate_backward(copied, loss),
        lambda copied: loss(copied).backward(),
    )


def rate_backward(module: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Tensor:
    """Add the gradient of rates to the gradients of the module's parameters, in place of ``loss(module).backward()``.

    Args:
        module: any module with spiking layers. `loss` calls it with one sequence: all calls of a layer that takes one
            step per call are steps of this sequence, and each call of a layer that takes all steps is a sequence.
        loss: returns a scalar for the module.

    Returns:
        The loss, without a graph. All values are those of an ordinary run.

    Raises:
        ValueError: if a layer receives its own spikes, as with recurrent weights, or those of a layer that is called
            after it; if a layer receives a Gaussian current, is called with steps of different shapes, or returns
            spikes of another shape; if no spiking layer is called. The message names the layer.

    Example:
        >>> loss = rate_backward(network, lambda module: run(module, x).square().mean())
        >>> network[0].weight.grad.shape
        torch.Size([8, 4])
    """
    with torch.enable_grad():
        with _cut(module) as sequences:
            value = loss(module)
        if not sequences:
            raise ValueError(
                f"Expected spiking layers of {type(module).__name__} to be called with gradients enabled, but got no "
                f"call of {', '.join(named_spiking_layers(module)) or 'any: it has none'}"
            )
        value.backward(retain_graph=True)
        # from the last to the first: the errors of a layer are complete after those of all later layers
        for sequence in reversed(sequences):
            sequence.backward()
    for sequence in sequences:
        cuts = (cut for call in sequence.calls for cut in (call.input, call.leaf) if cut is not None)
        if any(cut.grad is not None for cut in cuts):
            raise _refusal(
                sequence.name, sequence.layer, "it receives its own spikes, or a layer called before it receives them"
            )
    return value.detach()


class _Call(NamedTuple):
    """A call of a spiking layer, whose graph is cut before and after it.

    Attributes:
        current: its input.
        input: the input without its graph.
        output: the spikes that it returned, with the graph of the layer only.
        leaf: the spikes without a graph, with which the module continues; None if they have no derivative.
    """

    current: Tensor
    input: Tensor
    output: Tensor
    leaf: Tensor | None


@dataclass
class _Sequence:
    """The calls of a spiking layer for one sequence.

    Attributes:
        name: name of the layer.
        layer: the layer.
        shape: shape of a step.
        calls: calls of the layer.
        steps: number of steps of all calls.
    """

    name: str
    layer: nn.Module
    shape: torch.Size
    calls: list[_Call] = field(default_factory=list)
    steps: int = 0

    def backward(self) -> None:
        """Propagate the errors of the spikes to the layer's parameters and through its currents."""
        # errors of membrane potentials that were read out
        errors = [_take_gradient(call.input) for call in self.calls]
        total = self._sum_over_time([_take_gradient(call.leaf) for call in self.calls if call.leaf is not None])
        if total is not None:
            along = self._through_layer(total / self.steps)
            errors = [
                _sum(error, _at_every_step(along, call.input)) for error, call in zip(errors, self.calls, strict=True)
            ]
        pairs = [
            (call.current, error)
            for call, error in zip(self.calls, errors, strict=True)
            if call.current.requires_grad and error is not None
        ]
        if pairs:
            currents, errors_of_currents = zip(*pairs, strict=True)
            torch.autograd.backward(currents, errors_of_currents, retain_graph=True)

    def _through_layer(self, error: Tensor) -> Tensor:
        """Return the mean error of the currents `[B, ...]` for that of the spikes."""
        outputs = self._outputs()
        torch.autograd.backward(outputs, [_at_every_step(error, output) for output in outputs], retain_graph=True)
        along = self._sum_over_time([_take_gradient(call.input) for call in self.calls])
        if along is None:
            return torch.zeros_like(error)
        if self.steps > 1:
            self._check_independence(error, along)
        return along / self.steps

    def _check_independence(self, error: Tensor, along: Tensor) -> None:
        """Raise a ValueError if neurons of the layer receive input from each other.

        Only without such connections do the sums of autograd over a layer give the derivative of each neuron.
        """
        signs = torch.randint(0, 2, error.shape, generator=torch.Generator().manual_seed(0)).mul_(2).sub_(1).to(error)
        outputs = self._outputs()
        inputs = [call.input for call in self.calls]
        probes = [_at_every_step(signs, output) for output in outputs]
        probed = self._sum_over_time(torch.autograd.grad(outputs, inputs, probes, retain_graph=True, allow_unused=True))
        assert probed is not None
        deviation = (along - error * signs * probed).abs().amax()
        # in half precision every step is rounded separately
        if deviation > max(1e-3, 16 * torch.finfo(error.dtype).eps) * along.abs().amax():
            raise _refusal(self.name, self.layer, "its neurons receive input from each other")

    def _outputs(self) -> list[Tensor]:
        return [call.output for call in self.calls if call.leaf is not None]

    def _sum_over_time(self, values: Iterable[Tensor | None]) -> Tensor | None:
        """Return the sum `[B, ...]` over steps of the values of calls, folded or not; None if there are none."""
        sums = [value.reshape(-1, *self.shape).sum(0) for value in values if value is not None]
        return torch.stack(sums).sum(0) if sums else None


@contextmanager
def _cut(module: nn.Module) -> Iterator[list[_Sequence]]:
    """Enter a context in which the graph is cut around spiking layers; it yields their sequences in order of call."""
    sequences: list[_Sequence] = []
    layers = named_spiking_layers(module)
    with ExitStack() as hooks:
        for name, layer in layers.items():
            # a spiking layer within another is a part of it
            if not any(layer is not other and layer in other.modules() for other in layers.values()):
                calls = _Calls(name, sequences)
                hooks.callback(layer.register_forward_pre_hook(calls.before, with_kwargs=True).remove)
                hooks.callback(layer.register_forward_hook(calls.after).remove)
        yield sequences


class _Calls:
    """Hooks of a spiking layer."""

    def __init__(self, name: str, sequences: list[_Sequence]) -> None:
        self._name, self._sequences = name, sequences
        self._sequence: _Sequence | None = None
        self._inputs: tuple[Tensor, Tensor] | None = None

    def before(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._inputs = None
        current = first_argument(args, kwargs)
        if isinstance(current, Moments):
            raise _refusal(self._name, layer, "it receives a Gaussian current")
        if not torch.is_grad_enabled() or not isinstance(current, Tensor) or not current.is_floating_point():
            return None
        self._inputs = current, current.detach().requires_grad_()
        following = self._inputs[1].clone()  # the layer may change it in place
        if args:
            return (following, *args[1:]), kwargs
        return args, {**kwargs, next(iter(kwargs)): following}

    def after(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        spikes = output[0] if isinstance(output, tuple) else output
        if self._inputs is None:
            return None
        if self._inputs[0].shape != spikes.shape:
            shapes = f"{tuple(self._inputs[0].shape)} and {tuple(spikes.shape)}"
            raise _refusal(self._name, layer, f"its current and its spikes have the shapes {shapes}")
        steps = as_steps(layer, spikes)
        if self._sequence is None or takes_all_steps(layer):
            self._sequence = _Sequence(self._name, layer, steps.shape[1:])
            self._sequences.append(self._sequence)
        if self._sequence.shape != steps.shape[1:]:
            shapes = f"{tuple(self._sequence.shape)} and {tuple(steps.shape[1:])}"
            raise _refusal(self._name, layer, f"it is called with steps of the shapes {shapes}")
        leaf = spikes.detach().requires_grad_() if spikes.requires_grad else None
        self._sequence.calls.append(_Call(*self._inputs, spikes, leaf))
        self._sequence.steps += len(steps)
        if leaf is None:
            return None
        following = leaf.clone()
        return (following, *output[1:]) if isinstance(output, tuple) else following


def _at_every_step(step: Tensor, like: Tensor) -> Tensor:
    """Expand a step `[B, ...]` to the shape of all steps of a call."""
    return step.expand(like.numel() // max(step.numel(), 1), *step.shape).reshape(like.shape)


def _take_gradient(leaf: Tensor) -> Tensor | None:
    """Return the gradient of a leaf and clear it."""
    gradient, leaf.grad = leaf.grad, None
    return gradient


def _sum(first: Tensor | None, second: Tensor) -> Tensor:
    return second if first is None else first + second


def _refusal(name: str, layer: nn.Module, reason: str) -> ValueError:
    return ValueError(
        f"Expected spiking layers that rate-based backpropagation can represent, but got {name}: "
        f"{type(layer).__name__} ({reason})"
    )
