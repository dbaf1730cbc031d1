"""Base of the methods whose networks fire by noise: noisy runs, samples in parallel, and their predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_snn.checks import check_between, check_choice, check_integer, check_positive
from lightning_snn.functional.estimators import Estimator, EstimatorName, estimator_named
from lightning_snn.functional.noisy_lif import NOISE_MODES, NoiseMode
from lightning_snn.functional.variational import sample
from lightning_snn.methods.base import Method
from lightning_snn.methods.tasks import Prediction
from lightning_snn.nn.delays import SynapticDelays
from lightning_snn.nn.divisive import DivisiveNormalization
from lightning_snn.nn.encoders import Complement
from lightning_snn.nn.folding import as_input, folded, run
from lightning_snn.nn.inputs import call_with_inputs, first_input, map_inputs
from lightning_snn.nn.layer_rules import LayerRules, Refusal
from lightning_snn.nn.lengths import repeated_samples
from lightning_snn.nn.module_tree import unnested
from lightning_snn.nn.moments import Moments
from lightning_snn.nn.neurons import LeakyIntegrator, Neuron, noise_refusal
from lightning_snn.nn.neurons.probes import gain_refusal
from lightning_snn.nn.noise import Observer, posterior_noise, weight_draws
from lightning_snn.nn.residual import GaussianNoise
from lightning_snn.nn.row_checks import SEQUENCE_LAYERS
from lightning_snn.nn.run_context import in_this_thread
from lightning_snn.nn.scale import Scale
from lightning_snn.nn.sign import Sign
from lightning_snn.nn.spike_gate import SpikeGate
from lightning_snn.nn.time_wrappers import OverTime, PerStep

Sampling = Literal["noise", "weights"]
NoiseRule = Callable[[nn.Module, NoiseMode], str | None]

NOISE_RULES: LayerRules[NoiseRule] = LayerRules(
    unknown="neither a Neuron nor a layer known to be stateless: see `register_stateless_layer`"
)


def register_stateless_layer(kind: type[nn.Module]) -> None:
    """Register a layer type without a state over time, so networks that fire by noise may contain such layers.

    Args:
        kind: the layer type, which processes every time step independently of the others.

    Raises:
        TypeError: if `kind` is not a subclass of `nn.Module`.

    Example:
        >>> class Halve(nn.Module):
        ...     def forward(self, x):
        ...         return x / 2
        >>> register_stateless_layer(Halve)
        >>> lightning_snn.methods.NoisySpikes().prepare(nn.Sequential(Halve(), LIF()))[0]
        Halve()
    """
    NOISE_RULES.register(kind, lambda layer, mode: None)


def noise_refusals(network: nn.Module, mode: NoiseMode) -> list[Refusal]:
    """Return the layers that a network that fires by noise cannot contain, with the reasons."""
    return list(NOISE_RULES.refusals(network, lambda rule, layer: rule(layer, mode)))


def _neuron_refusal(layer: nn.Module, mode: NoiseMode) -> str | None:
    assert isinstance(layer, Neuron)
    return noise_refusal(layer, mode) or gain_refusal(layer)


_MIXES_ROWS = "it may take rows for time steps: wrap it in `lightning_snn.nn.OverTime` or `PerStep`"
_MIXING = (*SEQUENCE_LAYERS, nn.RNNCellBase, nn.TransformerEncoder, nn.TransformerDecoder)
for _kind in vars(nn).values():
    if isinstance(_kind, type) and issubclass(_kind, nn.Module) and _kind is not nn.Module:
        if issubclass(_kind, _MIXING):
            NOISE_RULES.register(_kind, lambda layer, mode: _MIXES_ROWS)
        elif not issubclass(_kind, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            register_stateless_layer(_kind)
_STATELESS = (
    GaussianNoise,
    Scale,
    SpikeGate,
    Sign,
    SynapticDelays,
    DivisiveNormalization,
    LeakyIntegrator,
    Complement,
    OverTime,
    PerStep,
)
for _kind in _STATELESS:
    register_stateless_layer(_kind)
NOISE_RULES.register(Neuron, _neuron_refusal)

# mean, variance, membrane, standardized potential, spikes and next input of the largest layer exist at the same time
_TENSORS_ALIVE = 6


class NoisyMethod(Method):
    """Base of the methods that train and predict with noisy spikes.

    Args:
        lam: lambda of IW-ST in [0, 1].
        estimator: gradient estimator in place of IW-ST(lambda), by name or as an `Estimator` for Gaussian noise; None
            is IW-ST(lambda).
        noise_mode: "moment", "step" or "trace", see `functional.noisy_lif`.
        samples: number of samples K of `predict`; 0 predicts without noise in one deterministic run.
        sampling: source of the K samples: "noise" of the pre-activations, drawn at every step, or "weights", constant
            over time and shared by the batch.
        sample_memory: memory in MiB that the activations of one layer may take while K samples run in parallel, larger
            than 0. Samples that do not fit run one after another.

    Raises:
        ValueError: if an argument is outside its range.
    """

    def __init__(
        self,
        lam: float,
        estimator: EstimatorName | Estimator | None,
        noise_mode: NoiseMode,
        samples: int,
        sampling: Sampling,
        sample_memory: float,
    ) -> None:
        super().__init__()
        check_between("lam", lam, 0.0, 1.0)
        check_choice("noise_mode", noise_mode, NOISE_MODES)
        check_integer("samples", samples, 0)
        check_choice("sampling", sampling, ("noise", "weights"))
        check_positive("sample_memory", sample_memory)
        self.estimator: Estimator = estimator_named(lam if estimator is None else estimator)
        if self.estimator.noise != "gaussian":
            raise ValueError(f"Expected argument `estimator` to be of Gaussian noise, but got {self.estimator}")
        self.lam: float | Literal["auto"] = lam
        self.noise_mode = noise_mode
        self.samples, self.sampling, self.sample_memory = samples, sampling, sample_memory

    def predict(self, network: nn.Module, x: Tensor, generator: torch.Generator | None = None) -> Prediction:
        """Return the prediction for `x [T, B, ...]`: that of one deterministic run, or the mixture of K noisy runs.

        Args:
            network: a prepared network.
            x: input `[T, B, ...]`.
            generator: source of the noise; None is torch's default.
        """
        if self.samples == 0:
            return super().predict(network, x)
        outputs = self.sampled_outputs(network, x, self.samples, generator)
        return self._mixture(outputs, self.task.read, self.task.batch_axis)

    def predict_anytime(self, network: nn.Module, x: Tensor, generator: torch.Generator | None = None) -> Prediction:
        if self.samples == 0:
            return super().predict_anytime(network, x)
        outputs = self.sampled_outputs(network, x, self.samples, generator)
        return self._mixture(outputs, self.task.read_prefixes, 1)

    @property
    def compiles_predictions(self) -> bool:
        """True if `predict` can be compiled as a whole: not with samples, as many as fit into memory."""
        return self.samples == 0

    def noisy_output(
        self,
        network: nn.Module,
        x: Tensor,
        generator: torch.Generator | None = None,
        observe: Observer | None = None,
    ) -> Tensor:
        """Run the network once with noise and return the drawn outputs `[T, B, ...]`, which have a gradient.

        Args:
            network: a prepared network.
            x: input `[T, B, ...]`.
            generator: source of the noise; None is torch's default.
            observe: see `posterior_noise`.
        """
        with self._noise(generator, observe):
            return _drawn(run(network, x), generator)

    @torch.no_grad()
    def sampled_outputs(
        self, network: nn.Module, x: Tensor, count: int, generator: torch.Generator | None = None
    ) -> list[Tensor]:
        """Return the outputs of noisy runs, as many in parallel as the memory limit allows.

        Layers before the first noisy neuron are computed once for all samples of noise.

        Args:
            network: a prepared network.
            x: input `[T, B, ...]`.
            count: number of runs, at least 1.
            generator: source of the noise; None is torch's default.

        Returns:
            Tensors `[T, K_i, B, ...]`, where the K_i add up to `count`.
        """
        check_integer("count", count)
        x = as_input(network, x)
        steps, batch = first_input(x).shape[:2]
        by_weights = self.sampling == "weights"
        shared, rest = ([], [network]) if by_weights else _before_first_noise(network)
        outputs: list[Tensor] = []
        with folded(steps):
            with self._noise(generator):
                before = _through(shared, map_inputs(lambda part: part.flatten(0, 1), x))
            at_once = 1  # the first sample shows how much memory one takes
            while count > 0:
                at_once = min(at_once, count)
                context = weight_draws(at_once, generator) if by_weights else self._noise(generator)
                with context, repeated_samples(at_once), _LargestActivation(self.noisy_layers(network)) as largest:
                    output = _drawn(_through(rest, _repeated(before, steps, at_once)), generator)
                outputs.append(output.unflatten(0, (steps, at_once, batch)))
                count -= at_once
                if len(outputs) == 1:
                    at_once = max(1, int(self.sample_memory * 2**20 / (_TENSORS_ALIVE * max(largest.bytes, 1))))
        return outputs

    def noisy_layers(self, network: nn.Module) -> list[nn.Module]:
        """Return the layers that add or receive noise; their outputs determine how many samples fit into memory."""
        return [module for module in network.modules() if isinstance(module, (Neuron, Sign))]

    def extra_repr(self) -> str:
        if self.lam == "auto":
            parts = ["lam=auto"]
        else:
            parts = [f"lam={self.lam:g}"]
            parts += [f"estimator={self.estimator}"] if self.estimator != estimator_named(self.lam) else []
        parts += [f"noise_mode={self.noise_mode}"] if self.noise_mode != "moment" else []
        parts += [f"samples={self.samples}"]
        parts += [f"sampling={self.sampling}"] if self.sampling != "noise" else []
        return ", ".join([*parts, f"sample_memory={self.sample_memory:g}"])

    def _noise(
        self, generator: torch.Generator | None = None, observe: Observer | None = None
    ) -> AbstractContextManager[None]:
        return posterior_noise(self.estimator, self.noise_mode, generator, observe)

    def _mixture(self, outputs: list[Tensor], read: Callable[[Tensor], Tensor], dim: int) -> Prediction:
        """Return the mixture prediction of outputs `[T, K_i, B, ...]`, with B in dimension `dim` of readouts."""
        copies: list[Tensor] = []
        for chunk in outputs:
            with repeated_samples(chunk.shape[1]):
                copies += read(chunk.flatten(1, 2)).unflatten(dim, chunk.shape[1:3]).unbind(dim)
        return self.task.combine([self.task.predict(copy) for copy in copies])


class _LargestActivation:
    """Context that records the size in bytes of the largest output of the given layers."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = layers
        self.bytes = 0

    def __enter__(self) -> _LargestActivation:
        self.hooks = [layer.register_forward_hook(in_this_thread(self._record)) for layer in self.layers]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _record(self, module: nn.Module, inputs: tuple[object, ...], output: Tensor | Moments) -> None:
        tensor = output.expectation if isinstance(output, Moments) else output
        self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())


def _drawn(outputs: Tensor | Moments, generator: torch.Generator | None) -> Tensor:
    return sample(outputs.expectation, outputs.variance, generator) if isinstance(outputs, Moments) else outputs


def _through(layers: Sequence[nn.Module], x: Any) -> Any:
    for layer in layers:
        x = call_with_inputs(layer, x)
    return x


def _repeated(x: Any, steps: int, count: int) -> Any:
    """Repeat the batch `count` times, `[T*B, ...]` to `[T*count*B, ...]`."""
    if count == 1:
        return x

    def repeat(tensor: Tensor) -> Tensor:
        copies = torch.unflatten(tensor, 0, (steps, 1, -1))
        return copies.expand(steps, count, *copies.shape[2:]).flatten(0, 2)

    return x.map(repeat) if isinstance(x, Moments) else map_inputs(repeat, x)


def _before_first_noise(network: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """Split a sequential network before its first noisy neuron; nothing comes before it in any other module."""
    layers = unnested(network)
    for index, layer in enumerate(layers):
        if any(isinstance(module, (Neuron, Sign)) for module in layer.modules()):
            return layers[:index], layers[index:]
    return [], layers
