r"""Spiking Bayesian networks: variational posteriors whose noise makes neurons fire, trained by IW-ST gradients.

Every weight has a Gaussian posterior ``N(m, sigma^2)``. A layer returns mean and variance of its pre-activation (local
reparameterization). A neuron with mean U and variance Q of its membrane potential fires with ``P(spike) = Phi((U -
threshold) / sqrt(Q))``, and the backward pass is IW-ST(lambda). The objective is the tempered evidence bound

.. math::
    \text{loss} + \beta_t \, \mathrm{KL}(q \,\|\, p) / N + \gamma_t \, L_\text{bias}, \qquad
    \beta_t = \beta \min(1, \text{noisy epochs} / \text{warm-up}) .

Approximate: IW-ST has little bias through time and a bias that grows with the number of layers. Noise is drawn anew at
each step, which underestimates the variance under a static weight sample. Noise mode "trace" is exact for the variance
of the membrane potential before resets only: its spike counts have 0.21 to 0.42 of the variance of a static draw, those
of "step" 0.34 to 0.48 (`docs/benchmarks.md`). With ``sampling="weights"`` predictions are those of static draws.
Exact: the KL, the moments of one layer, the gradient of linear losses.
Cost: O(T) time and memory as for backpropagation through time, with two matrix products per layer instead of one.
After Walker, Khajehnejad & Razi 2025; the README lists what the library reconstructs rather than reproduces. Not
dropout, and not a deep ensemble.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_snn.checks import check_between, check_choice, check_integer, check_positive
from lightning_snn.functional.bias_loss import BIAS_FORMS, BiasForm
from lightning_snn.functional.estimators import IWST, Estimator, EstimatorName
from lightning_snn.functional.noisy_lif import NoiseMode
from lightning_snn.methods.base import Step
from lightning_snn.methods.bayes.conversion import Posterior, is_convertible, to_bayesian, to_plain
from lightning_snn.methods.bayes.lam import measured_lambda
from lightning_snn.methods.bayes.layers import BayesianLayer, BayesianMap
from lightning_snn.methods.bayes.monitor import RunMonitor
from lightning_snn.methods.bayes.refusals import NORMS, connect_traces, layer_refusals
from lightning_snn.methods.bayes.wiring import mark_inputs
from lightning_snn.methods.noisy import NoisyMethod, Sampling, register_stateless_layer
from lightning_snn.nn.folding import run
from lightning_snn.nn.layer_rules import copy_network, refuse
from lightning_snn.nn.module_tree import replace_layers
from lightning_snn.nn.neurons import Neuron, RecurrentLIF
from lightning_snn.nn.noise import WeightDraws
from lightning_snn.nn.registry import parts_of_neurons
from lightning_snn.nn.sign import Sign
from lightning_snn.processes import gather

MONITOR_EVERY = 50  # training steps between records of the variance, which reads every pre-activation
INITIAL_LAMBDA = 0.5  # of "auto", in its first step
LAMBDA_GRID = 0.25  # values of "auto"; compiled code is made anew for each
_CHI_SQUARED = "chi_squared/"
_CHI_SQUARED_LIMIT = 10.0


class _Schedule(NamedTuple):
    """Values that a training step takes from the progress of training.

    Attributes:
        noisy: whether the network runs with noise; without it the posterior mean is trained.
        monitored: whether the variance of the estimator is recorded.
        batch_size: samples of an optimizer step; None before the first.
        kl: factor of the KL term, for compiled code, in which a number would be a constant.
        bias: factor of the auxiliary loss, for compiled code.
    """

    noisy: bool
    monitored: bool = False
    batch_size: float | Tensor | None = None
    kl: Tensor | None = None
    bias: Tensor | None = None


class SpikingBayes(NoisyMethod):
    """Spiking Bayesian neural networks with IW-ST gradients (after Walker et al. 2025, arXiv 2505.17962).

    Besides the loss, the method logs the KL term in nats, and the auxiliary loss of each layer if `bias_weight` is
    larger than 0. Every 50 steps it logs `variance_factor/LAYER`, the factor of each layer of neurons on the second
    moment over the squared mean of gradients, and `variance_factor/all`, the product of all layers (see
    `functional.variance_factor`; far too large where shortcuts pass layers), and for lambda below 1 ``chi^2`` of each
    layer: the variance of the layer's gradient over its square, for a linear loss with equal slopes. A ``chi^2`` above
    10 raises a warning once.

    Args:
        lam: lambda of IW-ST in [0, 1]. 1 (straight-through) suits many time steps and layers, 0 (ReinMax) few layers
            and large batches. "auto" measures variance and depth in training steps 0, 50, 100, ..., logs the best
            lambda of all layers together for the size of the batches as `lam` (see `functional.best_lambda`), and
            uses it from the next step on, rounded to a quarter. Step 0 has lambda = 0.5. Its estimate of the bias is a
            conjecture for wide layers. A checkpoint holds the lambda in use.
        kl_weight: beta of the KL term, at least 0. A value below 1 tempers the evidence bound, which small data sets
            need. A new posterior has 0.8 nats per weight (1.5 per recurrent weight); the network learns if ``0.8 *
            weights * kl_weight / N`` is below about 0.5.
        mean_epochs: epochs at the start in which only the posterior means learn, by surrogate gradients and without
            noise and KL term, at least 0. Means that fit the data already need far fewer noisy epochs.
        warmup_epochs: epochs after `mean_epochs` over which the KL weight rises linearly, at least 0.
        gain: initial posterior means are drawn from N(0, gain^2 / fan-in), larger than 0.
        kappa: initial posterior standard deviation over that with which the means are drawn, larger than 0.
        prior_scale: prior standard deviation of the weights times sqrt(fan-in), larger than 0, for all layers alike.
        samples: number of samples K of `predict`; 0 predicts with the posterior mean in one deterministic run.
        keep_weights: use the weights of the network as posterior means instead of drawing them, which turns a trained
            deterministic network into a Bayesian one. Recurrent weights are always kept.
        train_size: number of training samples N; None takes it from the data of the Trainer. Streams without a length
            need it, and their epochs are N samples.
        estimator: estimator in place of IW-ST(lambda), by name or as an `Estimator` for Gaussian noise.
        noise_mode: "moment", "step" or "trace", see `functional.noisy_lif`. "trace" gives the membrane potential before
            resets the variance of a static weight sample, but not the spike counts.
        bias_weight: gamma of the auxiliary loss that keeps the bias of IW-ST small, at least 0. The KL term has the
            same effect, so the default is 0; a usual value is 1e-3.
        bias_form: "snr", "hinge" or "synapse", see `functional.bias_loss`.
        bias_epochs: noisy epochs over which gamma falls linearly to 0; None keeps it constant.
        sampling: source of the K samples: "noise" of the pre-activations, drawn at every step, or "weights", constant
            over time and shared by the batch (an ensemble of deterministic networks, as on hardware).
        sample_memory: memory in MiB that the activations of one layer may take while K samples run in parallel.
        recurrent_posterior: give recurrent weights a posterior; if False they are trained as plain weights.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> module = SpikingModule(network, SpikingBayes(lam=1.0, samples=16), num_classes=3)
        >>> prediction = module.method.predict(module.network, x)
        >>> prediction.mutual_information.shape
        torch.Size([2])
    """

    citation = """@article{walker2025principled,
  title = {A Principled Bayesian Framework for Training Binary and Spiking Neural Networks},
  author = {Walker, James A. and Khajehnejad, Moein and Razi, Adeel},
  journal = {arXiv preprint arXiv:2505.17962}, year = {2025}
}"""

    lam_in_use: Tensor

    def __init__(
        self,
        lam: float | Literal["auto"] = 0.5,
        kl_weight: float = 0.01,
        mean_epochs: float = 0.0,
        warmup_epochs: float = 1.0,
        gain: float = 2.0,
        kappa: float = 0.5,
        prior_scale: float = 2.0,
        samples: int = 0,
        keep_weights: bool = False,
        train_size: int | None = None,
        estimator: EstimatorName | Estimator | None = None,
        noise_mode: NoiseMode = "moment",
        bias_weight: float = 0.0,
        bias_form: BiasForm = "snr",
        bias_epochs: float | None = None,
        sampling: Sampling = "noise",
        sample_memory: float = 512.0,
        recurrent_posterior: bool = True,
    ) -> None:
        automatic = lam == "auto"
        if isinstance(lam, str) and not automatic:
            raise ValueError(f'Expected argument `lam` to be a number from 0 to 1 or "auto", but got {lam!r}')
        if automatic and estimator is not None:
            raise ValueError(
                f'Expected argument `estimator` to be None with lam="auto", but got {estimator!r}. Set `lam` to a '
                "number, or leave the estimator out"
            )
        number = INITIAL_LAMBDA if isinstance(lam, str) else lam
        super().__init__(number, estimator, noise_mode, samples, sampling, sample_memory)
        if automatic:
            self.lam = "auto"
            # in checkpoints, which also resume a run in the middle
            self.register_buffer("lam_in_use", torch.tensor(number))
            self.register_load_state_dict_post_hook(_restore_lambda)
        check_between("kl_weight", kl_weight, 0.0, float("inf"))
        check_between("mean_epochs", mean_epochs, 0.0, float("inf"))
        check_between("warmup_epochs", warmup_epochs, 0.0, float("inf"))
        check_positive("gain", gain)
        check_positive("kappa", kappa)
        check_positive("prior_scale", prior_scale)
        if train_size is not None:
            check_integer("train_size", train_size)
        check_between("bias_weight", bias_weight, 0.0, float("inf"))
        check_choice("bias_form", bias_form, BIAS_FORMS)
        if bias_epochs is not None:
            check_positive("bias_epochs", bias_epochs)
        self.kl_weight, self.mean_epochs, self.warmup_epochs = kl_weight, mean_epochs, warmup_epochs
        self.gain, self.kappa, self.prior_scale = gain, kappa, prior_scale
        self.keep_weights, self.train_size = keep_weights, train_size
        self.bias_weight, self.bias_form, self.bias_epochs = bias_weight, bias_form, bias_epochs
        self.recurrent_posterior = recurrent_posterior
        self._warned = False
        self._compiled_schedule: _Schedule | None = None

    def prepare(self, network: nn.Module) -> nn.Module:
        """Return a copy of the network in which every Linear, Conv1d, Conv2d and RecurrentLIF has a posterior.

        Layers that share weights or biases share their posterior. Frozen weights stay frozen.

        Raises:
            ValueError: if a layer with parameters has no Bayesian counterpart or does not support the noise mode; the
                message names all of them.
        """
        refused = layer_refusals(network, self.noise_mode)
        normalizes = any(isinstance(refusal.layer, NORMS) for refusal in refused)
        remedy = "Normalization is not needed: posterior noise scales with the input" if normalizes else ""
        refuse("SpikingBayes", refused, remedy)
        network = copy_network("SpikingBayes", network)
        parts = parts_of_neurons(network)
        network = replace_layers(
            network, lambda layer: layer not in parts and self._gets_posterior(layer), self._bayesian
        )
        mark_inputs(network)
        if self.noise_mode == "trace":
            connect_traces(network)
        return network

    def training_step(self, network: nn.Module, x: Tensor, y: Tensor) -> Step:
        schedule = self._compiled_schedule if torch.compiler.is_compiling() else None
        if schedule is None:
            schedule = self._schedule()
        if not schedule.noisy:
            output, loss = self.task.output_and_loss(run(network, x), y)
            # adds 0, so every parameter has a gradient, as distributed training requires
            return Step(loss + 0.0 * self.kl(network), loss.detach(), output.detach())
        bias_form = self.bias_form if self.bias_weight > 0 else None
        monitor = RunMonitor(network, self.estimator, bias_form, schedule.monitored)
        with monitor:
            output, loss = self.task.output_and_loss(self.noisy_output(network, x, observe=monitor.observe), y)
        objective, metrics = loss, {}
        if self.kl_weight > 0:
            kl = self.kl(network)
            objective = objective + (self._kl_factor() if schedule.kl is None else schedule.kl.to(kl)) * kl
            metrics["kl"] = kl.detach()
        bias, chi_squared = monitor.bias, monitor.chi_squared
        if bias:
            mean = torch.stack(list(bias.values())).mean()
            objective = objective + (self._bias_factor() if schedule.bias is None else schedule.bias.to(mean)) * mean
            metrics.update({f"bias/{name}": value.detach() for name, value in bias.items()})
        metrics.update({f"{_CHI_SQUARED}{name}": value for name, value in chi_squared.items()})
        metrics.update({f"variance_factor/{name}": value for name, value in monitor.variance_factor.items()})
        if self.lam == "auto" and monitor.calls:
            metrics["lam"] = measured_lambda(
                monitor.calls, len(y) if schedule.batch_size is None else schedule.batch_size
            )
        if not torch.compiler.is_compiling():
            self.warn_of_step(metrics)
            self.after_step(metrics)
        return Step(objective, loss.detach(), output.detach(), metrics)

    def before_compiled_step(self) -> None:
        schedule = self._schedule()
        if schedule.noisy:
            kl = self._kl_factor() if self.kl_weight > 0 else 0.0
            bias = self._bias_factor() if self.bias_weight > 0 else 0.0
            batch_size = schedule.batch_size
            schedule = schedule._replace(
                batch_size=None if batch_size is None else torch.tensor(batch_size, dtype=torch.float64),
                kl=torch.tensor(kl, dtype=torch.float64),
                bias=torch.tensor(bias, dtype=torch.float64),
            )
        self._compiled_schedule = schedule

    def intercepted_layers(self, network: nn.Module) -> Iterable[nn.Module]:
        observes_maps = self.bias_weight > 0 and self.bias_form == "synapse"
        maps = [layer for layer in network.modules() if isinstance(layer, BayesianMap)] if observes_maps else []
        return [*super().intercepted_layers(network), *maps]

    def warn_of_step(self, metrics: Mapping[str, Tensor]) -> None:
        """Warn once if the variance of the gradient of a layer is large."""
        if self._warned:
            return
        noisy = [
            name.removeprefix(_CHI_SQUARED)
            for name, value in metrics.items()
            if name.startswith(_CHI_SQUARED) and value > _CHI_SQUARED_LIMIT
        ]
        if noisy:
            self._warned = True
            warnings.warn(
                f"The variance of the gradient exceeds {_CHI_SQUARED_LIMIT:g} times its square in {', '.join(noisy)}, "
                "because units there are saturated. Increase `lam` or `kl_weight`",
                stacklevel=2,
            )

    def after_step(self, metrics: Mapping[str, Tensor]) -> None:
        """Use the lambda that the step measured, the mean over all processes, from the next step on."""
        if "lam" not in metrics:
            return
        mean = fmean(gather(float(metrics["lam"])))
        if math.isfinite(mean):  # a run with NaN measures nothing
            lam = round(mean / LAMBDA_GRID) * LAMBDA_GRID
            self.estimator = IWST(lam)
            self.lam_in_use.fill_(lam)

    def noisy_layers(self, network: nn.Module) -> list[nn.Module]:
        return [module for module in network.modules() if isinstance(module, (BayesianLayer, Neuron, Sign))]

    def kl(self, network: nn.Module) -> Tensor:
        """Return the untempered KL of the posterior from the prior in nats; shared parameters count once."""
        terms: dict[nn.Parameter, Tensor] = {}
        for layer in network.modules():
            if isinstance(layer, BayesianLayer):
                terms |= layer.kl_terms()
        return torch.stack(list(terms.values())).sum() if terms else torch.zeros(())

    def posterior_mean(self, network: nn.Module) -> nn.Module:
        """Return a plain deterministic copy of a prepared network, whose weights are the posterior means."""
        return self._plain(network, None)

    def posterior_sample(self, network: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
        """Return a plain deterministic copy of a prepared network, whose weights are a draw from the posterior.

        Args:
            network: a prepared network.
            generator: source of the draw; None is torch's default.
        """
        return self._plain(network, WeightDraws(1, generator))

    def extra_repr(self) -> str:
        bias = f", bias_weight={self.bias_weight:g}" + (f", bias_form={self.bias_form}" if self.bias_weight else "")
        return (
            f"{super().extra_repr()}, kl_weight={self.kl_weight:g}, mean_epochs={self.mean_epochs:g}, "
            f"warmup_epochs={self.warmup_epochs:g}, gain={self.gain:g}, kappa={self.kappa:g}, "
            f"prior_scale={self.prior_scale:g}{bias}"
        )

    def _schedule(self) -> _Schedule:
        if self.mean_epochs and self._epochs() < self.mean_epochs:
            return _Schedule(noisy=False)
        steps, samples = self.progress.step, self.progress.samples
        # over all processes and accumulated batches
        batch_size = samples / steps if steps and samples else None
        return _Schedule(True, steps % MONITOR_EVERY == 0, batch_size)

    def _epochs(self) -> float:
        """Return the completed epochs; of streams without a length, epochs are `train_size` samples."""
        if self.progress.has_length:
            return self.progress.epoch
        return self.progress.samples / self._known_train_size("Warm-up and epochs of the mean are counted in")

    def _noisy_epochs(self) -> float:
        return self._epochs() - self.mean_epochs

    def _known_train_size(self, needs: str) -> int:
        train_size = self.train_size or self.progress.train_size
        if train_size is None:
            raise ValueError(
                f"Expected argument `train_size` of SpikingBayes to be an integer, but got None. {needs} the number of "
                "training samples, which this data loader does not report"
            )
        return train_size

    def _kl_factor(self) -> float:
        train_size = self._known_train_size("The KL term needs")
        warmup = min(1.0, self._noisy_epochs() / self.warmup_epochs) if self.warmup_epochs else 1.0
        return self.kl_weight * warmup / train_size

    def _bias_factor(self) -> float:
        if self.bias_epochs is None:
            return self.bias_weight
        return self.bias_weight * max(0.0, 1 - self._noisy_epochs() / self.bias_epochs)

    def _gets_posterior(self, layer: nn.Module) -> bool:
        return is_convertible(layer) and (self.recurrent_posterior or not isinstance(layer, RecurrentLIF))

    def _bayesian(self, layer: nn.Module) -> nn.Module:
        return to_bayesian(layer, Posterior(self.gain, self.kappa, self.prior_scale), self.keep_weights)

    def _plain(self, network: nn.Module, draws: WeightDraws | None) -> nn.Module:
        def plain(layer: nn.Module) -> nn.Module:
            assert isinstance(layer, BayesianLayer)
            if draws is None:
                return to_plain(layer, layer.weight, layer.bias)
            weights, biases = layer.draw(draws)
            return to_plain(layer, weights[0], None if biases is None else biases[0])

        return replace_layers(copy.deepcopy(network), lambda layer: isinstance(layer, BayesianLayer), plain)


def _restore_lambda(method: nn.Module, _: object) -> None:
    """Use the lambda of the checkpoint that was loaded."""
    assert isinstance(method, SpikingBayes)
    method.estimator = IWST(float(method.lam_in_use))


register_stateless_layer(BayesianMap)
