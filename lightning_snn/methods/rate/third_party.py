r"""The gradient of rates of any module that spikes, whatever library its layers are from and however it calls them.

Rate-based backpropagation takes means over time on both sides of a spiking layer. With :math:`e_t` the error of its
spikes :math:`s_t` and :math:`c_t` its currents, t = 1..T,

.. math::
    \bar e = \frac{1}{T} \sum_t e_t, \qquad
    \frac{\partial L}{\partial c_t} = \bar e \, \frac{\partial r}{\partial \epsilon}, \qquad
    \frac{\partial r}{\partial \epsilon} = \frac{1}{T} \sum_{j,k} \frac{\partial s_j}{\partial c_k} ,

the last being the eligibility of the neuron: the derivative of its rate with respect to a shift of its current that is
constant in time (`functional.eligibility`). Parameters of the layer itself hear of the mean error, too. This needs one
run and no rule for any module: the graph is cut on both sides of every spiking layer, and the pieces between the cuts,
whatever they hold, are differentiated from the last to the first.

A connection between two spiking layers that does the same at every step, such as a linear map, a convolution or a
pooling, then has the gradient that `rate_run` gives it: its errors are constant in time, so that only the mean of its
inputs counts. What differs from `rate_run`:

- What comes after the last spikes learns by backpropagation through time: a readout with a loss at every step, or
  membranes that are read out, those of spiking layers included.
- Batch normalization with the statistics of the batch, and layers with a state that never spike, pass errors that vary
  in time on to the connection before them. `rate_run` keeps the means of these, too.

Cost: a run, a backward pass, and two more through the spiking layers alone; the memory of backpropagation through time.

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

from lightning_snn.methods.rate.alignment import Alignment, alignments, gradients_of_modules
from lightning_snn.nn.moments import Moments
from lightning_snn.nn.observation import as_steps, first_argument, named_spiking_layers, takes_all_steps


def module_alignment(
    module: nn.Module, loss: Callable[[nn.Module], Tensor], copied: Callable[[nn.Module], nn.Module] = copy.deepcopy
) -> dict[str, Alignment]:
    """Cosine and norm ratio of the gradient of `rate_backward` against that of `backward`, per layer and as a whole.

    Both gradients are taken on copies, in the module's mode of training or evaluation and from the same random state of
    torch, so that nothing is left behind: no gradient, no running statistics, no draw.

    Args:
        module: any module with spiking layers.
        loss: from a copy of the module to a scalar.
        copied: from the module to a copy of it.

    Returns:
        by the name of each module that has trained parameters of its own, in order of registration; the whole gradient
        under ``"all"``.

    Raises:
        ValueError: if no parameter is trained, or as in `rate_backward`.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), LIF(0.2), nn.Linear(8, 3))
        >>> x = torch.rand(6, 2, 4)
        >>> module_alignment(network, lambda each: run(each, x).square().mean())["2"].norm_ratio < 1
        True
    """
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ValueError("Expected argument `module` to have parameters that require a gradient, but got none")
    rates = gradients_of_modules(module, copied, lambda twin: rate_backward(twin, loss))
    exact = gradients_of_modules(module, copied, lambda twin: loss(twin).backward())
    return alignments(rates, exact)


def rate_backward(module: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Tensor:
    """What ``loss(module).backward()`` does, by rates: adds to the gradients of the module's parameters.

    Args:
        module: any module with spiking layers, which `loss` calls with one sequence: all calls of a layer that takes a
            step at a time are steps of it, and each call of a layer that takes all steps is a sequence.
        loss: from the module to a scalar.

    Returns:
        the loss, without a graph. All values are those of an ordinary run.

    Raises:
        ValueError: naming the layer, if it hears its own spikes, as with recurrent weights, or if those of a layer
            reach one that is called before it; if a layer is driven by a Gaussian current, called with steps of
            different shapes, or returns spikes of another shape; if no spiking layer is called.
    """
    with torch.enable_grad():
        with _cut(module) as sequences:
            value = loss(module)
        if not sequences:
            raise ValueError(
                f"Expected spiking layers of {type(module).__name__} to be called, with gradients on, but got no call "
                f"of {', '.join(named_spiking_layers(module)) or 'any, for it has none'}"
            )
        value.backward(retain_graph=True)
        # from the last to the first: the errors of a layer are complete when all those after it have passed theirs on
        for sequence in reversed(sequences):
            sequence.backward()
    for sequence in sequences:
        cuts = (cut for call in sequence.calls for cut in (call.input, call.leaf) if cut is not None)
        if any(cut.grad is not None for cut in cuts):
            raise _refusal(sequence.name, sequence.layer, "it hears itself, or is heard by a layer called before it")
    return value.detach()


class _Call(NamedTuple):
    """A call of a spiking layer, cut off from what was before and from what follows.

    Attributes:
        current: what it was given.
        input: the same without its graph.
        output: the spikes that it returned, with the graph of the layer alone.
        leaf: the same without its graph, with which the module goes on; None if they have no derivative.
    """

    current: Tensor
    input: Tensor
    output: Tensor
    leaf: Tensor | None


@dataclass
class _Sequence:
    """The calls of a spiking layer with the steps of a sequence.

    Attributes:
        name: of the layer.
        layer: the layer.
        shape: of a step.
        calls: its calls.
        steps: in all calls.
    """

    name: str
    layer: nn.Module
    shape: torch.Size
    calls: list[_Call] = field(default_factory=list)
    steps: int = 0

    def backward(self) -> None:
        """Pass the errors of the spikes on to the layer's parameters and, through its currents, to what was before."""
        # of membranes, if they were read out
        errors = [_taken(call.input) for call in self.calls]
        total = self._sum_over_time([_taken(call.leaf) for call in self.calls if call.leaf is not None])
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
        """From the mean error of the spikes to that of the currents, `[B, ...]`."""
        outputs = self._outputs()
        torch.autograd.backward(outputs, [_at_every_step(error, output) for output in outputs], retain_graph=True)
        along = self._sum_over_time([_taken(call.input) for call in self.calls])
        if along is None:
            return torch.zeros_like(error)
        if self.steps > 1:
            self._check_independence(error, along)
        return along / self.steps

    def _check_independence(self, error: Tensor, along: Tensor) -> None:
        """The sums over a layer that autograd gives are derivatives of each neuron only if it hears no other."""
        signs = torch.randint(0, 2, error.shape, generator=torch.Generator().manual_seed(0)).mul_(2).sub_(1).to(error)
        outputs = self._outputs()
        inputs = [call.input for call in self.calls]
        probes = [_at_every_step(signs, output) for output in outputs]
        probed = self._sum_over_time(torch.autograd.grad(outputs, inputs, probes, retain_graph=True, allow_unused=True))
        assert probed is not None
        deviation = (along - error * signs * probed).abs().amax()
        # half precision rounds every step by itself
        if deviation > max(1e-3, 16 * torch.finfo(error.dtype).eps) * along.abs().amax():
            raise _refusal(self.name, self.layer, "its neurons hear each other")

    def _outputs(self) -> list[Tensor]:
        return [call.output for call in self.calls if call.leaf is not None]

    def _sum_over_time(self, values: Iterable[Tensor | None]) -> Tensor | None:
        """The sum `[B, ...]` over steps of what there is of calls, time folded into the batch or not."""
        sums = [value.reshape(-1, *self.shape).sum(0) for value in values if value is not None]
        return torch.stack(sums).sum(0) if sums else None


