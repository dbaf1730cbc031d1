"""Alignment of the gradient of rate-based backpropagation with the exact one, during training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import lightning.pytorch as pl
from torch import Tensor, nn

from lightning_snn.callbacks.dry_run import check_training_step, detached_copy, isolated_run, training_run
from lightning_snn.callbacks.modules import first_samples, method_of, network_of, read_batch, task_loss
from lightning_snn.callbacks.stages import check_spiking_layers
from lightning_snn.callbacks.tracking import log_scalars
from lightning_snn.checks import check_integer
from lightning_snn.methods.rate import (
    Alignment,
    decomposition_refusals,
    gradient_alignment,
    gradient_decomposition,
    module_alignment,
    rate_refusals,
)
from lightning_snn.methods.tasks import Loss
from lightning_snn.nn.layer_rules import refuse


class GradientAlignment(pl.Callback):
    """Logger of the alignment between the gradients of rate-based backpropagation and backpropagation through time.

    It measures in the first step of a fit, so that unsupported modules raise an error at once, and then in each n-th
    optimizer step, on the batch of that step and before it. Logged at these steps are `alignment/cosine/LAYER` and
    `alignment/norm_ratio/LAYER` for each layer with trained parameters, and with the layer `all` for the whole
    gradient.

    The gradients are computed on copies, in the precision of the parameters, without autocast and loss scaling, so
    training is bit-identical with and without this callback. A measurement costs one step of each kind and the memory
    of backpropagation through time. With several processes, each measures its own part of the batch, and the mean is
    logged.

    It works on any LightningModule with spiking layers, of this library, snntorch, SpikingJelly, or registered,
    whatever is between them. Both gradients are those of the loss of its own `training_step` on the whole batch, with
    the same random numbers and without its logging; see `methods.rate.module_alignment` for the approximations.
    Parameters behind the last spikes, for example those of a readout of membrane potentials, learn by backpropagation
    through time in both, so their cosine is 1. All calls of a layer that takes one time step per call count as one
    sequence.

    If the module has a `method` with a `task`, like a `SpikingModule`, the callback runs its network alone, with the
    loss, the windows, their link, and the streaming of the method and the rules of `rate_run`
    (`methods.rate.gradient_alignment`). Setting `network`, `loss`, `window`, `streaming`, `link`, `read_batch`,
    `samples`, or `decompose` selects this too, for a network that maps `[T*B, ...]` to one tensor `[T*B, ...]`.

    With ``decompose=True`` it also logs what makes the difference with one window
    (`methods.rate.gradient_decomposition`): `alignment/covariance/LAYER` and `alignment/remainder/LAYER`, relative to
    the norm of the gradient through time, and the recommended numbers of windows `alignment/windows/linked` and
    `alignment/windows/detached`, by the predicted errors.

    Args:
        every_n_steps: number of optimizer steps between two measurements.
        network: name of the network within the module, such as "model.network"; None is "network" if the network is run
            alone.
        loss: function from outputs `[T, B, ...]` and targets to a scalar; None uses that of the module's method, or,
            without one, the cross-entropy of the mean over time.
        window: number of windows as in `rate_run`, or "step" for one per time step; None uses that of the module's
            method, or 1.
        streaming: as in `rate_run`; None uses that of the module's method, or False.
        read_batch: function from a batch to ``(x [T, B, ...], y [B, ...])``; None expects batches that are such pairs.
        samples: number of samples of the batch, from the first, for a network that is run alone; None uses all.
        name: first part of all keys.
        link: as in `rate_run`; None uses that of the module's method, or False.
        decompose: also log the terms of the difference and recommended numbers of windows, for a network that is run
            alone. A measurement then costs about 20 times as much (twice the number of divisors of T, and 6).

    Raises:
        ValueError: if an argument is out of range; at the start of a fit, if the module has no spiking layers, uses
            manual optimization, has no such network, or has one that `rate_run`, or with `decompose`
            `gradient_decomposition`, cannot represent; in the first batch, if its form does not fit a network that is
            run alone, if the training step returns no loss, or if neurons of a spiking layer, which is named, receive
            spikes from each other or themselves, as with recurrent weights.

    Example:
        >>> trainer = pl.Trainer(callbacks=[GradientAlignment(every_n_steps=50)], logger=False)
    """

    def __init__(
        self,
        every_n_steps: int = 100,
        network: str | None = None,
        loss: Loss | None = None,
        window: int | Literal["step"] | None = None,
        streaming: bool | None = None,
        read_batch: Callable[[Any], tuple[Tensor, Tensor]] | None = None,
        samples: int | None = None,
        name: str = "alignment",
        link: bool | None = None,
        decompose: bool = False,
    ) -> None:
        check_integer("every_n_steps", every_n_steps)
        if window not in (None, "step"):
            check_integer("window", window)
        if samples is not None:
            check_integer("samples", samples)
        self.every_n_steps = every_n_steps
        self.network, self.loss = network, loss
        self.window, self.streaming, self.link = window, streaming, link
        self.read_batch, self.samples = read_batch, samples
        self.name, self.decompose = name, decompose
        self._interval: int | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # not in `setup`, which comes before `configure_model`
        self._interval = None
        if not self._runs_network(pl_module):
            check_training_step(pl_module, self)
            check_spiking_layers(pl_module, self)
            return
        one_step = self._option(pl_module, "window", 1) == "step" and not self._option(pl_module, "link")
        refuse("rate-based backpropagation", rate_refusals(self._network(pl_module), one_step))
        if self.decompose:
            refuse("GradientAlignment(decompose=True)", decomposition_refusals(self._network(pl_module)))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # with accumulated gradients several batches share a step; with several optimizers some numbers are skipped
        interval = (trainer.global_step + 1) // self.every_n_steps
        if interval == self._interval:
            return
        self._interval = interval
        if self._runs_network(pl_module):
            measured = self._align_network(pl_module, batch)
        else:
            measured = self._align_module(trainer, pl_module, batch)
        values = {
            f"{self.name}/{quantity}/{layer}": value
            for layer, alignment in measured.items()
            for quantity, value in alignment._asdict().items()
        }
        if self.decompose:
            values |= self._decompose_network(pl_module, batch)
        # in all processes: synchronized batch normalization waits for each of them
        log_scalars(trainer, values)

    def _runs_network(self, pl_module: pl.LightningModule) -> bool:
        """Return whether the network is run alone, and not by the module's training step."""
        chosen = (self.network, self.loss, self.window, self.streaming, self.link, self.read_batch, self.samples)
        return self.decompose or any(each is not None for each in (*chosen, method_of(pl_module)))

    def _batch_and_loss(self, pl_module: pl.LightningModule, batch: Any) -> tuple[tuple[Tensor, Tensor], Loss | None]:
        x, y = first_samples(*read_batch(batch, self.read_batch, type(self).__name__), self.samples)
        return (x, y), self.loss or task_loss(pl_module, x)

    def _align_network(self, pl_module: pl.LightningModule, batch: Any) -> dict[str, Alignment]:
        (x, y), loss = self._batch_and_loss(pl_module, batch)
        window = self._option(pl_module, "window", 1)
        return gradient_alignment(
            self._network(pl_module),
            (x, y),
            loss,
            len(x) if window == "step" else window,
            self._option(pl_module, "streaming"),
            self._option(pl_module, "link"),
        )

    def _decompose_network(self, pl_module: pl.LightningModule, batch: Any) -> dict[str, float]:
        """Return what makes the difference, by key, without runs that measure windows."""
        found = gradient_decomposition(self._network(pl_module), *self._batch_and_loss(pl_module, batch), measure=False)
        terms = {
            f"{self.name}/{term}/{layer}": getattr(each, term)
            for layer, each in found.layers.items()
            for term in ("covariance", "remainder")
        }
        windows = {"linked": found.linked.windows, "detached": found.detached.windows}
        return {**terms, **{f"{self.name}/windows/{kind}": float(count) for kind, count in windows.items()}}

    def _align_module(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any) -> dict[str, Alignment]:
        run = training_run(trainer, pl_module, batch, self)

        def loss(module: nn.Module) -> Tensor:
            with isolated_run(module):
                return run(module)

        return module_alignment(pl_module, loss, detached_copy)

    def _network(self, pl_module: pl.LightningModule) -> nn.Module:
        return network_of(pl_module, self.network or "network")

    def _option(self, pl_module: pl.LightningModule, name: str, default: Any = False) -> Any:
        """Return an argument of this callback, or, if it is None, the option of that name of the module's method."""
        chosen = getattr(self, name)
        return getattr(method_of(pl_module), name, default) if chosen is None else chosen
