"""How well the gradient of firing rates fits a network while it trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import lightning.pytorch as pl
from torch import Tensor, nn

from lightning_snn.callbacks.dry_run import check_training_step, detached_copy, training_run, without_a_trace
from lightning_snn.callbacks.modules import method_of, network_of, read_batch, task_loss
from lightning_snn.callbacks.stages import check_spiking_layers
from lightning_snn.callbacks.tracking import log_scalars
from lightning_snn.checks import check_integer
from lightning_snn.methods.rate import Alignment, gradient_alignment, module_alignment, rate_refusals
from lightning_snn.methods.task import Loss
from lightning_snn.nn.layer_rules import refuse


class GradientAlignment(pl.Callback):
    """Logs how close the gradient of rate-based backpropagation is to that of backpropagation through time.

    Measured with the first step of a fit, so that what cannot be measured is said at once, and with each n-th step of
    the optimizer: on the batch of that step, before it. Logged are `alignment/cosine/LAYER` and
    `alignment/norm_ratio/LAYER` for each layer with trained parameters, and for the whole gradient with `all` as the
    layer, at the steps that were measured.

    The gradients are taken on copies, in the precision of the parameters, without autocast and loss scaling: training
    goes on to the last bit as it would without this callback. A measurement costs a step of each kind and the memory of
    backpropagation through time. Of several processes each measures its own part of the batch; what is logged is the
    mean.

    It works on any LightningModule with spiking layers, of this library, snntorch, SpikingJelly or registered, whatever
    it does between them: both gradients are those of the loss of its own `training_step` on the whole batch, from the
    same random numbers, the logging left out (`methods.rate.module_alignment`, which says what is approximated).
    Membranes that are read out, and all else behind the last spikes, learn by backpropagation through time in both, so
    that their cosine is 1. All calls of a layer that takes a step at a time count as one sequence.

    Where the module has a `method` with a `task`, as a `SpikingModule` has, its network is run by itself, with the
    loss, the window and the streaming of the method and the rules of `rate_run` (`methods.rate.gradient_alignment`). To give
    `network`, `loss`, `window`, `streaming`, `read_batch` or `samples` chooses that too, for a network that maps
    `[T*B, ...]` to one tensor `[T*B, ...]`.

    Args:
        every_n_steps: number of optimizer steps from one measurement to the next.
        network: name of the network within the module, dots and all, to run by itself; None is "network" where it has
            to be run by itself.
        loss: from outputs `[T, B, ...]` and targets to a scalar; None is that of the module's method, or, where it has
            none, the cross-entropy of the mean over time.
        window: number of windows as in `rate_run`, or "step" for one every time step; None is that of the module's
            method, or 1.
        streaming: as in `rate_run`; None is that of the module's method, or no.
        read_batch: from a batch to ``(x [T, B, ...], y [B, ...])``; None takes batches that are just that.
        samples: how many samples of the batch to use for a network by itself, from the first; None uses them all.
        name: first part of all keys.

    Raises:
        ValueError: if an argument is outside its range; when the fit starts, if the module has no spiking layers or
            optimizes by hand, no such network, or one that `rate_run` cannot represent; at the first batch, if it has
            another form than a network by itself needs, the training step returns no loss, or a spiking layer, which is
            named, has neurons that hear each other or themselves, as with recurrent weights.

    Example:
        >>> trainer = Trainer(callbacks=[GradientAlignment(every_n_steps=50)])
        >>> trainer.fit(module, data)
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
    ) -> None:
        check_integer("every_n_steps", every_n_steps)
        if window not in (None, "step"):
            check_integer("window", window)
        if samples is not None:
            check_integer("samples", samples)
        self.every_n_steps = every_n_steps
        self.network, self.loss = network, loss
        self.window, self.streaming = window, streaming
        self.read_batch, self.samples = read_batch, samples
        self.name = name
        self._intervals: int | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # not in `setup`, which comes before `configure_model`
        self._intervals = None
        if not self._by_itself(pl_module):
            check_training_step(pl_module, self)
            check_spiking_layers(pl_module, self)
            return
        refuse("rate-based backpropagation", rate_refusals(self._network(pl_module), self._window(pl_module) == "step"))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # with accumulated gradients several batches share a step; a module with several optimizers skips numbers
        intervals = (trainer.global_step + 1) // self.every_n_steps
        if intervals == self._intervals:
            return
        self._intervals = intervals
        if self._by_itself(pl_module):
            measured = self._of_network(pl_module, batch)
        else:
            measured = self._of_module(trainer, pl_module, batch)
        values = {
            f"{self.name}/{quantity}/{layer}": value
            for layer, alignment in measured.items()
            for quantity, value in alignment._asdict().items()
        }
        # all processes take part: synchronized batch normalization waits for every one of them
        log_scalars(trainer, values)

    def _by_itself(self, pl_module: pl.LightningModule) -> bool:
        """Whether a network is run by itself, and not by the module's training step."""
        chosen = (self.network, self.loss, self.window, self.streaming, self.read_batch, self.samples)
        return any(each is not None for each in (*chosen, method_of(pl_module)))

    def _of_network(self, pl_module: pl.LightningModule, batch: Any) -> dict[str, Alignment]:
        x, y = read_batch(batch, self.read_batch, type(self).__name__)
        window, streaming = self._window(pl_module), self.streaming
        if streaming is None:
            streaming = getattr(method_of(pl_module), "streaming", False)
        return gradient_alignment(
            self._network(pl_module),
            (x[:, : self.samples], y[: self.samples]),
            self.loss or task_loss(pl_module),
            len(x) if window == "step" else window,
            streaming,
        )

    def _of_module(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any) -> dict[str, Alignment]:
        run = training_run(trainer, pl_module, batch, self)

        def loss(module: nn.Module) -> Tensor:
            with without_a_trace(module):
                return run(module)

        return module_alignment(pl_module, loss, detached_copy)

    def _network(self, pl_module: pl.LightningModule) -> nn.Module:
        return network_of(pl_module, self.network or "network")

    def _window(self, pl_module: pl.LightningModule) -> int | Literal["step"]:
        return getattr(method_of(pl_module), "window", 1) if self.window is None else self.window
