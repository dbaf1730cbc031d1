"""Networks, inputs and targets as messages take them."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_snn.functional.readout import readout
from lightning_snn.methods.ep.chain import Chain, MessageNetwork
from lightning_snn.methods.ep.neurons import SpikeOutput
from lightning_snn.methods.ep.recurrence import RecurrentMessageNetwork
from lightning_snn.nn.folding import as_input
from lightning_snn.nn.layer_rules import Refusal, is_compiled, refuse
from lightning_snn.nn.lengths import lengths_of


def chain_of(network: nn.Module) -> Chain:
    """Return the blocks of a network from `ExpectationPropagation.prepare`.

    Raises:
        ValueError: if the network is compiled, or is not from `prepare`.
    """
    if is_compiled(network):
        reason = "messages do not call it, so that compiling has no effect: train it without `torch.compile`"
        refuse("ExpectationPropagation", [Refusal("", network, reason)])
    if not isinstance(network, MessageNetwork):
        raise ValueError(
            "Expected argument `network` to be from `ExpectationPropagation.prepare`, but got "
            f"{type(network).__name__}. Pass `module.network`"
        )
    return network.chain


def message_inputs(network: nn.Module, x: Tensor) -> Tensor:
    """Return the firing rates `[B, ...]` of inputs `[T, B, ...]` over the valid steps of each sample.

    Those of a recurrent network are the steps themselves, `[B, T, I]`.

    Raises:
        ValueError: if the network is recurrent, and inputs have other axes or different lengths.
    """
    x = as_input(network, x)
    if isinstance(network, RecurrentMessageNetwork):
        if lengths_of(x.shape[1]) is not None or x.dim() != 3:
            raise ValueError(
                "Expected inputs of shape (time, batch, features) and of one length for a recurrent network, but got "
                f"{tuple(x.shape)}" + ("" if x.dim() != 3 else " with lengths")
            )
        return x.transpose(0, 1)
    return x[0] if len(x) == 1 else readout(x, "mean", lengths_of(x.shape[1]))


def observed_inputs(network: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return `message_inputs`, and the targets as the output observes them.

    Raises:
        ValueError: if there are not as many targets as samples.
    """
    inputs = message_inputs(network, x)
    if len(inputs) != len(y):
        raise ValueError(
            "Expected inputs of shape (time, batch, ...) and as many targets as samples, but got "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    return inputs, y if isinstance(chain_of(network).output, SpikeOutput) else y.to(inputs.dtype)