@contextmanager
def _cut(module: nn.Module) -> Iterator[list[_Sequence]]:
    """A context in which spiking layers are cut off; it gives their calls, in the order of the first of a sequence."""
    sequences: list[_Sequence] = []
    layers = named_spiking_layers(module)
    with ExitStack() as hooks:
        for name, layer in layers.items():
            # one within another is a part of it
            if not any(layer is not other and layer in other.modules() for other in layers.values()):
                calls = _Calls(name, sequences)
                hooks.callback(layer.register_forward_pre_hook(calls.before, with_kwargs=True).remove)
                hooks.callback(layer.register_forward_hook(calls.after).remove)
        yield sequences


class _Calls:
    """The hooks of a spiking layer."""

    def __init__(self, name: str, sequences: list[_Sequence]) -> None:
        self._name, self._sequences = name, sequences
        self._sequence: _Sequence | None = None
        self._given: tuple[Tensor, Tensor] | None = None

    def before(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._given = None
        current = first_argument(args, kwargs)
        if isinstance(current, Moments):
            raise _refusal(self._name, layer, "it is driven by a Gaussian current")
        if not torch.is_grad_enabled() or not isinstance(current, Tensor) or not current.is_floating_point():
            return None
        self._given = current, current.detach().requires_grad_()
        following = self._given[1].clone()  # which may be changed in place
        if args:
            return (following, *args[1:]), kwargs
        return args, {**kwargs, next(iter(kwargs)): following}

    def after(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        spikes = output[0] if isinstance(output, tuple) else output
        if self._given is None:
            return None
        if self._given[0].shape != spikes.shape:
            shapes = f"{tuple(self._given[0].shape)} and {tuple(spikes.shape)}"
            raise _refusal(self._name, layer, f"its current and its spikes are of the shapes {shapes}")
        steps = as_steps(layer, spikes)
        if self._sequence is None or takes_all_steps(layer):
            self._sequence = _Sequence(self._name, layer, steps.shape[1:])
            self._sequences.append(self._sequence)
        if self._sequence.shape != steps.shape[1:]:
            shapes = f"{tuple(self._sequence.shape)} and {tuple(steps.shape[1:])}"
            raise _refusal(self._name, layer, f"it is called with steps of the shapes {shapes}")
        leaf = spikes.detach().requires_grad_() if spikes.requires_grad else None
        self._sequence.calls.append(_Call(*self._given, spikes, leaf))
        self._sequence.steps += len(steps)
        if leaf is None:
            return None
        following = leaf.clone()
        return (following, *output[1:]) if isinstance(output, tuple) else following


def _at_every_step(step: Tensor, like: Tensor) -> Tensor:
    """A step `[B, ...]` at each step of a call, of its shape."""
    return step.expand(like.numel() // max(step.numel(), 1), *step.shape).reshape(like.shape)


def _taken(leaf: Tensor) -> Tensor | None:
    """The gradient of a leaf, which it has no longer."""
    gradient, leaf.grad = leaf.grad, None
    return gradient


def _sum(first: Tensor | None, second: Tensor) -> Tensor:
    return second if first is None else first + second


def _refusal(name: str, layer: nn.Module, reason: str) -> ValueError:
    return ValueError(
        f"Expected spiking layers that a gradient of rates can represent, but got {name}: {type(layer).__name__} "
        f"({reason})"
    )
