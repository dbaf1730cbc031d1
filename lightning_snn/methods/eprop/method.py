r"""E-prop: learning signals of neurons times eligibility traces of synapses.

.. math:: \nabla W_{ji} = \sum_t L_{j,t}\, e_{ji,t}, \qquad e_{ji,t} = h_{j,t}\, \epsilon_{ji,t}, \qquad
    L_{j,t} = \sum_k B_{jk}\, \frac{\partial E_t}{\partial o_{k,t}}

where h is the surrogate derivative, E_t the loss of the output o of step t, and :math:`\partial E_t / \partial o` is
:math:`\pi_{k,t} - y_k` for cross-entropy, over the size of the batch. For LIF neurons
:math:`\epsilon_t = \beta \epsilon_{t-1} + z_{i,t}` for inputs, and :math:`z_{i,t-1}` for recurrent synapses. For
adaptive ones, whose threshold rises by b with each spike,

.. math:: \epsilon^a_t = h_{t-1} \epsilon^v_{t-1} + (\rho - h_{t-1} b)\, \epsilon^a_{t-1}, \qquad
    e_t = h_t (\epsilon^v_t - b\, \epsilon^a_t)

The state of any other neuron has its own vector. A reset is part of the path unless ``detach_reset=True``, as it is in
the paper. If a `LeakyIntegrator` of decay kappa follows the readout weights, traces are filtered by it,
:math:`\bar e_t = \kappa \bar e_{t-1} + e_t`.

Feedback B is that of the readout weights ("symmetric"), fixed random weights ("random"), or weights that start at
random and receive the gradient of the readout weights ("adaptive"). In a network of several hidden layers, each one
learns by errors that are broadcast to it by random weights of its own, and no error passes from layer to layer.

Exact, that is equal to backpropagation through time of the same objective: with symmetric feedback in a network of one
hidden layer without recurrent weights, and for the readout in any network. With recurrent weights, symmetric feedback
neglects that a spike changes the spikes of other neurons later: it is autograd with the recurrent spikes detached.

Cost: O(T) time and memory, one forward and one backward pass. With ``streaming=True`` traces are explicit, and memory
does not grow with T: one eligibility vector per synapse, sample and tensor of the state, and a trace of that size.

After Bellec et al. 2020. Errors for hidden layers below the last one are this library's reading of its broadcast
alignment. Not to be confused with `OnlineThroughTime`, whose errors pass through layers and whose traces are those of
presynaptic neurons, nor with real-time recurrent learning, which keeps the paths through other neurons.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_snn.checks import check_choice
from lightning_snn.functional.eprop import broadcast_errors
from lightning_snn.methods.base import Step
from lightning_snn.methods.eprop.chain import FEEDBACKS, RECURRENT, Chain, Feedback, chain_refusals
from lightning_snn.methods.eprop.streaming import EligibilityRun
from lightning_snn.methods.online import GradientSum, OnlineMethod
from lightning_snn.nn.folding import as_input, check_samples, folded, unfold, unfold_output
from lightning_snn.nn.layer_rules import Refusal
from lightning_snn.nn.lengths import later_steps
from lightning_snn.nn.neurons import Neuron
from lightning_snn.nn.run_context import forward_replaced


class EProp(OnlineMethod):
    """E-prop; the objective is the mean of the losses of single steps, with recurrent spikes as constants.

    Args:
        feedback: "symmetric", "random" or "adaptive". Several hidden layers need "random".
        streaming: whether the network is called once per step with explicit eligibility traces: slower, with memory for
            each synapse and sample, which does not grow with T.

    Raises:
        ValueError: if `feedback` is none of these; from `prepare`, if the network is no chain of hidden neurons before
            one linear readout, or has layers that the method cannot train.

    Example:
        >>> method = EProp()
        >>> step = method.training_step(method.prepare(network), x, y)
        >>> step.objective.backward()
    """

    citation = """@article{bellec2020solution,
  title = {A solution to the learning dilemma for recurrent networks of spiking neurons},
  author = {Bellec, Guillaume and Scherr, Franz and Subramoney, Anand and Hajek, Elias and Salaj, Darjan and
    Legenstein, Robert and Maass, Wolfgang},
  journal = {Nature Communications}, volume = {11}, pages = {3625}, year = {2020}
}"""

    def __init__(self, feedback: Feedback = "symmetric", streaming: bool = False) -> None:
        super().__init__(streaming)
        check_choice("feedback", feedback, FEEDBACKS)
        self.feedback = feedback

    def prepare(self, network: nn.Module) -> nn.Module:
        network = super().prepare(network)
        if self.feedback != "symmetric":
            chain = Chain.of(network)
            like = chain.readout_layer().weight
            for index, size in enumerate(chain.feedback_sizes()):
                # as a new nn.Linear
                drawn = torch.empty(len(like), size, dtype=like.dtype, device=like.device)
                drawn.uniform_(-(size**-0.5), size**-0.5)
                trained = self.feedback == "adaptive"
                self.register_parameter(f"feedback_weight_{index}", nn.Parameter(drawn, requires_grad=trained))
        return network

    @property
    def feedback_weights(self) -> list[nn.Parameter]:
        """Weights B `[C, N]` of each hidden layer, which `prepare` draws; none if symmetric."""
        return list(self.parameters(recurse=False))

    def refusals(self, network: nn.Module) -> list[Refusal]:
        return super().refusals(network) or chain_refusals(network, self.feedback, self.streaming)

    def training_step(self, network: nn.Module, x: Tensor, y: Tensor) -> Step:
        check_samples(x)
        self.check_precision(x)
        self.check_not_compiled(network)
        chain, x = Chain.of(network), as_input(network, x)
        if self.feedback != "symmetric" and len(self.feedback_weights) != len(chain.hidden):
            raise RuntimeError("Expected a network that EProp has prepared, but got another one. Call `prepare` first")
        if self.streaming:
            return self._step_by_step(chain, x, y)
        outputs = self._outputs(chain, x)
        return self.step_on_objective(self.mean_step_loss(outputs, y), outputs, y)

    def _outputs(self, chain: Chain, x: Tensor) -> Tensor:
        """Return the outputs `[T, B, C]`, whose gradient is that of e-prop."""
        steps, samples = x.shape[:2]
        signals: list[Tensor] = []
        recurrent = [layer for layer in chain.layers if RECURRENT.find(layer)]
        with folded(steps), forward_replaced(recurrent, _with_constant_recurrence):
            rows = x.flatten(0, 1)
            for place, layer in enumerate(chain.layers):
                rows = layer(rows)
                if isinstance(layer, Neuron):
                    signals.append(rows)
                    if self.feedback != "symmetric" or place != chain.hidden[-1]:
                        rows = rows.detach()
                elif place == chain.readout and self.feedback != "symmetric":
                    rows = broadcast_errors(rows, signals, self.feedback_weights)
            outputs: Tensor = unfold_output(rows, steps, samples)
        return outputs

    def _step_by_step(self, chain: Chain, x: Tensor, y: Tensor) -> Step:
        steps, run = self.learned_steps(len(x)), EligibilityRun(chain)
        readout = chain.readout_layer()
        feedback: Sequence[Tensor] = self.feedback_weights or [readout.weight]
        gradients = GradientSum(
            [*(each for layer in chain.layers for each in layer.parameters()), *self.feedback_weights]
        )
        objective = torch.zeros((), device=x.device)
        outputs: Tensor | None = None
        for index, current in enumerate(x):
            with later_steps(index):
                output = run.advance(current)
            outputs = output.new_empty(len(x), *output.shape) if outputs is None else outputs
            outputs[index] = output
            if index in steps:
                leaf = output.requires_grad_()
                loss = self.task.step_loss(leaf, y, index, len(x)) / len(steps)
                (error,) = torch.autograd.grad(loss, leaf)
                run.add_gradients(gradients, error, feedback)
                objective = objective + loss.detach()
        assert outputs is not None
        return self.step_on_objective(gradients.objective(objective), outputs, y)

    def extra_repr(self) -> str:
        return f"feedback={self.feedback}" + (", streaming=True" if self.streaming else "")


def _with_constant_recurrence(layer: nn.Module, x: Tensor) -> Tensor:
    """Run recurrent neurons, whose last spikes are constants of the current of the next step."""
    assert isinstance(layer, Neuron)
    state, found = None, []
    for current in unfold(x, layer).unbind(0):
        spikes, state = layer.step(current, state)
        state = state._replace(spikes=state.spikes.detach())
        found.append(spikes)
    return torch.cat(found)
