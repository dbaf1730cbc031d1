"""The LightningModule that combines a network, a method and metrics, independent of the type of the method."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torchmetrics import Metric, MetricCollection

from lightning_snn.batches import Batch, BatchChecks, steps_of_run, time_first, train_size, unpacked
from lightning_snn.checkpoint import (
    check_like_checkpoint,
    describe_module,
    describe_training,
    with_names_of,
    without_compiled_names,
    without_network,
)
from lightning_snn.checkpoint_io import build_options
from lightning_snn.checks import check_choice, check_positive
from lightning_snn.compiled import CompiledMethod
from lightning_snn.import_paths import check_import_paths
from lightning_snn.methods.base import Method, Progress, Step
from lightning_snn.methods.penalties import Penalty
from lightning_snn.methods.surrogate import SurrogateGradient
from lightning_snn.methods.tasks import Prediction, Readout, chosen_task
from lightning_snn.methods.tasks.choice import TaskChoice
from lightning_snn.metrics.evaluation import evaluation_metrics, monitored_metric
from lightning_snn.nn.description import describe_options
from lightning_snn.nn.folding import run
from lightning_snn.nn.inputs import first_input, is_several
from lightning_snn.nn.layer_rules import owned_copy
from lightning_snn.nn.lengths import sequence_lengths
from lightning_snn.nn.liveness import watch_activity
from lightning_snn.nn.shape_errors import explained_shapes
from lightning_snn.optim import (
    OptimizerFactory,
    SchedulerFactory,
    end_with_run,
    make_optimizer,
    optimizer_factory,
    refuse_learning_rate_finder,
    scheduler_configuration,
    start_from_found_learning_rate,
)
from lightning_snn.processes import seed_noise_by_rank, warn_of_repeated_samples, world_size
from lightning_snn.resuming import restore_loader_states

_CHECKPOINT_KEY = "lightning_snn"
_EXAMPLES = {
    "network": "nn.Sequential(nn.Linear(16, 32), LIF(), nn.Linear(32, 3))",
    "method": "lightning_snn.methods.SurrogateGradient()",
}


class SpikingModule(pl.LightningModule):
    """A network and the method that trains it, ready for a stock `Trainer`.

    A batch is ``(x [T, B, ...], y [B, ...])``, or ``(x, y, lengths [B])`` for sequences that are padded to T steps, of
    which only the first `lengths` count; for the types of x see `nn.folding.as_input`. A network with several inputs
    gets a tuple or dict x, by position or by name. The module logs
    `train/loss` and, on validation and test data, accuracy, negative log-likelihood, Brier score and expected
    calibration error (15 bins); accuracy, exact matches, F1 and negative log-likelihood of several labels; or the mean
    squared error of a regression. With several loaders, their names end in ``/dataloader_idx_0`` and so on.

    The module owns a copy of the network, which is `module.network`. The network that was handed over stays as it was,
    so the same network can be given to several modules that are compared.

    A checkpoint holds a description of network, readout, task and method besides the parameters. Loading it into a
    module with other layers, constants or options is an error, unless ``strict=False`` is given.

    Args:
        network: a plain module that maps `[T*B, ...]` to `[T*B, num_classes]` (or to the output of a regression).
        method: the learning rule, which the module copies; surrogate gradients by default.
        num_classes: number of classes or labels C, required for tasks with any.
        task: what is learned: "classification", "regression", or a `Task` of `methods.tasks`, such as
            ``CrossEntropy(label_smoothing=0.1)``, which the module copies. A function from outputs `[B, ...]` and
            targets is the loss of a classification with `num_classes`, and of a regression without.
        readout: reduction of the T outputs to one: "mean", "max", "last", "sum", or a function
            `[T, B, ...] -> [B, ...]`. None is that of the task, "mean" by default.
        optimizer: returns the optimizer for the parameters that it is given; or the name of one, such as "adamw". Adam
            by default. Not used if the method has an optimizer.
        learning_rate: learning rate of all parameters, larger than 0. None is 1e-3 for the default Adam, and otherwise
            that of the optimizer.
        lr_scheduler: returns a scheduler for the optimizer, which steps once per epoch, or Lightning's dictionary with
            "scheduler" and, for example, "interval" or "monitor"; such a dictionary with a function as "scheduler"; or
            "cosine", which decreases to 0 over all batches of the run and steps once per batch. `ReduceLROnPlateau`
            monitors `val/nll`, or `val/mse` of a regression, by default.
        pairs: pairs of classes that differ only in the order of events; their within-pair accuracy is logged.
        penalties: penalties on activity by name, such as ``{"rate": ActivityPenalty(0.1)}``, each a function from the
            spikes `[T, B, ...]` of a layer to a scalar. Their sum over all spiking layers joins the objective.
        metrics: further metrics of validation and test data by name, such as ``{"auroc": MulticlassAUROC(3)}``, each
            updated with the mean of the prediction and the targets. One with the name of a metric above replaces it. A
            task of your own has no others.
        batch_first: whether inputs are `[B, T, ...]`, outputs of `forward` too. None means time first, with a warning
            for inputs with T = B.

    Raises:
        ValueError: if an argument is outside its range, or the method cannot train the network or learn the task.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), LIF(), nn.Linear(8, 3))
        >>> module = SpikingModule(network, lightning_snn.methods.SpikingBayes(), num_classes=3)
        >>> Trainer(max_epochs=3).fit(module, data)
    """

    def __init__(
        self,
        network: nn.Module,
        method: Method | None = None,
        num_classes: int | None = None,
        task: TaskChoice = "classification",
        readout: Readout | None = None,
        optimizer: OptimizerFactory | str | None = None,
        learning_rate: float | None = None,
        lr_scheduler: SchedulerFactory | Mapping[str, Any] | Literal["cosine"] | None = None,
        pairs: Sequence[tuple[int, int]] = (),
        penalties: Mapping[str, Penalty] | None = None,
        batch_first: bool | None = None,
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        super().__init__()
        method = SurrogateGradient() if method is None else method
        for name, value, kind in (("network", network, nn.Module), ("method", method, Method)):
            if not isinstance(value, kind):
                found = value.__name__ if isinstance(value, type) else repr(value)
                example = f"{found}()" if isinstance(value, type) else _EXAMPLES[name]
                raise ValueError(
                    f"Expected argument `{name}` to be a {kind.__name__}, but got {found}. Pass an instance, such as "
                    f"`{example}`"
                )
        check_choice("batch_first", batch_first, (True, False, None))
        if learning_rate is not None:
            check_positive("learning_rate", learning_rate)
        chosen = chosen_task(task, readout, num_classes)
        if isinstance(lr_scheduler, Mapping):
            if not callable(lr_scheduler.get("scheduler")):
                raise ValueError(
                    'Expected argument `lr_scheduler` to hold a function of the optimizer as "scheduler", but got '
                    f"{dict(lr_scheduler)!r}"
                )
        elif lr_scheduler is not None and not callable(lr_scheduler):
            check_choice("lr_scheduler", lr_scheduler, ("cosine",))
        self.optimizer_factory: OptimizerFactory | None = (
            optimizer_factory(optimizer) if isinstance(optimizer, str) else optimizer
        )

        # a copy, because task and progress belong to this module, and another module may use the same method
        self.method = copy.deepcopy(method)
        self.method.set_task(chosen)
        # plain data only: a checkpoint must load with weights_only=True
        given = {"optimizer": optimizer, "readout": readout, "lr_scheduler": lr_scheduler, "task": task}
        ignored = [name for name, value in given.items() if not isinstance(value, str)]
        if learning_rate is None:
            ignored.append("learning_rate")
        self.save_hyperparameters(ignore=["network", "method", "penalties", "metrics", *ignored])
        if "_instantiator" in self.hparams:  # from a command line, whose configuration of these is plain data, too
            self.save_hyperparameters("network", "method", "task", "metrics")
        options = {"pairs": [list(pair) for pair in pairs], "method_options": describe_options(self.method)}
        self.save_hyperparameters(options)
        self._description = describe_module(network, self.method)
        self._training = describe_training(penalties or {}, chosen)
        self._saved: dict[str, Any] = {}

        self.network = self.method.prepare(owned_copy(network))
        self.method.set_penalties(self.network, penalties or {})
        self.scheduler = lr_scheduler
        self.learning_rate = learning_rate
        self.num_classes, self.batch_first = num_classes, batch_first
        evaluated = evaluation_metrics(chosen.kind, chosen.num_classes, pairs, metrics)
        self.val_metrics, self.test_metrics = evaluated.clone(prefix="val/"), evaluated.clone(prefix="test/")
        self._batch_checks = BatchChecks(chosen.num_classes if chosen.kind == "classification" else None, batch_first)
        self._largest_batch = self._samples = 0
        self._checks_first_step = False
        self._compiled: CompiledMethod | None = None

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile training steps and predictions, each as a whole when it is first called; in place.

        The code is valid for every number of time steps of neurons with a fused scan, such as `LIF`. Parameters and
        checkpoints are those of a module that is not compiled. The first step of a fit, and batches whose layers are
        observed by forward hooks, run without the compiler.

        Args:
            *args: none, see `torch.compile`.
            **options: arguments of `torch.compile`, such as ``backend`` or ``mode``.

        Raises:
            ValueError: if the method's steps cannot be compiled; says why.

        Example:
            >>> module.compile(backend="eager")
        """
        if self.method.compile_refusal is not None:
            raise ValueError(
                f"Expected a method whose steps can be compiled, but got {type(self.method).__name__}: "
                f"{self.method.compile_refusal}"
            )
        if args:
            raise TypeError(f"Expected options of `torch.compile` by name, but got {args!r}")
        self._compiled = CompiledMethod(options)

    def setup(self, stage: str) -> None:
        if self._compiler_ctx is not None:
            raise ValueError(
                "Expected a module that is not compiled, because `log`, which its steps call, cannot be, but got "
                f"`torch.compile({type(self).__name__})`. Compile in place: `module.compile()`"
            )
        seed_noise_by_rank()  # after the weights were drawn, which are the same in all processes

    def on_fit_start(self) -> None:
        self._checks_first_step = True

    def on_validation_epoch_start(self) -> None:
        warn_of_repeated_samples(self.trainer.val_dataloaders)
        self._log_together("val", len(self.trainer.num_val_batches))

    def on_test_epoch_start(self) -> None:
        warn_of_repeated_samples(self.trainer.test_dataloaders)
        self._log_together("test", len(self.trainer.num_test_batches))

    def on_train_start(self) -> None:
        restore_loader_states(self.trainer)
        start_from_found_learning_rate(self.trainer)
        for config in self.trainer.lr_scheduler_configs:
            if self.scheduler == "cosine" and isinstance(config.scheduler, CosineAnnealingLR):
                end_with_run(config.scheduler, steps_of_run(self.trainer))

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs `[T, B, ...]` of a plain run of the network, or `[B, T, ...]` with `batch_first`."""
        x, _ = time_first(x, None, bool(self.batch_first))
        outputs: Tensor = run(self.network, x)
        return outputs.transpose(0, 1) if self.batch_first else outputs

    def read_batch(self, batch: Any) -> tuple[Tensor, Any] | tuple[Tensor, Any, Any]:
        """Return inputs `[T, B, ...]` and targets `[B, ...]` of a batch; override it for batches of another form.

        If the batch has lengths, they are the third element of the result.

        Raises:
            ValueError: if the batch is neither a pair nor a triple, or the axes of inputs and targets do not fit.
        """
        x, y, lengths = unpacked(batch)
        x, y = time_first(x, y, bool(self.batch_first))
        return (x, y) if lengths is None else (x, y, lengths)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        checked = self._checked(Batch(*self.read_batch(batch)))
        samples = first_input(checked.x).shape[1]
        if self._has_trainer():
            self.method.progress = self._progress(samples, batch_idx)
        if checked.lengths is not None:
            self.method.check_lengths(self.network)
        if self._checks_first_step:
            step = self._first_step(checked, batch_idx)
        else:
            self._batch_checks.note_classes(checked.y)
            step = self._step(checked)
        if self._has_trainer():
            self.log("train/loss", step.loss, prog_bar=True, on_step=True, on_epoch=True, batch_size=samples)
            self.log_dict({f"train/{name}": value for name, value in step.metrics.items()}, batch_size=samples)
        return step.objective

    def on_train_epoch_end(self) -> None:
        limit, progress = self.trainer.limit_train_batches, self.trainer.fit_loop.epoch_loop.batch_progress
        whole = isinstance(limit, float) and limit == 1.0 and progress.is_last_batch  # an integer counts batches
        self._batch_checks.end_epoch(self.trainer.strategy if whole else None)

    def on_train_end(self) -> None:
        self.method.on_train_end()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        return self._evaluate(batch, "val", dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        return self._evaluate(batch, "test", dataloader_idx)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Prediction:
        return self._predict(self._inputs(batch))

    def predict_anytime(self, batch: Any) -> Prediction:
        """Return the predictions after each time step, `[T, B, ...]`, of a batch or of its inputs alone.

        Example:
            >>> module.predict_anytime((torch.rand(5, 2, 4), torch.tensor([0, 2]))).mean.shape
            torch.Size([5, 2, 3])
        """
        inputs = self._inputs(batch)
        with self._lengths_of(inputs):
            return self.method.predict_anytime(self.network, inputs.x)

    def configure_optimizers(self) -> Any:
        optimizer = self.method.configure_optimizer(self.network)
        if optimizer is not None and self._has_trainer():
            refuse_learning_rate_finder(self.trainer, type(self.method).__name__)
        if optimizer is None:
            trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
            optimizer = make_optimizer(trained, self.optimizer_factory, self.learning_rate)
        elif self.optimizer_factory is not None or self.learning_rate is not None:
            rank_zero_warn(
                f"{type(self.method).__name__} has its own optimizer, so `optimizer` and `learning_rate` have no effect"
            )
        if self.scheduler is None:
            return optimizer
        if self.scheduler == "cosine":
            steps = steps_of_run(self.trainer if self._has_trainer() else None)
            scheduler = {"scheduler": CosineAnnealingLR(optimizer, steps), "interval": "step"}
        else:
            monitor = monitored_metric(self.val_metrics) or "train/loss_epoch"
            scheduler = scheduler_configuration(self.scheduler, optimizer, monitor)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[_CHECKPOINT_KEY] = {
            "description": self._description,
            "training": self._training,
            "largest_batch": self._largest_batch,
            "samples": self._samples,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._saved = checkpoint.get(_CHECKPOINT_KEY, {})
        self._largest_batch = self._saved.get("largest_batch", 0)
        self._samples = self._saved.get("samples", 0)

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """Return parameters and buffers by name: of a compiled network those of the same network without compiling."""
        return without_compiled_names(super().state_dict(*args, **options))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load parameters and buffers; those of a checkpoint only into a module like the one that was saved.

        Raises:
            ValueError: if `strict`, and network, method, readout or task of the checkpoint are others, or penalties in
                a fit that is resumed.
        """
        saved, self._saved = self._saved, {}
        if strict and "description" in saved:
            check_like_checkpoint(saved["description"], self._description)
        if strict and "training" in saved and self._has_trainer() and self.trainer.state.fn == "fit":
            check_like_checkpoint(saved["training"], self._training)
        return super().load_state_dict(with_names_of(self, state_dict), strict, assign)

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        *,
        allow: Sequence[str] = (),
        **options: Any,
    ) -> Any:
        """Load a module from a checkpoint; see Lightning's documentation for the other arguments.

        Checkpoints of recipes hold network and method. For others pass them as `network=` and `method=`, and so any
        function among the arguments, such as the readout.

        Args:
            checkpoint_path: path or URL of the checkpoint, or an open file.
            map_location: as in `torch.load`.
            hparams_file: YAML or CSV file that replaces the hyperparameters of the checkpoint.
            strict: whether the parameters must be those of the checkpoint.
            weights_only: whether all but tensors and plain data is refused; with False a file may run any code.
            allow: modules of your own whose classes the checkpoint of a recipe may name, such as ``["my_nets"]``. They
                are imported and run. Those of this library, `torch.nn` and `torch.optim` are always allowed.
            **options: arguments of the class, which replace those of the checkpoint.

        Raises:
            OSError: if the file is missing or cannot be read; the message names it.
            ValueError: if the file is damaged, names classes of modules that are not allowed, or holds no network and
                none is given, or the module differs from the one that was saved.
        """
        named = build_options(checkpoint_path, cls, hparams_file, weights_only)
        if "network" in options:
            options["_instantiator"] = None  # of the command line, which takes no network
        elif weights_only is not False:
            check_import_paths(named, allow, str(checkpoint_path))
        try:
            return super().load_from_checkpoint(
                checkpoint_path, map_location, hparams_file, strict, weights_only, **options
            )
        except (TypeError, ValueError, ImportError, AttributeError, argparse.ArgumentError) as error:
            if "network" in options:
                raise
            raise without_network(cls, checkpoint_path, error) from error

    def _first_step(self, batch: Batch, batch_idx: int) -> Step:
        """Train the first step of a fit, which also shows whether the initial weights keep the layers active."""
        self._checks_first_step = False
        self.method.check_time_steps(first_input(batch.x).shape[0])
        self._batch_checks.start_fit(batch.y, epoch_starts=batch_idx == 0)
        with self._lengths_of(batch):
            y = self.method.task.targets(batch.x, batch.y)
            if self.trainer.global_step > 0:
                return self.method.penalized_step(self.network, batch.x, y)
            with explained_shapes(self.network, batch.x), watch_activity(self.network) as activity:
                step = self.method.penalized_step(self.network, batch.x, y)
        if (warning := activity.warning()) is not None:
            rank_zero_warn(warning)
        return step

    def _step(self, batch: Batch) -> Step:
        with self._lengths_of(batch):
            y = self.method.task.targets(batch.x, batch.y)
            if self._compiled is None:
                return self.method.penalized_step(self.network, batch.x, y)
            return self._compiled.training_step(self.method, self.network, batch.x, y)

    def _predict(self, batch: Batch) -> Prediction:
        with self._lengths_of(batch), explained_shapes(self.network, batch.x):
            if self._compiled is None:
                return self.method.predict(self.network, batch.x)
            return self._compiled.predict(self.method, self.network, batch.x)

    def _inputs(self, batch: Any) -> Batch:
        """Return the checked inputs of a batch without targets, or of one with targets, which are ignored."""
        alone = isinstance(batch, (tuple, list)) and len(batch) == 1
        if alone:
            (batch,) = batch
        if isinstance(batch, Tensor) or hasattr(batch, "__array__") or (alone and is_several(batch)):
            return self._checked(Batch(time_first(batch, None, bool(self.batch_first))[0]))
        return self._checked(Batch(*self.read_batch(batch))._replace(y=None))

    def _lengths_of(self, batch: Batch) -> AbstractContextManager[None]:
        return sequence_lengths(batch.lengths, self.network, first_input(batch.x).shape[0])

    def _checked(self, batch: Batch) -> Batch:
        return self._batch_checks.checked(self.network, batch, self._gets_time_first())

    def _gets_time_first(self) -> bool:
        data: Any = getattr(self.trainer, "datamodule", None) if self._has_trainer() else None
        return getattr(data, "gives_time_first", False)

    def _has_trainer(self) -> bool:
        try:
            return self.trainer is not None
        except RuntimeError:  # steps by hand
            return False

    def _progress(self, samples: int, batch_idx: int) -> Progress:
        trainer, batches = self.trainer, self.trainer.num_training_batches
        self._largest_batch = max(self._largest_batch, samples)
        before = self._samples if trainer.fit_loop.total_batch_idx else 0
        self._samples = before + samples * trainer.world_size
        return Progress(
            trainer.current_epoch + batch_idx / batches,  # adds 0 without a length
            train_size(trainer, self._largest_batch),
            trainer.global_step,
            before,
            batches != float("inf"),
        )

    def _evaluate(self, batch: Any, stage: str, dataloader_idx: int) -> dict[str, Any]:
        checked = self._checked(Batch(*self.read_batch(batch)))
        prediction = self._predict(checked)
        with self._lengths_of(checked):
            evaluated = self.method.task.evaluated(prediction.mean, checked.y)
        _, metrics = self._metrics_of(stage, dataloader_idx)
        metrics.update(*evaluated)
        if self._has_trainer() and world_size() == 1:
            self._log_metrics(stage, dataloader_idx)
        return {"prediction": prediction, "target": checked.y}

    def _log_together(self, stage: str, loaders: int) -> None:
        """Log the metrics of several processes before any batch, because they wait for one that will have none."""
        if world_size() > 1:
            for index in range(loaders):
                self._log_metrics(stage, index, f"/dataloader_idx_{index}" if loaders > 1 else "")

    def _log_metrics(self, stage: str, dataloader_idx: int, suffix: str = "") -> None:
        name, metrics = self._metrics_of(stage, dataloader_idx)
        for key, metric in metrics.items(keep_base=False):
            attribute = f"{name}.{key.partition('/')[2]}"
            self.log(f"{key}{suffix}", metric, prog_bar=True, on_step=False, on_epoch=True, metric_attribute=attribute)

    def _metrics_of(self, stage: str, dataloader_idx: int) -> tuple[str, MetricCollection]:
        """Return the metrics of a loader and the name of their attribute; later loaders get copies of the first."""
        metrics: MetricCollection = getattr(self, f"{stage}_metrics")
        if dataloader_idx == 0:
            return f"{stage}_metrics", metrics
        name = f"{stage}_metrics_{dataloader_idx}"
        if not hasattr(self, name):
            copied = metrics.clone()
            copied.reset()
            self.add_module(name, copied)
        return name, getattr(self, name)
