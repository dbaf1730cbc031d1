"""Networks that advance by some time steps at a time: on a stream of inputs, or chunk by chunk.

`run` takes a whole sequence and starts from rest. `advance` takes the states that the steps before left, and returns
those that it leaves: a pure function, through which gradients flow. `Stream` keeps them from call to call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from lightning_snn.nn.folding import as_input, unfold_output
from lightning_snn.nn.inputs import call_with_inputs, first_input, map_inputs
from lightning_snn.nn.layer_rules import Refusal
from lightning_snn.nn.row_checks import checked_rows
from lightning_snn.nn.run_context import remember_for_backward, run_values, steps_set
from lightning_snn.nn.shape_errors import explained_shapes
from lightning_snn.nn.stateful import StatefulLayer
from lightning_snn.nn.states import LayerStates, State, StepOf
from lightning_snn.nn.time_wrappers import TimeWrapper

NetworkState = dict[str, State]
"""states of layers by their name in the network"""


def advance(network: nn.Module, x: Tensor, state: Mapping[str, State] | None = None) -> tuple[Any, NetworkState]:
    """Run a network over the next steps of a sequence.

    A sequence that is cut into pieces gives what `run` gives for the whole, unless a membrane potential is within
    rounding of its threshold. Gradients flow through the states.

    Args:
        network: a plain module that maps `[T*B, ...]` to `[T*B, ...]`.
        x: the next t inputs, shape `[t, B, ...]`, time first.
        state: states after the steps before, as this function returned them; None is the state of rest.

    Returns:
        The output with every tensor unfolded to `[t, B, ...]`, and the states after the last step: those of each layer
        by its name in the network, with ``#k`` for the k-th further call of the same layer.

    Raises:
        ValueError: if `x` is not such a sequence or has another number of samples than the state; if the state belongs
            to another network; within `posterior_noise`, whose draws belong to a whole sequence; or if batch
            normalization is in training mode, whose statistics are those of a whole sequence.
        RuntimeError: if a layer mixes time steps but takes no state.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), LIF(), nn.Linear(8, 3))
        >>> x = torch.rand(10, 2, 4)
        >>> first, state = lightning_snn.advance(network, x[:6])
        >>> second, state = lightning_snn.advance(network, x[6:], state)
        >>> torch.allclose(torch.cat([first, second]), run(network, x))
        True
    """
    outputs, states = _pass(network, x, state, _names(network))
    return outputs, states.after()


class Stream:
    """A network on a stream of inputs, one time step per call.

    The states are in the stream, not in the network, so several streams can share a network. Calls keep no graph; use
    `advance` to train on pieces of a sequence.

    Args:
        network: a plain module that maps `[T*B, ...]` to `[T*B, ...]`, in evaluation mode.

    Raises:
        ValueError, RuntimeError: from a call, as `advance`.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), LIF(), nn.Linear(8, 3)).eval()
        >>> stream = lightning_snn.Stream(network)
        >>> x = torch.rand(10, 2, 4)
        >>> outputs = torch.stack([stream(step) for step in x])
        >>> torch.allclose(outputs, run(network, x))
        True
    """

    def __init__(self, network: nn.Module) -> None:
        if not isinstance(network, nn.Module):
            raise ValueError(f"Expected argument `network` to be a Module, but got {network!r}")
        self.network = network
        self._names = _names(network)
        self._state: NetworkState = {}
        self._steps: dict[str, StepOf] = {}

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Any:
        """Run the next step.

        Args:
            x: input of the step, shape `[B, ...]`.

        Returns:
            the output of the step, with tensors `[B, ...]`.
        """
        outputs, states = _pass(self.network, x[None], self._state or None, self._names)
        self._state = states.after()
        self._steps = {name: call.step for name, call in states.calls.items() if call.step is not None}
        return tree_map(lambda tensor: tensor[0], outputs)

    @property
    def state(self) -> NetworkState:
        """States of the layers by their name in the network; empty before the first step."""
        return dict(self._state)

    def reset(self, rows: int | Sequence[int] | Tensor | None = None) -> None:
        """Return to the state of rest.

        Args:
            rows: samples to reset: an index, indices, or a boolean tensor `[B]`. None resets all, after which the
                number of samples may be another one.

        Raises:
            IndexError: if there is no such sample.
            NotImplementedError: if a layer defines no `initial_state`.
        """
        if rows is None:
            self._state = {}

        def with_rest(state: Tensor, rest: Tensor) -> Tensor:
            changed = state.clone()
            changed[rows] = rest[rows]
            return changed

        for name, state in self._state.items():
            self._state[name] = tree_map(with_rest, state, self._rest(name, self._steps[name]))

    def state_dict(self) -> dict[str, tuple[Tensor, ...]]:
        """Return the states as plain tuples of tensors, which ``torch.load(path, weights_only=True)`` reads."""
        return {name: tuple(tree_leaves(state)) for name, state in self.state.items()}

    def load_state_dict(self, state_dict: Mapping[str, Sequence[Tensor]]) -> None:
        """Continue from states that `state_dict` returned, of a stream of the same network.

        Raises:
            ValueError: if they belong to another network.
            NotImplementedError: if a layer defines no `initial_state`.
        """
        states, steps = {}, {}
        for name, leaves in state_dict.items():
            steps[name] = StepOf(leaves[0].shape, leaves[0].dtype, leaves[0].device)
            rest, structure = tree_flatten(self._rest(name, steps[name]))
            if len(rest) != len(leaves):
                raise ValueError(
                    f"Expected argument `state_dict` to hold {len(rest)} tensors for {name}, but got {len(leaves)}"
                )
            states[name] = tree_unflatten([leaf.clone() for leaf in leaves], structure)
        self._state, self._steps = states, steps

    def _rest(self, name: str, step: StepOf) -> State:
        layer = {name: module for module, name in self._names.items()}.get(name.partition("#")[0])
        if not isinstance(layer, StatefulLayer):
            raise ValueError(f"Expected the state of a layer of the network, but got that of {name!r}")
        return layer.initial_state(step.zeros())


def streaming_refusals(network: nn.Module) -> list[Refusal]:
    """Return the layers of a network that cannot be trained on pieces of a sequence, and why.

    Layers that nothing but a call shows to mix time steps are refused by `advance`.

    Example:
        >>> [refusal.name for refusal in streaming_refusals(nn.Sequential(nn.BatchNorm1d(4), LIF()))]
        ['0']
    """
    found = []
    for name, layer in network.named_modules():
        if isinstance(layer, _BatchNorm):
            remedy = "checkpoint the blocks of the network instead, with `torch.utils.checkpoint`"
            found.append(Refusal(name, layer, f"its statistics are those of a whole sequence: {remedy}"))
        elif isinstance(layer, TimeWrapper):
            found.append(Refusal(name, layer, "its module takes whole sequences"))
    return found


def _pass(
    network: nn.Module, x: Tensor, state: Mapping[str, State] | None, names: Mapping[nn.Module, str]
) -> tuple[Any, LayerStates]:
    x = as_input(network, x)
    if run_values().noise is not None:
        raise ValueError(
            "Expected no `posterior_noise` or `weight_draws` around steps of a sequence, because their draws belong to "
            "a whole sequence. Use `run`"
        )
    for module, name in names.items():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(
                "Expected batch normalization by stored statistics, because those of a batch belong to a whole "
                f"sequence, but got {name or 'the network'}: {type(module).__name__}"
                f"{' in training mode. Call `network.eval()`' if module.training else ' without any. Use `run`'}"
            )
    time_steps, batch_size = first_input(x).shape[:2]
    states = LayerStates(names, state)
    rows = map_inputs(lambda part: part.flatten(0, 1), x)
    with steps_set(time_steps, first_input(rows), states=states), checked_rows(network, time_steps, batch_size):
        with explained_shapes(network, x):
            output = call_with_inputs(network, rows)
        outputs = unfold_output(output, time_steps, batch_size)
        for call in states.calls.values():
            for leaf in tree_leaves(call.after):
                remember_for_backward(leaf)
    return outputs, states


def _names(network: nn.Module) -> dict[nn.Module, str]:
    # those of a compiled network are those of the network
    return {module: name.replace("_orig_mod.", "") for name, module in network.named_modules()}
