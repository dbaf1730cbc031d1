r"""Expectation propagation: Bayesian training by messages between layers, without backpropagation.

Every weight has a distribution with natural parameters :math:`\eta = (P, h)`, Gaussian (``mean = h / P``) or over a few
levels. A batch sends moments forward (means and variances of potentials, probabilities of spikes) and messages backward
(from labels to potentials, and from these to spikes and weights) for some iterations. The weights then have

.. math:: \eta \leftarrow \eta_\text{cavity} + \eta_\text{batch}, \qquad
    \eta_\text{cavity} = \eta - \eta_\text{batch}^\text{old},

so that a batch is not counted twice in the next epoch. The iterations of a new batch start at the cavity. Those of a
batch that returns start at the present posterior, which contains it, so that its messages converge over the epochs. The
objective is :math:`\langle \eta, (\eta - \eta_\text{target}).\text{detach}()\rangle`, whose gradient is the
displacement: plain SGD makes the step, and its learning rate is the damping of the update.

Exact: the mean of Gaussian weights for given messages, and so that of a linear regression; the moments of one layer
with independent weights; the variance of a single weight. Approximate: weights are independent, potentials are
Gaussian, and spikes of a layer are independent. The posterior ignores the negative correlations that observations
cause: intervals are too wide near data, and wider far from data, but not calibrated. Cost: 9 to 16 matrix products per
layer and iteration with the default solver, 3 to 6 per layer but the first for a batch that returns, and 3 in a step of
SGD: the method saves epochs, not operations. Memory: six tensors of the size of the weights, gradients included; with
"per_batch" two more for every batch and four for the current step.

After Yao et al. 2025, arXiv 2506.23757. The conjugate gradients that make batches converge, discrete weights of K
levels, convolutions and the parts of the variance are ours. EP here is not equilibrium propagation.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from lightning_snn.checks import check_between, check_choice, check_integer, check_positive
from lightning_snn.functional.ep import ACTIVATIONS, OUTPUT_ACTIVATIONS, WINNER_NOISE, Activation, OutputActivation
from lightning_snn.methods.base import Method, Step
from lightning_snn.methods.ep.batch_update import chosen, update_batch
from lightning_snn.methods.ep.chain import Chain, MessageNetwork
from lightning_snn.methods.ep.convergence import Convergence
from lightning_snn.methods.ep.conversion import convert, convert_recurrent
from lightning_snn.methods.ep.inputs import chain_of, message_inputs, observed_inputs
from lightning_snn.methods.ep.memory import MEMORIES, MemoryName
from lightning_snn.methods.ep.neurons import SpikeOutput, ValueOutput
from lightning_snn.methods.ep.prediction import draw_output, output_moments, unfolded
from lightning_snn.methods.ep.recurrence import RecurrentMessageNetwork, SequenceChain
from lightning_snn.methods.ep.sequence_update import draw_sequence_output, sequence_moments, update_sequences
from lightning_snn.methods.ep.stability import stability_at
from lightning_snn.methods.ep.weight_options import WeightOptions, per_layer
from lightning_snn.methods.ep.weights import Natural, WeightName
from lightning_snn.methods.tasks import Classification, Prediction, Regression, Task
from lightning_snn.methods.tasks.base import check_is_tensor
from lightning_snn.nn.folding import as_input, check_samples
from lightning_snn.nn.lengths import lengths_of, without_padding
from lightning_snn.processes import rank

# early batches fade in the first epochs, by a share that decreases with the number of updates
_FADING_EPOCHS, _FADING_DELAY = 0.3, 10


class ExpectationPropagation(Method):
    """Expectation propagation (Yao et al. 2025, arXiv 2506.23757).

    Networks are linear and convolutional layers in order with `LIF` between them. The `LIF` layers are replaced by
    neurons that spike at most once, at one time step, by a step or a sigmoid of their potential. Pooling and reshaping
    may follow neurons: average pooling, and max-pooling as "any spike". Inputs `[T, B, ...]` of several steps are
    averaged over time, as firing rates. The weights of the given network are not used.

    Experimental: with `latch` the network is `Linear`, `RecurrentLIF` or `Recurrent`, `Linear`, and inputs are a
    sequence of steps. The neurons spike at every step by ``f(W x_t + W_rec s_{t-1} + b)``; from step to step they keep
    their spikes and no membrane potential. The target is observed after the last step.

    Labels are the spikes of independent output neurons. Class probabilities are those of exactly one spike.
    `Prediction.spike_probabilities` are those of each output; the accuracy of these bits is far above that of the
    class and must not be quoted in its place. With ``output_activation="winner"`` the output with the largest noisy
    potential spikes and inhibits the others, so its class probabilities are spike probabilities.

    The method has its own optimizer, SGD. Clipping, accumulation and schedulers act on the displacement. Logged next to
    the loss are the log-evidence of the batch; the number of times that steps were halved; the batches skipped because
    their messages diverged; and `train/residual`, how far a further iteration without damping would move the weights,
    in standard deviations: the root mean square of a layer, the largest of all layers. A fit warns at its end if the
    residual in its last epoch, the median of the batches, is above 0.1, or if messages diverged. One epoch of the
    defaults makes 88 % of the way to the messages of a batch, two make 99 %; a single layer arrives in one.

    Steps that are too long do not converge. After 1,200 iterations a fit measures once, on a batch whose messages have
    converged, the damping that would be too long, at about a percent of the cost of the fit until then. It warns if the
    present one is above 0.8 of it. `ep_stability` measures it on a given batch, also before training.

    Args:
        weights: kind of weights, one for all layers or one per layer: "gaussian", "sign" {-a, a}, "binary" {0, a}
            (spikes cannot be negative: without inhibition it learns little unless `nn.Complement` precedes it), or
            "categorical", a times `levels`. Biases are Gaussian.
        activation: of hidden neurons: "heaviside", "probit" (noise that makes it nearly a sigmoid), or "sigmoid", the
            same by quadrature.
        output_activation: of output neurons; None is `activation`. Neurons without noise rely too much on labels that
            no weights can explain, for example those of a single layer. "winner" is a competition of all outputs, for
            classifications only; a parallel update of its outputs goes up to twice as far as a joint one, so `damping`
            should be at most 0.8 even for a single layer. Batches of "winner" start at their cavity in every
            epoch, so more epochs do not replace iterations.
        prior_variance: of Gaussian weights, larger than 0, one for all layers or one per layer. None is 0.1 for one
            layer, else 3, and 10 for the last.
        prior_split: share of the prior variance, in [0, 1), that is drawn once as the prior's mean, one for all layers
            or one per layer: hidden units with equal initial weights stay equal. None is 0 for one layer, else 0.2.
        amplitude: a of discrete weights, larger than 0, one for all layers or one per layer.
        levels: of "categorical" weights, at least 2 in ascending order.
        iterations: forward and backward passes for each batch, at least 1.
        damping: length of these local steps in (0, 1]. None is 1 for one layer of weights, which needs no damping, else
            0.3. n steps of length d leave a share ``(1 - d) ** n`` of the way to the messages of the batch. Few long
            steps are fast if a batch is a small part of much data (3 of 0.4 for 60,000 digits in batches of 500), and
            oscillate if it is a large part of little data; the deeper the network, the sooner.
        solver_iterations: conjugate gradient iterations in each step, at least 1, one for all layers or one per layer.
            With whole steps one is enough, and learns faster in the first epoch; short steps need two or three.
        step_size: learning rate of the update by a batch, in (0, 1]; 1 is the full update.
        memory: how batches are kept from being counted twice. "per_batch" keeps the update by each batch, and needs the
            same samples in each batch in every epoch, in any order (`FixedBatches`). It knows a batch by its content,
            so batches of equal content count once. "average" subtracts an average batch; "adf" subtracts nothing, for
            a single epoch over a stream.
        noise_variance: of the observations of a regression, larger than 0.
        learn_noise: fit that variance to the data.
        deployment: discrete weights predict by their distribution ("soft") or by their most probable level ("hard").
        samples: 0 predicts in closed form, in one pass; K draws weights and spikes K times, for comparison.
        fading: share a in [0, 1) by which early batches fade: before update t, counted from 0, in the first 0.3
            epochs, what all earlier batches have contributed is multiplied by ``1 - a / (t + 10)``. Their messages
            were those of weights that knew little. Epochs after the first repair what faded; the limit is the same.
            0 is without; a loader without length, whose epochs are unknown, is always without.
        output_noise: variance of the noise of each output of "winner", larger than 0; None is ``4 / pi``, with which
            two outputs are one "probit" neuron. Predictions of less noise are more confident: choose it on validation
            data.
        latch: prior mean a, at least 0, of the weight of each recurrent neuron to itself, with -a / 2 as that of its
            bias; 4 remembers a bit. None is a network without recurrence.

    Raises:
        ValueError: if an argument is outside its range, or belongs to another output.

    Example:
        >>> from lightning_snn.nn import LIF
        >>> method = ExpectationPropagation(iterations=2)
        >>> network = method.prepare(nn.Sequential(nn.Linear(8, 4), LIF(), nn.Linear(4, 3)))
        >>> step = method.training_step(network, torch.rand(1, 6, 8), torch.arange(6) % 3)
        >>> step.objective.backward()
        >>> method.predict(network, torch.rand(1, 5, 8)).mean.shape
        torch.Size([5, 3])
    """

    penalty_refusal = "its updates are messages, not gradients of a loss"
    compile_refusal = (
        "it looks up batches by their content, and its time goes into large matrix products, which a compiler does not "
        "make faster: train it without"
    )

    citation = """@article{yao2025training,
  title = {Training of Spiking Neural Networks with Expectation-Propagation},
  author = {Yao, Dan and McLaughlin, Steve and Altmann, Yoann},
  journal = {arXiv preprint arXiv:2506.23757}, year = {2025}
}"""

    def __init__(
        self,
        weights: WeightName | Sequence[WeightName] = "gaussian",
        activation: Activation = "probit",
        output_activation: OutputActivation | None = None,
        prior_variance: float | Sequence[float] | None = None,
        prior_split: float | Sequence[float] | None = None,
        amplitude: float | Sequence[float] = 1.0,
        levels: Sequence[float] = (-1.0, 0.0, 1.0),
        iterations: int = 6,
        damping: float | None = None,
        solver_iterations: int | Sequence[int] = 3,
        step_size: float = 1.0,
        memory: MemoryName = "per_batch",
        noise_variance: float = 0.01,
        learn_noise: bool = False,
        deployment: Literal["soft", "hard"] = "soft",
        samples: int = 0,
        fading: float = 0.0,
        output_noise: float | None = None,
        latch: float | None = None,
    ) -> None:
        super().__init__()
        self.weights, self.amplitude, self.levels = weights, amplitude, levels
        self.prior_variance, self.prior_split = prior_variance, prior_split
        _ = self.weight_options  # checks them
        check_choice("activation", activation, ACTIVATIONS)
        if output_activation is not None:
            check_choice("output_activation", output_activation, OUTPUT_ACTIVATIONS)
        check_integer("iterations", iterations)
        for count in solver_iterations if isinstance(solver_iterations, Sequence) else [solver_iterations]:
            check_integer("solver_iterations", count)
        check_between("fading", fading, 0, 1)
        if fading == 1:
            raise ValueError("Expected argument `fading` to be below 1, but got 1. Use a smaller share, such as 0.9")
        for name, length in (("damping", 1.0 if damping is None else damping), ("step_size", step_size)):
            check_positive(name, length)
            check_between(name, length, 0, 1)
        check_choice("memory", memory, MEMORIES)
        check_positive("noise_variance", noise_variance)
        check_choice("deployment", deployment, ("soft", "hard"))
        check_integer("samples", samples, 0)
        output_activation = activation if output_activation is None else output_activation
        if output_noise is not None:
            check_positive("output_noise", output_noise)
            if output_activation != "winner":
                raise ValueError(
                    f"Expected argument `output_noise` to be None for {output_activation!r} outputs, whose noise is "
                    f'fixed, but got {output_noise:g}. Remove it, or set `output_activation="winner"`'
                )
        if latch is not None:
            check_between("latch", latch, 0, math.inf)
        if samples and output_activation == "heaviside":
            raise ValueError(
                "Expected argument `samples` to be 0 for outputs without noise, because a sampled network has no class "
                f"probabilities, but got {samples}"
            )
        self.activation, self.output_activation, self.output_noise = activation, output_activation, output_noise
        self.iterations, self.damping, self.solver_iterations = iterations, damping, solver_iterations
        self.fading, self.step_size, self.memory = fading, step_size, memory
        self.noise_variance, self.learn_noise = noise_variance, learn_noise
        self.deployment, self.samples, self.latch = deployment, samples, latch
        self.update_memory = MEMORIES[memory]()
        self.convergence = Convergence()

    @property
    def weight_options(self) -> WeightOptions:
        """Options of the weights."""
        return WeightOptions(self.weights, self.prior_variance, self.prior_split, self.amplitude, self.levels)

    def task_refusal(self, task: Task) -> str | None:
        """Return why the method cannot learn a task: its likelihood is another one than the method has."""
        if type(task) in (Classification, Regression) and not task.per_step:
            if isinstance(task, Regression) and self.output_activation == "winner":
                return (
                    'its outputs compete for a class. Remove `output_activation="winner"`, or use task="classification"'
                )
            return None
        return (
            "messages are those of a likelihood, probit for classes and Gaussian for values, and not the gradient of a "
            'loss. Use task="classification" or task="regression", or a method with a gradient, such as '
            "SurrogateGradient"
        )

    def prepare(self, network: nn.Module) -> nn.Module:
        """Return the network with distributions as weights, drawn from the prior with torch's generator.

        Raises:
            ValueError: if message passing cannot train the network; the message names each refused layer with its
                reason. Or if an argument has another number of entries than there are weight layers.
        """
        like = next(iter(network.parameters()), torch.zeros(()))
        output = (
            ValueOutput(like.new_tensor(self.noise_variance), self.learn_noise)
            if isinstance(self.task, Regression)
            else SpikeOutput(self.output_activation, WINNER_NOISE if self.output_noise is None else self.output_noise)
        )
        families, hard = self.weight_options.families, self.deployment == "hard"
        converted: MessageNetwork
        if self.latch is not None:
            converted = convert_recurrent(network, families, self.activation, output, self.latch, hard)
        else:
            converted = convert(network, families, self.activation, output, hard)
        per_layer("solver_iterations", self.solver_iterations, len(converted.chain.blocks))
        return converted

    def check_lengths(self, network: nn.Module) -> None:
        """Check that sequences may have different lengths: not those of recurrent networks.

        Raises:
            ValueError: if they may not.
        """
        super().check_lengths(network)
        if self.latch is not None:
            raise ValueError(
                "ExpectationPropagation with `latch` has no messages of sequences of different lengths. Sort samples "
                "into batches of equal length, or use another method, such as SurrogateGradient"
            )

    @torch.no_grad()
    def training_step(self, network: nn.Module, x: Tensor, y: Tensor) -> Step:
        """Return the step of one batch of messages.

        Args:
            network: from `prepare`.
            x: inputs `[T, B, ...]`.
            y: integer labels `[B]` or values `[B, ...]`.

        Raises:
            ValueError: if there are not as many targets as samples, or they are neither integer labels nor values of
                the output's shape; if the memory is "per_batch" and samples are in other batches than in the epoch
                before.
        """
        check_samples(x)
        check_is_tensor(y)
        chain, x = chain_of(network), as_input(network, x)
        layers = [block.layer for block in chain.blocks]
        damping = _default_damping(chain) if self.damping is None else self.damping
        with torch.autocast(x.device.type, enabled=False):
            inputs, targets = observed_inputs(network, x, y)
            if (retained := self._retained()) < 1:
                self.update_memory.fade(layers, retained)
            cavities = self.update_memory.cavities(layers, inputs, y, self.progress.train_size)
            returning = self.update_memory.returning(layers) and not chain.output.restarts
            start = [layer.natural for layer in layers] if returning else None
            options = (self.iterations, damping, self.solver_iterations, start)
            if isinstance(chain, SequenceChain):
                update = update_sequences(chain, cavities, inputs, targets, *options)
            else:
                update = update_batch(chain, cavities, inputs, targets, *options)
                if self.convergence.stability_due(self.iterations, returning, update.residual):
                    steps = self.convergence.stability_steps
                    stability = stability_at(chain, cavities, inputs, targets, update, self.solver_iterations, steps)
                    self._warn(self.convergence.stability_problem(stability, damping))
            scale = self.update_memory.update_scale(layers)
            displacements = [
                Natural(
                    *(
                        _displacement(*pair, scale)
                        for pair in zip(layer.natural, chosen(update.accepted, natural, layer.natural), strict=True)
                    )
                )
                for layer, natural in zip(layers, update.natural, strict=True)
            ]
            self.update_memory.record(layers, displacements)
            output = self.task.read(chain.output.read(update.output)[None])
            loss = self.task.loss(output, y)
        self.convergence.record(int(self.progress.epoch), update.residual)
        metrics = {
            "log_evidence": update.log_evidence,
            "skipped": (~update.accepted).to(loss.dtype),
            "halved": update.halved,
            "residual": update.residual,
        }
        with torch.enable_grad():
            terms = [
                torch.dot(parameter.flatten(), displacement.flatten()).neg()
                for layer, natural in zip(layers, displacements, strict=True)
                for parameter, displacement in zip((layer.precision, layer.precision_mean), natural, strict=True)
            ]
            if isinstance(chain.output, ValueOutput) and update.noise_variance is not None:
                noise = chain.output.noise_variance
                terms.append(noise * (noise.detach() - update.noise_variance))
            objective = torch.stack(terms).sum()
        return Step(objective, loss, output, metrics)

    @torch.no_grad()
    def predict(self, network: nn.Module, x: Tensor) -> Prediction:
        """Return the prediction for `x [T, B, ...]`, in closed form or as a mixture of `samples` draws."""
        return self._predict(network, message_inputs(network, x))

    @torch.no_grad()
    def predict_anytime(self, network: nn.Module, x: Tensor) -> Prediction:
        """Return the prediction `[T, B, ...]` after each step of `x [T, B, ...]`, from the rates or spikes so far."""
        x = as_input(network, x)
        if isinstance(network, RecurrentMessageNetwork):
            return unfolded(self._predict(network, message_inputs(network, x), every_step=True), x)
        steps = torch.arange(1, len(x) + 1, device=x.device).view(-1, *(1,) * (x.dim() - 1))
        if (lengths := lengths_of(x.shape[1])) is not None:
            x, steps = without_padding(x), steps.minimum(lengths.view(-1, *(1,) * (x.dim() - 2)))
        # torch.cumsum has no deterministic implementation on GPUs
        rates = torch.stack(list(accumulate(x, torch.add))) / steps
        return unfolded(self._predict(network, rates.flatten(0, 1)), x)

    def _retained(self) -> float:
        """Return the factor of what the layers contain of earlier batches."""
        progress = self.progress
        if not progress.has_length or progress.epoch >= _FADING_EPOCHS:
            return 1.0
        return 1 - self.fading / (progress.step + _FADING_DELAY)

    def _predict(self, network: nn.Module, rates: Tensor, every_step: bool = False) -> Prediction:
        chain = chain_of(network)
        with torch.autocast(rates.device.type, enabled=False):
            if self.samples:
                drawn = [
                    chain.output(
                        draw_sequence_output(chain, rates, every_step)
                        if isinstance(chain, SequenceChain)
                        else draw_output(chain, rates)
                    )
                    for _ in range(self.samples)
                ]
                mixture = self.task.combine([self.task.predict(self.task.read(output[None])) for output in drawn])
                if isinstance(chain.output, SpikeOutput):
                    mixture.spike_probabilities = chain.output.spike_probabilities(torch.stack(drawn)).mean(0)
                elif mixture.variance is not None:
                    mixture.variance = mixture.variance + chain.output.noise_variance
                return mixture
            potential, epistemic = (
                sequence_moments(chain, rates, every_step)
                if isinstance(chain, SequenceChain)
                else output_moments(chain, rates)
            )
            read = chain.output.read(potential)
            prediction = self.task.predict(self.task.read(read[None]))
            parts = {"epistemic": epistemic, "spikes": potential.variance - epistemic}
            if isinstance(chain.output, SpikeOutput):
                spikes = chain.output.spike_probabilities(read)
                return replace(prediction, spike_probabilities=spikes, variance_parts=parts)
            noise = chain.output.noise_variance
            parts["noise"] = noise.expand_as(potential.variance)
            return replace(prediction, variance=potential.variance + noise, variance_parts=parts)

    @property
    def compiles_predictions(self) -> bool:
        """True if `predict` can be compiled as a whole."""
        return False

    def on_train_end(self) -> None:
        """Warn if the messages of the last epoch did not converge."""
        self._warn(self.convergence.problem())

    def _warn(self, problem: str | None) -> None:
        if problem is not None and rank() == 0:
            warnings.warn(problem, stacklevel=3)

    def configure_optimizer(self, network: nn.Module) -> Optimizer:
        """Return plain SGD, whose learning rate is the damping of the update."""
        return SGD(network.parameters(), self.step_size)

    def extra_repr(self) -> str:
        parts = [f"weights={self.weights!r}"]
        parts += [f"{name}={getattr(self, name)!r}" for name in ("activation", "output_activation")]
        for name in ("prior_variance", "prior_split", "damping"):
            parts += [f"{name}={value}"] if (value := getattr(self, name)) is not None else []
        parts += [f"amplitude={self.amplitude!r}"]
        for name in ("iterations", "solver_iterations", "fading", "step_size", "memory", "deployment"):
            parts += [f"{name}={getattr(self, name)!r}"]
        parts += [f"noise_variance={self.noise_variance:g}", f"samples={self.samples}"]
        options = (("output_noise", self.output_noise), ("latch", self.latch))
        return ", ".join(parts + [f"{name}={value:g}" for name, value in options if value is not None])


def _default_damping(chain: Chain) -> float:
    """Return the damping of a network: a single layer, which is observed, needs none."""
    return 1.0 if len(chain.blocks) == 1 else 0.3


def _displacement(before: Tensor, after: Tensor, scale: int) -> Tensor:
    displacement = after - before
    return displacement if scale == 1 else displacement.mul_(scale)
