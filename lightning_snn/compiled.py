"""Training steps and predictions of a method as compiled code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import FunctionType
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

from lightning_snn.methods.base import Method, Step
from lightning_snn.methods.tasks import Prediction
from lightning_snn.nn.inputs import map_inputs
from lightning_snn.nn.run_context import make_replaceable, run_values


class CompiledMethod:
    """Training steps and predictions of a method, each compiled as a whole when it is first called.

    The number of time steps is a variable of the compiled code. Calls of layers that forward hooks observe run without
    the compiler, which does not see that hooks come and go. So do predictions that the method excludes, and batch
    normalization on sequences of different lengths.

    Copies compile anew.

    Args:
        options: arguments of `torch.compile`.

    Example:
        >>> compiled = CompiledMethod({"backend": "eager"})
        >>> compiled.training_step(module.method, module.network, x, y).objective.requires_grad
        True
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = dict(options)
        self._functions: dict[str, Callable[..., Any]] = {}
        self._warned = False

    def training_step(self, method: Method, network: nn.Module, x: Tensor, y: Tensor) -> Step:
        """Return `method.penalized_step(network, x, y)`."""
        # a masked batch normalization is another function for each batch, of which code would be made anew
        eager = run_values().forwards or (run_values().lengths is not None and not method.compiles_lengths)
        if eager or self._is_observed(network):
            return method.penalized_step(network, x, y)
        make_replaceable(method.intercepted_layers(network))
        method.before_compiled_step()
        step: Step = self._compiled(_training_step)(method, network, _any_length(x), y)
        method.warn_of_step(step.metrics)
        method.after_step(step.metrics)
        return step

    def predict(self, method: Method, network: nn.Module, x: Tensor) -> Prediction:
        """Return `method.predict(network, x)`."""
        if not method.compiles_predictions or run_values().forwards or self._is_observed(network):
            return method.predict(network, x)
        make_replaceable(method.intercepted_layers(network))  # for one variant of predictions before and after training
        prediction: Prediction = self._compiled(_predict)(method, network, _any_length(x))
        return prediction

    def _compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        assert isinstance(function, FunctionType)
        name = function.__name__
        if name not in self._functions:
            # a copy of the code, because the compiler limits the variants of a code object, which are those of a module
            copied = FunctionType(function.__code__.replace(), function.__globals__, name)
            self._functions[name] = torch.compile(copied, **self.options)
        return self._functions[name]

    def _is_observed(self, network: nn.Module) -> bool:
        observed = list(_observed_layers(network))
        if observed and not self._warned:
            self._warned = True
            rank_zero_warn(
                f"Forward hooks observe {', '.join(observed[:3])}{' and others' if len(observed) > 3 else ''}, so this "
                "batch runs without the compiler, as will others with hooks. Remove monitoring callbacks, or let them "
                "observe fewer batches"
            )
        return bool(observed)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_functions": {}}


def _training_step(method: Method, network: nn.Module, x: Tensor, y: Tensor) -> Step:
    return method.penalized_step(network, x, y)


def _predict(method: Method, network: nn.Module, x: Tensor) -> Prediction:
    return method.predict(network, x)


def _any_length(x: Any) -> Any:
    """Return inputs `[T, B, ...]` for which the compiler makes code for every T."""

    def marked(part: Tensor) -> Tensor:
        part = part.view_as(part)  # the mark would stay on the tensor of the caller
        torch._dynamo.maybe_mark_dynamic(part, 0)
        return part

    return map_inputs(marked, x)


def _observed_layers(network: nn.Module) -> Iterator[str]:
    if torch_modules._global_forward_hooks or torch_modules._global_forward_pre_hooks:
        yield "all layers"
    for name, layer in network.named_modules():
        hooks = (*layer._forward_hooks.values(), *layer._forward_pre_hooks.values())
        if any(not _is_part_of_its_layer(hook) for hook in hooks):
            yield name or "the network"


def _is_part_of_its_layer(hook: Callable[..., Any]) -> bool:
    """Return whether a hook computes something of its layer, such as its weight, as those of `torch.nn.utils` do."""
    return str(getattr(hook, "__module__", type(hook).__module__)).startswith("torch.")
