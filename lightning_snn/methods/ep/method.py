r"""Expectation propagation: Bayesian training by messages between layers, without gradients.

Every weight has a distribution with natural parameters :math:`\eta = (P, h)`, Gaussian (``mean = h / P``) or over a few
levels. A batch sends moments forward (means and variances of potentials, probabilities of spikes) and messages back
(what labels say about potentials, and these about spikes and weights), some times over; the weights then hold

.. math:: \eta \leftarrow \eta_\text{cavity} + \eta_\text{batch}, \qquad
    \eta_\text{cavity} = \eta - \eta_\text{batch}^\text{old},

so that a batch that comes round again is not counted twice. The objective is :math:`\langle \eta, (\eta -
\eta_\text{target}).\text{detach}()\rangle`, whose gradient is the displacement: plain SGD makes the step, and its
learning rate is the damping of the update.

Exact: the mean of Gaussian weights for given messages, the moments of one layer under independent weights. Approximate:
weights are independent of each other, potentials Gaussian, and spikes of a layer independent. The posterior ignores the
negative correlations that every observation brings: intervals where data are too wide, and far from data wider, but not
calibrated. Cost: 9 to 16 matrix products a layer and local iteration with the default solver, where a step of SGD takes
3: what is saved is passes over the data, not operations. Memory: six tensors of the size of the weights, gradients
included, and with "per_batch" two for every batch and four for the step that is under way.

After Yao et al. 2025, arXiv 2506.23757; the conjugate gradients that make batches converge, discrete weights of K
levels, convolutions and the parts of the variance are ours. EP here is never equilibrium propagation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from lightning_snn.checks import check_between, check_choice, check_integer, check_positive
from lightning_snn.functional.ep import ACTIVATIONS, Activation
from lightning_snn.methods.base import Method, Step
from lightning_snn.methods.ep.chain import MessageNetwork
from lightning_snn.methods.ep.conversion import convert
from lightning_snn.methods.ep.local import hear
from lightning_snn.methods.ep.memory import MEMORIES, MemoryName
from lightning_snn.methods.ep.neurons import SpikeOutput, ValueOutput
from lightning_snn.methods.ep.prediction import draw_output, output_moments
from lightning_snn.methods.ep.weights import WEIGHTS, GaussianWeights, LevelWeights, Natural, WeightName
from lightning_snn.methods.task import Prediction, Regression

# log-odds of two levels that discrete weights of hidden layers start with, over 2: their standard deviation
_JITTER = 0.5
_DISCRETE_BIAS_VARIANCE = 1.0


class ExpectationPropagation(Method):
    """Expectation propagation (after Yao et al. 2025, arXiv 2506.23757).

    Networks are linear and convolutional layers in a row with `LIF` between them, taken as neurons that spike once or
    not at all: by a step or a sigmoid of their potential, at one time stamp. Pooling and reshaping may stand behind
    neurons: average pooling, and max-pooling as "any spike". Inputs `[T, B, ...]` of several steps are read as firing
    rates, their mean over time. The network's own weights are not used.

    Labels are seen as the spikes of independent output neurons. Class probabilities are those of exactly one spike;
    `Prediction.spike_probabilities` are those of each output by itself, and the accuracy of these bits is far above
    that of the class: one is not to be quoted as the other.

    It brings its own optimizer, SGD. Clipping, accumulation and schedulers act on the displacement. Logged beside the
    loss are the log-evidence of the batch, how often steps were halved, and batches skipped because their messages
    diverged.

    Args:
        weights: kind of weights, one for all layers or one a layer: "gaussian", "sign" {-a, a}, "binary" {0, a} (spikes
            cannot be negative: without inhibition it learns little unless a `nn.Complement` comes before it), or
            "categorical", a times `levels`. Biases are Gaussian.
        activation: of hidden neurons: "heaviside", "probit" (noise that makes it nearly a sigmoid), or "sigmoid", the
            same by quadrature.
        output_activation: of output neurons; None is `activation`. Neurons without noise over-trust labels that no
            weights can explain, as those of a single layer.
        prior_variance: of a Gaussian weight, larger than 0, one for all or one a layer. None is 0.1 for one layer, else
            3, and 10 for the last.
        prior_split: share of the prior variance, in [0, 1), that is drawn once as the prior's mean, one for all or one
            a layer: hidden units that start alike stay alike. None is 0 for one layer, else 0.2.
        amplitude: a of discrete weights, larger than 0, one for all or one a layer.
        levels: of "categorical" weights, rising, at least 2.
        iterations: messages forward and back for each batch, at least 1.
        damping: length of these local steps in (0, 1]. Few and long ones are quick where a batch is a small part of
            much data (3 of 0.5 for 60,000 digits in batches of 500), and swing where it is a large part of little.
        solver_iterations: conjugate gradients in each, at least 1.
        step_size: learning rate of the update by a batch, in (0, 1]; 1 makes it whole.
        memory: what keeps batches from being counted twice. "per_batch" keeps what each batch said, and needs the same
            partition of samples into batches at every pass, in any order (`FixedBatches`); "average" takes an average
            batch away; "adf" takes nothing away, for a single pass over a stream.
        noise_variance: of the observations of a regression, larger than 0.
        learn_noise: let that variance follow the data.
        deployment: discrete weights predict by their distribution ("soft") or by their most probable level ("hard").
        samples: 0 predicts in closed form, by one pass; K draws weights and spikes K times, for comparison.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), LIF(), nn.Linear(128, 10))
        >>> module = SpikingModule(network, ExpectationPropagation(), num_classes=10)
        >>> Trainer(max_epochs=1).fit(module, MNIST("data", time_steps=1, batch_size=1000, fixed_batches=True))
    """

    citation = """@article{yao2025training,
  title = {Training of Spiking Neural Networks with Expectation-Propagation},
  author = {Yao, Dan and McLaughlin, Steve and Altmann, Yoann},
  journal = {arXiv preprint arXiv:2506.23757}, year = {2025}
}"""

    def __init__(
        self,
        weights: WeightName | Sequence[WeightName] = "gaussian",
        activation: Activation = "probit",
        output_activation: Activation | None = None,
        prior_variance: float | Sequence[float] | None = None,
        prior_split: float | Sequence[float] | None = None,
        amplitude: float | Sequence[float] = 1.0,
        levels: Sequence[float] = (-1.0, 0.0, 1.0),
        iterations: int = 6,
        damping: float = 0.3,
        solver_iterations: int = 3,
        step_size: float = 1.0,
        memory: MemoryName = "per_batch",
        noise_variance: float = 0.01,
        learn_noise: bool = False,
        deployment: Literal["soft", "hard"] = "soft",
        samples: int = 0,
    ) -> None:
        super().__init__()
        for name in _each(weights):
            check_choice("weights", name, WEIGHTS)
        check_choice("activation", activation, ACTIVATIONS)
        if output_activation is not None:
            check_choice("output_activation", output_activation, ACTIVATIONS)
        for variance in () if prior_variance is None else _each(prior_variance):
            check_positive("prior_variance", variance)
        for split in () if prior_split is None else _each(prior_split):
            check_between("prior_split", split, 0, 1)
            if split == 1:
                raise ValueError("Expected argument `prior_split` to be below 1, but got 1: nothing is left to learn")
        for value in _each(amplitude):
            check_positive("amplitude", value)
        numbers = all(isinstance(level, (int, float)) and math.isfinite(level) for level in levels)
        if len(levels) < 2 or not numbers or any(low >= high for low, high in pairwise(levels)):
            raise ValueError(f"Expected argument `levels` to be at least 2 rising numbers, but got {levels!r}")
        for name, count in (("iterations", iterations), ("solver_iterations", solver_iterations)):
            check_integer(name, count)
        for name, length in (("damping", damping), ("step_size", step_size)):
            check_positive(name, length)
            check_between(name, length, 0, 1)
        check_choice("memory", memory, MEMORIES)
        check_positive("noise_variance", noise_variance)
        check_choice("deployment", deployment, ("soft", "hard"))
        check_integer("samples", samples, 0)
        output_activation = activation if output_activation is None else output_activation
        if samples and output_activation == "heaviside":
            raise ValueError(
                "Expected argument `samples` to be 0 for outputs without noise, as a drawn network is certain of its "
                f"bits and gives no class probabilities, but got {samples}"
            )
        self.weights, self.activation, self.output_activation = weights, activation, output_activation
        self.prior_variance, self.prior_split, self.amplitude, self.levels = (
            prior_variance,
            prior_split,
            amplitude,
            levels,
        )
        self.iterations, self.damping, self.solver_iterations = iterations, damping, solver_iterations
        self.step_size, self.memory = step_size, memory
        self.noise_variance, self.learn_noise = noise_variance, learn_noise
        self.deployment, self.samples = deployment, samples
        self.remembered = MEMORIES[memory]()

    def prepare(self, network: nn.Module) -> nn.Module:
        """The network with distributions for weights, drawn from the prior with torch's generator.

        Raises:
            ValueError: naming the layer that messages cannot train, or an argument with another number of entries than
                there are weight layers.
        """
        like = next(iter(network.parameters()), torch.zeros(()))
        output = (
            ValueOutput(like.new_tensor(self.noise_variance), self.learn_noise)
            if isinstance(self.task, Regression)
            else SpikeOutput(self.output_activation)
        )
        return convert(network, self._families, self.activation, output, self.deployment == "hard")

    def _families(self, biases: Sequence[bool]) -> list[GaussianWeights | LevelWeights]:
        count = len(biases)
        deep = count > 1
        names = _one_a_layer("weights", self.weights, count)
        variances, splits = self.prior_variance, self.prior_split
        if variances is None:
            variances = [3.0] * (count - 1) + [10.0] if deep else 0.1
        if splits is None:
            splits = 0.2 if deep else 0.0
        variances = _one_a_layer("prior_variance", variances, count)
        splits = _one_a_layer("prior_split", splits, count)
        amplitudes = _one_a_layer("amplitude", self.amplitude, count)
        families: list[GaussianWeights | LevelWeights] = []
        for index, name in enumerate(names):
            if name == "gaussian":
                families.append(GaussianWeights(variances[index], splits[index]))
                continue
            levels = {"sign": (-1.0, 1.0), "binary": (0.0, 1.0)}.get(name, self.levels)
            jitter = _JITTER if index < count - 1 else 0.0
            families.append(
                LevelWeights(
                    [amplitudes[index] * level for level in levels],
                    jitter,
                    _DISCRETE_BIAS_VARIANCE if biases[index] else None,
                )
            )
        return families

    @torch.no_grad()
    def training_step(self, network: nn.Module, x: Tensor, y: Tensor) -> Step:
        """One batch of messages.

        Raises:
            ValueError: if there are not as many targets as samples, or they are neither integer labels nor values of
                the output's shape; if the memory is "per_batch" and samples come in other batches than in the pass
                before.
        """
        assert isinstance(network, MessageNetwork)
        chain = network.chain
        layers = [block.layer for block in chain.blocks]
        with torch.autocast(x.device.type, enabled=False):
            rates = _rates(x, layers[0].precision.dtype)
            if len(rates) != len(y):
                raise ValueError(
                    "Expected inputs of shape (time, batch, ...) and as many targets as samples, but got "
                    f"{tuple(x.shape)} and {tuple(y.shape)}"
                )
            cavities = self.remembered.cavities(layers, rates, y, self.progress.train_size)
            targets = y if isinstance(chain.output, SpikeOutput) else y.to(rates.dtype)
            heard = hear(chain, cavities, rates, targets, self.iterations, self.damping, self.solver_iterations)
            strength = self.remembered.strength(layers)
            displacements = [
                Natural(
                    *(
                        torch.where(heard.accepted, strength * (new - old), 0)
                        for new, old in zip(natural, layer.natural, strict=True)
                    )
                )
                for layer, natural in zip(layers, heard.natural, strict=True)
            ]
            self.remembered.remember(layers, displacements)
            output = self.task.read(chain.output.read(heard.output)[None])
            loss = self.task.loss(output, y)
        metrics = {
            "log_evidence": heard.log_evidence,
            "skipped": (~heard.accepted).to(loss.dtype),
            "halved": heard.halved,
        }
        with torch.enable_grad():
            terms = [
                -(parameter * displacement).sum()
                for layer, natural in zip(layers, displacements, strict=True)
                for parameter, displacement in zip((layer.precision, layer.precision_mean), natural, strict=True)
            ]
            if isinstance(chain.output, ValueOutput) and heard.noise_variance is not None:
                noise = chain.output.noise_variance
                terms.append(noise * (noise.detach() - heard.noise_variance))
            objective = torch.stack(terms).sum()
        return Step(objective, loss, output, metrics)

    @torch.no_grad()
    def predict(self, network: nn.Module, x: Tensor) -> Prediction:
        """The prediction for `x [T, B, ...]`, in closed form or as a mixture of `samples` draws."""
        return self._predict(network, _rates(x, _dtype(network)))

    @torch.no_grad()
    def predict_anytime(self, network: nn.Module, x: Tensor) -> Prediction:
        """What `predict` would say after each step of `x [T, B, ...]`, of the rates until then: `[T, B, ...]`."""
        steps = torch.arange(1, len(x) + 1, device=x.device).view(-1, *(1,) * (x.dim() - 1))
        # not torch.cumsum, which PyTorch refuses on GPUs where deterministic algorithms are asked for
        rates = torch.stack(list(accumulate(x.to(_dtype(network)), torch.add))) / steps
        flat = self._predict(network, rates.flatten(0, 1))

        def unfold(values: Tensor) -> Tensor:
            return values.unflatten(0, x.shape[:2])

        return replace(
            flat,
            mean=unfold(flat.mean),
            variance=None if flat.variance is None else unfold(flat.variance),
            samples=None if flat.samples is None else flat.samples.unflatten(1, x.shape[:2]),
            spike_probabilities=None if flat.spike_probabilities is None else unfold(flat.spike_probabilities),
            variance_parts=None
            if flat.variance_parts is None
            else {name: unfold(part) for name, part in flat.variance_parts.items()},
        )

    def _predict(self, network: nn.Module, rates: Tensor) -> Prediction:
        assert isinstance(network, MessageNetwork)
        chain = network.chain
        with torch.autocast(rates.device.type, enabled=False):
            if self.samples:
                drawn = [chain.output(draw_output(chain, rates)) for _ in range(self.samples)]
                mixture = self.task.combine([self.task.predict(self.task.read(output[None])) for output in drawn])
                if isinstance(chain.output, SpikeOutput):
                    mixture.spike_probabilities = torch.stack(drawn).sigmoid().mean(0)
                elif mixture.variance is not None:
                    mixture.variance = mixture.variance + chain.output.noise_variance
                return mixture
            potential, epistemic = output_moments(chain, rates)
            prediction = self.task.predict(self.task.read(chain.output.read(potential)[None]))
            parts = {"epistemic": epistemic, "spikes": potential.variance - epistemic}
            if isinstance(chain.output, SpikeOutput):
                return replace(
                    prediction, spike_probabilities=chain.output.read(potential).sigmoid(), variance_parts=parts
                )
            noise = chain.output.noise_variance
            parts["noise"] = noise.expand_as(potential.variance)
            return replace(prediction, variance=potential.variance + noise, variance_parts=parts)

    def configure_optimizer(self, network: nn.Module) -> Optimizer:
        """Plain SGD: its learning rate is the damping of the update."""
        return SGD(network.parameters(), self.step_size)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def extra_repr(self) -> str:
        parts = [f"{name}={getattr(self, name)!r}" for name in ("weights", "activation", "output_activation")]
        for name in ("prior_variance", "prior_split"):
            parts += [f"{name}={value}"] if (value := getattr(self, name)) is not None else []
        for name in ("amplitude", "iterations", "damping", "solver_iterations", "step_size", "memory", "deployment"):
            parts += [f"{name}={getattr(self, name)!r}"]
        return ", ".join([*parts, f"noise_variance={self.noise_variance:g}", f"samples={self.samples}"])


def _each(values: Any) -> Sequence[Any]:
    return [values] if isinstance(values, str) or not isinstance(values, Sequence) else values


def _one_a_layer(name: str, values: Any, count: int) -> Sequence[Any]:
    entries = _each(values)
    if entries is values and len(entries) != count:
        raise ValueError(
            f"Expected argument `{name}` to be one for all or {count}, one a weight layer, but got {values!r}"
        )
    return entries if entries is values else list(entries) * count


def _rates(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Firing rates `[B, ...]` of inputs `[T, B, ...]`."""
    return x[0].to(dtype) if len(x) == 1 else x.to(dtype).mean(0)


def _dtype(network: nn.Module) -> torch.dtype:
    return next(network.parameters()).dtype
