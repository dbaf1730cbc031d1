r"""Terms of the difference between the gradients of backpropagation through time and of firing rates.

With the currents c of a layer of neurons, its spikes s, the errors :math:`\delta_t` of currents and :math:`\eta_t` of
spikes, :math:`J_t = \sum_{k \le t} \partial s_t / \partial c_k`, the eligibility :math:`e = \bar J` and weights W to
the next layer, in every layer

.. math::
    \mathrm{BPTT} - \mathrm{rate} = \sum_t (\delta_t - \bar\delta)(s_t - \bar s)^T + E\, \bar s^T , \qquad
    E = \sum_t (\eta_t - \bar\eta)(J_t - \bar J) + e \odot W^T E_{\text{next}} ,

where s are the spikes that the layer receives, and E of the outputs is 0. The identity is exact. It holds for any maps
between neurons that commute with the mean over time; then W is their derivative. A module that does not commute, such
as batch normalization while training, adds to E what its rate rule leaves out of the sum of the errors of its inputs.

Derived in this library, for the gradient of Yu et al. 2024, arXiv 2410.11488.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_snn.functional.rate_windows import white_share
from lightning_snn.methods.rate.captured import Call, calls_captured, run_between
from lightning_snn.methods.rate.rules import RateRule
from lightning_snn.methods.rate.tape import rate_run
from lightning_snn.nn.folding import run
from lightning_snn.nn.inputs import first_input

Gradient = list[Tensor]
"""one tensor per trained parameter"""


class Answers(NamedTuple):
    """Answers of the spikes of a layer of neurons to its currents.

    Attributes:
        sums: J, derivative of the spikes with respect to a constant shift of the currents, `[T, B, ...]`.
        weights: mean derivative of a spike with respect to the current of a step before it, by lag, `[T]`.
        errors: errors of the currents, by the lag of the spike that answers, each `[T, B, ...]`.
    """

    sums: Tensor
    weights: list[float]
    errors: list[Tensor]


class Terms:
    """Gradients of a network through time and of rates, and what makes the difference.

    Args:
        network: a private copy of the network.
        rules: its modules with a rate rule, other than those that commute with the mean.
        x: input `[T, B, ...]`.
        loss: from outputs `[T, B, ...]` to a scalar.
        lags: number of lags whose errors are kept.

    Attributes:
        parameters: trained parameters.
        exact: gradient of backpropagation through time.
        rate: gradient of rates.
        neurons_before: for each module with parameters of its own, the number of layers of neurons called before it.
        answers: answers of each layer of neurons, in order of the calls.
    """

    def __init__(
        self,
        network: nn.Module,
        rules: dict[nn.Module, type[RateRule]],
        x: Any,
        loss: Callable[[Tensor], Tensor],
        lags: int,
    ) -> None:
        self.network, self.x, self.loss = network, x, loss
        self.steps = len(first_input(x))
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.neurons_before: dict[nn.Module, int] = {}
        counters = [module.register_forward_pre_hook(self._count) for module in network.modules()]
        with calls_captured(rules, None) as self.calls:
            outputs = run(network, x)
        for hook in counters:
            hook.remove()
        nodes = [*(call.input for call in self.calls), *(call.output for call in self.calls), outputs]
        found = _gradients([loss(outputs)], [*self.parameters, *nodes])
        self.exact, errors = found[: len(self.parameters)], found[len(self.parameters) :]
        count = len(self.calls)
        self._errors = [self._by_step(error) for error in errors[:count]]  # of the inputs of the calls
        self._output_errors = [self._by_step(error) for error in errors[count:-1]]
        self._last_errors = errors[-1]  # of the outputs of the network
        for call in self.calls:
            call.input, call.output = call.input.detach(), call.output.detach()
        with calls_captured(rules, "replay") as self._rate_calls:
            self.rate = self.gradient_of_rates(1)
        self._own, self._left_out = self._beyond_neurons()
        self.answers = [
            self._answers(call, errors, lags)
            for call, errors in zip(self.calls, self._output_errors, strict=True)
            if call.neurons
        ]

    def gradient_of_rates(self, windows: int, link: bool = False) -> Gradient:
        """Return the gradient of the rates of some windows."""
        return _gradients([self.loss(rate_run(self.network, self.x, windows, link=link))], self.parameters)

    def covariance(self, windows: int = 1) -> Gradient:
        """Return how errors and presynaptic values vary together within windows, as a part of the gradient."""
        found = self._between(windows)
        errors = [self._centered(each, windows) for each in (*self._errors, self._last_errors)]
        share = white_share(self.steps, windows)
        parts = _gradients(found, self.parameters, errors)
        return [part + share * own for part, own in zip(parts, self._own, strict=True)]

    def remainder(self, windows: int = 1) -> Gradient:
        """Return the part of the gradient of the error E, with variations within windows only."""
        answers = iter(self.answers)
        share = white_share(self.steps, windows)
        sources = []
        for call, errors, left_out in zip(self.calls, self._output_errors, self._left_out, strict=True):
            if call.neurons:
                varying = self._centered(errors, windows) * self._centered(next(answers).sums, windows)
                sources.append(varying.sum(0))
            else:
                sources.append(share * left_out)
        return _gradients([call.input for call in self._rate_calls], self.parameters, sources)

    def covariance_by_lag(self) -> list[Gradient]:
        """Return the parts of the covariance, except of parameters of calls, by the lag of the spikes that answer."""
        found = self._between(1)
        neurons = [call for call in self.calls if call.neurons]
        others = {call.module: RateRule for call in self.calls if not call.neurons}
        with calls_captured(others, None) as passed:
            currents, outputs = run_between(self.network, self.x, neurons, lambda part: part)
        parts = []
        for lag, errors in enumerate(zip(*(answers.errors for answers in self.answers), strict=True)):
            last = self._last_errors if lag == 0 else torch.zeros_like(self._last_errors)
            # errors pass the other modules within a step
            behind = iter(_gradients([*currents, outputs], [call.input for call in passed], [*errors, last]))
            of_neurons = iter(errors)
            all_errors = [next(of_neurons) if call.neurons else self._by_step(next(behind)) for call in self.calls]
            parts.append(_gradients(found, self.parameters, [self._centered(each, 1) for each in (*all_errors, last)]))
        return parts

    def _count(self, module: nn.Module, inputs: Any) -> None:
        self.neurons_before.setdefault(module, sum(call.neurons for call in self.calls))

    def _by_step(self, rows: Tensor) -> Tensor:
        sequence: Tensor = rows.unflatten(0, (self.steps, -1))
        return sequence

    def _centered(self, sequence: Tensor, windows: int) -> Tensor:
        parts = sequence.unflatten(0, (windows, -1))
        centered: Tensor = (parts - parts.mean(1, keepdim=True)).flatten(0, 1)
        return centered

    def _between(self, windows: int) -> list[Tensor]:
        """Return inputs of the calls and outputs of the network, on values whose means over windows are removed."""
        currents, outputs = run_between(self.network, self.x, self.calls, lambda part: self._centered(part, windows))
        return [*currents, outputs]

    def _beyond_neurons(self) -> tuple[Gradient, list[Tensor]]:
        """Return what rates leave out of the gradient of parameters of calls, and of the errors of their inputs."""
        place = {id(parameter): index for index, parameter in enumerate(self.parameters)}
        own = [torch.zeros_like(parameter) for parameter in self.parameters]
        for module in {call.module for call in self.calls}:
            for parameter in module.parameters():
                if parameter.requires_grad:
                    own[place[id(parameter)]] = self.exact[place[id(parameter)]].clone()
        left_out = []
        for call, errors, before in zip(self._rate_calls, self._output_errors, self._errors, strict=True):
            trained = [parameter for parameter in call.module.parameters() if parameter.requires_grad]
            along_input, *along = _gradients([call.output], [call.input, *trained], [errors.sum(0)])
            left_out.append(before.sum(0) - along_input)
            for parameter, gradient in zip(trained, along, strict=True):
                own[place[id(parameter)]] -= gradient
        return own, left_out

    def _answers(self, call: Call, errors: Tensor, lags: int) -> Answers:
        currents = self._by_step(call.input).requires_grad_()
        spikes = run(call.module, currents)
        sums, weights = torch.empty_like(spikes), torch.zeros(self.steps, dtype=torch.float64)
        by_lag = [torch.zeros_like(currents) for _ in range(lags)]
        for step, spike in enumerate(spikes):
            answer, error = (
                _gradients([spike], [currents], [each])[0] for each in (torch.ones_like(spike), errors[step])
            )
            sums[step] = answer.sum(0).detach()
            weights[: step + 1] += answer[: step + 1].flatten(1).mean(1).flip(0).cpu()
            for lag in range(min(lags, step + 1)):
                by_lag[lag][step - lag] = error[step - lag]
        weights /= torch.arange(self.steps, 0, -1)
        return Answers(sums.detach(), weights.tolist(), [each.detach() for each in by_lag])


def _gradients(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], errors: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """Return gradients of outputs, weighted by errors of their sizes, with zeros where nothing depends on an input."""
    kept = [index for index, output in enumerate(outputs) if output.requires_grad]
    if not kept or not inputs:
        return [torch.zeros_like(each) for each in inputs]
    weights = None if errors is None else [errors[index].reshape(outputs[index].shape) for index in kept]
    found = torch.autograd.grad(
        [outputs[index] for index in kept], inputs, weights, retain_graph=True, allow_unused=True
    )
    return [torch.zeros_like(each) if part is None else part for each, part in zip(inputs, found, strict=True)]
