"""Recipes as a LightningCLI: options, the run, and resuming it."""

from __future__ import annotations

import inspect
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NoReturn

import lightning.pytorch as pl
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_snn import __version__
from lightning_snn.callbacks import FiringRateMonitor
from lightning_snn.callbacks.stages import Stages
from lightning_snn.checkpoint_io import AtomicCheckpointIO
from lightning_snn.cli.artifacts import check_artifacts, keep_artifacts
from lightning_snn.cli.catalog import invocation
from lightning_snn.cli.checkpoints import LAST, BestCheckpoint, LastCheckpoint
from lightning_snn.cli.choices import (
    GROUPS,
    USAGE,
    chosen_classes,
    given_values,
    help_of_a_class,
    import_from_working_folder,
    variants_switched_on,
    with_switches_on,
    without_options_of_other_classes,
)
from lightning_snn.cli.epoch_lines import EpochLines
from lightning_snn.cli.folders import CONFIG, LAST_CHECKPOINT, FolderTaken, new_folder, refuse_existing
from lightning_snn.cli.nir_files import with_network_of_file
from lightning_snn.cli.options import Options, add_options, as_converted, refuse_linked_options, with_linked_options
from lightning_snn.cli.parser import BriefHelp, RecipeParser
from lightning_snn.cli.reading import check_checkpoint
from lightning_snn.cli.results import RecipeReport, results_table
from lightning_snn.cli.resume import (
    Place,
    differences,
    resumed_run,
    run_of_this_job,
    where_resumed,
    with_options_of,
)
from lightning_snn.cli.start import StartOfRun
from lightning_snn.cli.stopping import StopAfterBatch, StopSignals
from lightning_snn.cli.sweeps import as_options
from lightning_snn.cli.wandb import WandbOptions, wandb_logger
from lightning_snn.convert.converted import converter_for
from lightning_snn.csv_log import AtomicCSVLogger
from lightning_snn.data import FrameDataModule
from lightning_snn.metrics.evaluation import monitored_metric
from lightning_snn.module import SpikingModule
from lightning_snn.nn.registry import spiking_layers

_NAMED_OR_MADE = ("optimizer", "lr_scheduler")  # options of the module that take a name or a function


class RecipeCLI(LightningCLI):
    """LightningCLI with the groups data, network, method, model and trainer.

    The arguments `input_shape` and `num_classes` of the network and `input_shape` of the method, if they have them, and
    `num_classes` and `pairs` of the module are linked to the data. A run writes all files into the folder `output`,
    from the moment at which its data are there.

    With `ckpt_path`, options that are not given are those of the run of the checkpoint. An interrupted run goes on in
    its folder; a run that is continued with other options, or from another checkpoint than its last, gets a new folder.

    Args:
        recipe: see `main`.
        defaults: see `main`.
        presets: see `main`.
        variants: see `main`.
        signals: signals that end training after a batch; None leaves them to the Trainer.
        arguments: options, without the name of the program; None takes those of the process.

    Attributes:
        keeps_best: whether `best.ckpt`, which is tested, is the best checkpoint by validation data, or the last one.
        wandb_group: group of the run in W&B; None is its method, network and data.
    """

    keeps_best: ClassVar[bool] = True
    wandb_group: str | None = None

    def __init__(
        self,
        recipe: str,
        defaults: Options,
        presets: Mapping[str, Options] = MappingProxyType({}),
        variants: Mapping[str, Options] = MappingProxyType({}),
        signals: StopSignals | None = None,
        arguments: Sequence[str] | None = None,
    ) -> None:
        self.recipe = Path(recipe).stem
        self.variants = variants
        self.signals = signals
        import_from_working_folder()
        switches = ("wandb", "compile", *variants)
        self.given = as_options(with_switches_on(sys.argv[1:] if arguments is None else arguments, switches))
        self.resumed = resumed_run(self.given)
        self.arguments = with_options_of(self.resumed, with_network_of_file(self.given))
        special: dict[str, Any] = {}
        for name in variants_switched_on(self.arguments, variants):
            special.update(variants[name])
        named = {**defaults, **special}
        self.classes = chosen_classes(self.arguments, named)
        self.arguments = help_of_a_class(self.arguments, self.classes) or self.arguments
        self.option_defaults = dict(defaults)
        for kind in self.classes.values():
            self.option_defaults.update(presets.get(kind.__name__, {}))
        for option, value in special.items():
            group = option.partition(".")[0]
            if group not in GROUPS or GROUPS[group].find(named[group]) is self.classes[group]:
                self.option_defaults[option] = value
        super().__init__(
            SpikingModule,
            FrameDataModule,
            run=False,
            seed_everything_default=0,
            save_config_callback=None,
            auto_configure_optimizers=False,
            # checkpoints of the module hold the whole configuration, see `instantiate_classes`
            load_from_checkpoint_support=False,
            parser_kwargs={
                "description": inspect.getdoc(sys.modules["__main__"]),
                "prog": shlex.join(invocation()),
                "usage": USAGE,
                "formatter_class": BriefHelp,
                "allow_abbrev": False,
            },
        )

    def init_parser(self, **options: Any) -> LightningArgumentParser:
        parser = RecipeParser(**options)
        parser.add_argument("-c", "--config", action="config", help="configuration file in YAML or JSON")
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        refuse_linked_options(parser, self.arguments)
        self.config = parser.parse_args(without_options_of_other_classes(self.arguments, self.classes))
        checkpoint = self.config.ckpt_path
        if checkpoint is not None and not Path(checkpoint).is_file():
            parser.error(f"Expected option --ckpt_path to be a checkpoint file, but there is no file {checkpoint}")
        if checkpoint is not None:
            try:
                check_checkpoint(checkpoint)
            except ValueError as error:
                parser.error(str(error))

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add_options(parser, self.classes, self.option_defaults, self.variants, self.trainer_class)

    @property
    def output(self) -> Path:
        """Folder of the run; with several processes that of the first, from the start of training."""
        return self.start.folder

    @property
    def shows_progress(self) -> bool:
        """True if Trainers show progress bars: as the user chose, and otherwise only in a terminal."""
        chosen = self.config.trainer.enable_progress_bar
        return sys.stdout.isatty() if chosen is None else bool(chosen)

    def instantiate_classes(self) -> None:
        try:
            self.start = StartOfRun(*self._where())
        except ValueError as error:
            self.parser.error(str(error))
        groups = ("seed_everything", "data", "network", "method", "model", "trainer")
        configuration = yaml.safe_load(self._as_yaml(self.config))
        self.hyperparameters = {group: configuration[group] for group in groups}
        try:
            super().instantiate_classes()
            if self.config.compile:
                self.model.compile(**{} if self.config.compile is True else {"backend": self.config.compile})
        except (ImportError, OSError, ValueError) as error:  # a bad argument, a missing file or optional library
            self.refuse(error)
        # plain data from which `SpikingModule.load_from_checkpoint(path)` rebuilds network and method
        built = {
            group: with_linked_options(group, self.hyperparameters[group], self.classes[group], self.datamodule)
            for group in ("network", "method")
        }
        if converter_for(self.config_init.network) is not None:
            built["network"] = as_converted(built["network"])
        self.model.hparams.update(
            self.hyperparameters["model"], **built, _instantiator="lightning.pytorch.cli.instantiate_module"
        )

    def refuse(self, error: Exception) -> NoReturn:
        """End with the message of an error that is due to the options."""
        self.parser.error(str(error))

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        options = self.config.trainer
        names = {group: kind.__name__ for group, kind in self.classes.items()}
        wandb = WandbOptions() if self.config.wandb is True else self.config_init.wandb or None
        if wandb is not None and options.logger is not None:
            self.parser.error("Expected either option --wandb or option --trainer.logger, but got both")
        if wandb is not None:
            check_artifacts(wandb, self.model, self.datamodule.frame_shape)
        self.wandb = wandb
        if options.logger is None:
            kwargs["logger"] = False  # loggers start with the run
        versions = {"lightning_snn": __version__, "torch": torch.__version__, "lightning": pl.__version__}
        self.report = RecipeReport(
            self.output,
            details={
                "recipe": self.recipe,
                **names,
                "seed": self.config.seed_everything,
                "versions": {**versions, "python": platform.python_version()},
                "hyperparameters": self.hyperparameters,
            },
        )
        callbacks: list[pl.Callback] = [self.report]
        if wandb is not None and self._lacks_rate_monitor():
            callbacks.insert(0, FiringRateMonitor())  # before the report, whose page shows its figures
        if options.enable_progress_bar is None and not self.shows_progress:
            callbacks.append(EpochLines())
        if options.enable_checkpointing is not False:
            checkpoints = self.output / "checkpoints"
            # likelihood measures accuracy and calibration; without validation data the last checkpoint is the best
            monitor = monitored_metric(self.model.val_metrics)
            last = LastCheckpoint(checkpoints / LAST)
            chooses = self.keeps_best and options.limit_val_batches != 0
            callbacks += [BestCheckpoint(checkpoints, monitor if chooses else None), last]
            if self.signals is not None:
                callbacks.append(StopAfterBatch(self.signals, last))
        self.start.configuration, self.start.hyperparameters = self._configuration(), self.hyperparameters
        if wandb is not None:
            chosen = [names[group] for group in ("method", "network", "data")]
            self.start.make_logger = partial(
                wandb_logger, group=self.wandb_group or " ".join(chosen), tags=[*chosen, self.recipe], options=wandb
            )
        elif options.logger is None:
            self.start.make_logger = partial(AtomicCSVLogger, name="logs")
        if self.resumed is not None and all(name.startswith("trainer.") for name in self.changes):
            self.start.same_training = self.resumed
        # first, so that the loggers exist for all others
        kwargs["enable_progress_bar"] = self.shows_progress
        kwargs["callbacks"] = [self.start, *self._configured_callbacks(), *callbacks]
        trainer = super().instantiate_trainer(default_root_dir=str(self.output), **kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # and not one that the user chose
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        # next to the report
        stages = [each for each in trainer.callbacks if isinstance(each, Stages)]  # type: ignore[attr-defined]
        self.start.write_into_folder([self.report, *(each for each in stages if getattr(each, "folder", "") is None)])
        return trainer

    def run(self) -> None:
        """Train, test the best checkpoint, and print the table of results."""
        try:
            self.train()
            self.test()
        finally:
            self.start.release()
        if self.trainer.is_global_zero:
            print(results_table(self.report.results, self.output))

    def train(self) -> None:
        """Train, from the checkpoint if there is one."""
        try:
            self.trainer.fit(self.model, self.datamodule, ckpt_path=self.config.ckpt_path)
        except FolderTaken as error:
            self.refuse(error)
        except MisconfigurationException:
            epochs, trained = self.trainer.max_epochs, self.trainer.current_epoch
            if self.config.ckpt_path is None or epochs in (None, -1) or trained <= epochs:
                raise
            self.parser.error(
                f"Expected option --trainer.max_epochs to be at least {trained}, the epochs of the checkpoint "
                f"{self.config.ckpt_path}, but got {epochs}. Leave it out to go on with that of the run"
            )
        except (FileNotFoundError, ValueError) as error:
            if self.datamodule.train_set is not None:
                raise
            self.parser.error(str(error))  # the data are missing or damaged
        if self.signals is not None:
            self.signals.raise_received()

    def test(self) -> None:
        """Test the best checkpoint, and end the run of W&B."""
        best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
        self.trainer.test(self.model, self.datamodule, ckpt_path=best or None, verbose=False)
        self.end_wandb()

    def end_wandb(self) -> None:
        """End the run of W&B, if there is one; a resumed run goes on with it."""
        for logger in self.trainer.loggers:
            if isinstance(logger, WandbLogger):
                if self.wandb is not None and self.trainer.is_global_zero:
                    self._keep_artifacts(self.wandb, logger)
                logger.experiment.finish()

    def _keep_artifacts(self, options: WandbOptions, logger: WandbLogger) -> None:
        scores = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        described = {"recipe": self.recipe, "scores": scores, **self.hyperparameters}
        keep_artifacts(options, self.model, self.datamodule.frame_shape, self.output, logger, described)

    def _where(self) -> Place:
        """Return the folder of the run and a message about it.

        Raises:
            ValueError: if the folder exists, or there is nothing to resume.
        """
        self.changes: dict[str, tuple[Any, Any]] = {}
        given = dict(given_values(self.given, ["output"])).get("output")
        output = None if given is None else Path(str(given))
        earlier = run_of_this_job(output, Path("runs", self.recipe), self._configuration())
        if earlier is not None:
            if (earlier / LAST_CHECKPOINT).is_file():
                self.config.ckpt_path = str(earlier / LAST_CHECKPOINT)
            return Place(earlier, f"The run in {earlier} goes on, because SLURM started its job again.", goes_on=True)
        if self.resumed is not None:
            before = self.parser.parse_args(["--config", str(self.resumed.config)])
            self.changes = differences(*(yaml.safe_load(self._as_yaml(each)) for each in (before, self.config)))
            return where_resumed(self.resumed, self.changes, output, self._new_folder)
        if output is not None and not self.config.trainer.fast_dev_run:
            refuse_existing(output)
        output = output or self._new_folder()
        checkpoint = self.config.ckpt_path
        note = f"\n{checkpoint} has no {CONFIG} beside it: options are those of this command" if checkpoint else ""
        return Place(output, f"The run is kept in {output}{note}")

    def _new_folder(self) -> Path:
        return new_folder(self.recipe, self.config.seed_everything)

    def _configuration(self) -> str:
        """Return the options as YAML, from which the run can be repeated in another folder."""
        repeatable = self.config.clone()
        for name in ("config", "ckpt_path", "output"):
            repeatable.pop(name, None)
        return self._as_yaml(repeatable)

    def _as_yaml(self, config: Namespace) -> str:
        """Return all options, also those that are null where a default is not."""
        # names, which the parser would write as functions without an import path
        names = {name: config.model[name] for name in _NAMED_OR_MADE if isinstance(config.model[name], str)}
        unnamed = config.clone()
        for name in names:
            unnamed.model[name] = None
        options = yaml.safe_load(self.parser.dump(unnamed, skip_none=False))
        options["model"].update(names)
        return str(yaml.safe_dump(options, sort_keys=False))

    def _configured_callbacks(self) -> list[pl.Callback]:
        configured = self.config_init.trainer.callbacks or []
        return configured if isinstance(configured, list) else [configured]

    def _lacks_rate_monitor(self) -> bool:
        """Return whether the network has spiking layers and the user configured no monitor of their rates."""
        monitored = any(isinstance(callback, FiringRateMonitor) for callback in self._configured_callbacks())
        return not monitored and any(True for _ in spiking_layers(self.model))
