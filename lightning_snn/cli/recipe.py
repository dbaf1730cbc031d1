"""Recipes as a LightningCLI: options, the run, the table of results, and resuming after Ctrl-C."""

from __future__ import annotations

import inspect
import logging
import platform
import shlex
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from jsonargparse.typing import Path_fr
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from torch import nn

from lightning_snn import __version__
from lightning_snn.callbacks import FiringRateMonitor, Report
from lightning_snn.callbacks.stages import Stages
from lightning_snn.cli.choices import GROUPS, USAGE, BriefHelp, chosen_classes, variants_switched_on
from lightning_snn.cli.last_checkpoint import LastCheckpoint
from lightning_snn.cli.wandb import wandb_logger
from lightning_snn.cpu import keep_freed_memory
from lightning_snn.data import FrameDataModule
from lightning_snn.module import SpikingModule
from lightning_snn.nn.registry import spiking_layers

_LINKED = ("input_shape", "num_classes")  # arguments of a network that come from the data
# messages that Lightning logs on every run and that need no action
_IGNORED_MESSAGES = ("💡", "TPU available", "Loading `train_dataloader` to estimate", "`weights_only` was not set")
_IGNORED_WARNINGS = (
    ".*does not have many workers",  # frames are in memory or mapped, so workers would only cost time
    ".*smaller than the logging interval",
    ".*LeafSpec",
    "Checkpoint directory .* exists and is not empty",  # a resumed run
)
_TABLE = {
    "accuracy": ("accuracy", ".4f"),
    "pair_accuracy": ("within-pair direction accuracy", ".4f"),
    "nll": ("negative log-likelihood (nats)", ".4f"),
    "ece": ("expected calibration error", ".4f"),
    "mse": ("mean squared error", ".4g"),
    "hardware/accuracy_unconstrained": ("validation accuracy without constraints", ".4f"),
    "hardware/accuracy_before": ("validation accuracy under constraints", ".4f"),
    "hardware/accuracy_after": ("validation accuracy after fine-tuning", ".4f"),
    "spikes_per_neuron": ("spikes per neuron", ".4f"),
    "latency": ("latency (input windows)", ".3f"),
    "spikes_per_neuron_per_step": ("spikes per neuron per step", ".4f"),
    "synaptic_operations_per_sample": ("synaptic operations per sample", ".3g"),
}


Options = Mapping[str, Any]


def main(
    recipe: str,
    defaults: Options,
    presets: Mapping[str, Options] | None = None,
    variants: Mapping[str, Options] | None = None,
) -> RecipeCLI:
    """Run a recipe with the options of the command line: train, test the best checkpoint on validation data, report.

    Args:
        recipe: path of the script, `__file__`; its stem is part of the folder of the run and a tag in W&B.
        defaults: options and their values, such as ``{"data": "Gestures", "trainer.max_epochs": 30}``.
        presets: default options per class name, such as ``{"NMNIST": {"data.size": 34, "trainer.max_epochs": 20}}``.
            If the class is chosen, they override `defaults`, and the user's options override them.
        variants: default options per variant, which ``--NAME true`` selects, such as
            ``{"small": {"network": "ResNet", "network.blocks": 1}}``. They override `presets`, and the user's options
            override them; options of a class are ignored if the user chooses another class.

    Returns:
        The command line, with its `trainer`, `model`, `datamodule` and `report`.

    Raises:
        SystemExit: with status 2 for bad options; with status 130 after Ctrl-C, after a message on how to resume.
    """
    keep_freed_memory()
    for name in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector"):
        logging.getLogger(f"lightning.pytorch.{name}").addFilter(_is_relevant)
    for message in _IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message)
    cli = None
    try:
        cli = RecipeCLI(recipe, defaults, presets or {}, variants or {})
        cli.run()
    except (KeyboardInterrupt, SystemExit) as stop:
        # on Ctrl-C the Trainer saves its state and then raises SystemExit
        if not isinstance(stop, KeyboardInterrupt) and not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        print("\n" + (cli.how_to_resume() if cli else "Interrupted before the run started."), file=sys.stderr)
        sys.exit(130)
    return cli


class RecipeCLI(LightningCLI):
    """LightningCLI with the groups data, network, method, model and trainer.

    The arguments `input_shape` and `num_classes` of the network, if it has them, and `num_classes` and `pairs` of the
    module are linked to the data. A run writes all files into the folder `output`.

    Args:
        recipe: see `main`.
        defaults: see `main`.
        presets: see `main`.
        variants: see `main`.
    """

    def __init__(
        self,
        recipe: str,
        defaults: Options,
        presets: Mapping[str, Options] = MappingProxyType({}),
        variants: Mapping[str, Options] = MappingProxyType({}),
    ) -> None:
        self.recipe = Path(recipe).stem
        self.variants = variants
        special: dict[str, Any] = {}
        for name in variants_switched_on(sys.argv[1:], variants):
            special.update(variants[name])
        named = {**defaults, **special}
        self.classes = chosen_classes(sys.argv[1:], named)
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
                "usage": USAGE,
                "formatter_class": BriefHelp,
                "allow_abbrev": False,
            },
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--output", type=str | None, help="folder of the run; the default is runs/RECIPE/TIME_SEED")
        parser.add_argument(
            "--wandb",
            type=bool,
            default=False,
            help="log to Weights & Biases with firing rates, offline without a key",
        )
        parser.add_argument("--ckpt_path", type=Path_fr | None, help="checkpoint from which to resume")
        for name, special in self.variants.items():
            changes = ", ".join(f"{option} {value}" for option, value in special.items())
            parser.add_argument(f"--{name}", type=bool, default=False, help=f"with other defaults: {changes}")
        options = dict(self.option_defaults)
        for name, group in GROUPS.items():
            known, kind = group.classes(), self.classes[name]
            # every layer of torch is an nn.Module, so only the library's networks are listed
            bases = dict.fromkeys((*known.values(), kind)) if group.base is nn.Module else (group.base,)
            accepted = [f"--{name}.{option}" for option in _option_names(kind) if option not in _LINKED]
            section = parser.add_argument_group(
                group.title, f"{kind.__name__} takes {' '.join(accepted) or 'no options'}", name=name
            )
            section.add_subclass_arguments(
                tuple(bases),
                name,
                as_group=False,
                metavar="NAME",
                help=f"{', '.join(known)}, or an import path; then --{name}.OPTION VALUE. See --{name}.help NAME",
                default={"class_path": _import_path(kind), "init_args": _pop_group(options, name)},
            )
        parser.add_class_arguments(SpikingModule, "model", fail_untyped=False)
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({option: value for option, value in options.items() if option not in GROUPS})
        for source, target in (
            ("data.frame_shape", "network.init_args.input_shape"),
            ("data.num_classes", "network.init_args.num_classes"),
            ("data.num_classes", "model.num_classes"),
            ("data.pairs", "model.pairs"),
            ("network", "model.network"),
            ("method", "model.method"),
        ):
            parser.link_arguments(source, target, apply_on="instantiate")

    def instantiate_classes(self) -> None:
        self.output = self._output_folder()
        groups = ("seed_everything", "data", "network", "method", "model", "trainer")
        configuration = yaml.safe_load(self.parser.dump(self.config))
        self.hyperparameters = {group: configuration[group] for group in groups}
        try:
            super().instantiate_classes()
        except (ImportError, ValueError) as error:  # a bad argument, or a missing optional library
            self.parser.error(str(error))
        # plain data from which `SpikingModule.load_from_checkpoint(path)` rebuilds network and method
        self.model.hparams.update(
            self.hyperparameters["model"],
            network=self._with_links(self.hyperparameters["network"]),
            method=self.hyperparameters["method"],
            _instantiator="lightning.pytorch.cli.instantiate_module",
        )

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        options = self.config.trainer
        names = {group: kind.__name__ for group, kind in self.classes.items()}
        if options.logger is None:
            kwargs["logger"] = self._logger(names)
        elif self.config.wandb:
            self.parser.error("Expected either option --wandb or option --trainer.logger, but got both")
        versions = {"lightning_snn": __version__, "torch": torch.__version__, "lightning": pl.__version__}
        self.report = Report(
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
        if self.config.wandb and self._lacks_rate_monitor():
            callbacks.append(FiringRateMonitor(folder=self.output))
        if options.enable_checkpointing is not False:
            checkpoints = self.output / "checkpoints"
            # likelihood measures accuracy and calibration; without validation data the last checkpoint is the best
            monitor = "val/nll" if self.config.model.task == "classification" else "val/mse"
            callbacks += [
                ModelCheckpoint(
                    str(checkpoints),
                    "best",
                    monitor=monitor if options.limit_val_batches != 0 else None,
                    save_on_train_epoch_end=True,
                    enable_version_counter=False,
                ),
                LastCheckpoint(checkpoints / "last.ckpt"),
            ]
        self.trainer_defaults["callbacks"] = callbacks
        trainer = super().instantiate_trainer(default_root_dir=str(self.output), **kwargs)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Stages) and getattr(callback, "folder", self.output) is None:
                callback.folder = self.output  # type: ignore[attr-defined]  # next to the report
        return trainer

    def run(self) -> None:
        """Train, test the best checkpoint, and print the table of results."""
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            print(f"The run is kept in {self.output}")
            self._save_configuration()
        resume = self.config.ckpt_path and str(self.config.ckpt_path)
        try:
            self.trainer.fit(self.model, self.datamodule, ckpt_path=resume)
        except (FileNotFoundError, ValueError) as error:
            if self.datamodule.train_set is not None:
                raise
            self.parser.error(str(error))  # the data are missing or damaged
        best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
        self.trainer.test(self.model, self.datamodule, ckpt_path=best or None, verbose=False)
        for logger in self.trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish()
        if self.trainer.is_global_zero:
            print(self.table())

    def table(self) -> str:
        """Return the results of the test as text."""
        found = self.report.results
        rows = [(label, format(found[name], form)) for name, (label, form) in _TABLE.items() if name in found]
        parts = ", ".join(f"{name} {seconds:.0f}" for name, seconds in found["seconds"].items())
        rows += [("seconds", parts), ("report", str(self.output))]
        width = max(len(label) for label, _ in rows)
        title = " ".join(str(found[name]) for name in ("method", "network", "data")) + f", seed {found['seed']}"
        return "\n".join(["", title, *(f"  {label:<{width}}  {value}" for label, value in rows)])

    def how_to_resume(self) -> str:
        """Return the message for a user who pressed Ctrl-C."""
        last = self.output / "checkpoints" / "last.ckpt"
        if not last.is_file():
            return "Interrupted before the first checkpoint; start again with the same command."
        command = shlex.join(["python", sys.argv[0], *_without_option(sys.argv[1:], "--ckpt_path")])
        return (
            f"Interrupted; the last checkpoint is kept. Resume, starting the unfinished epoch again, with\n"
            f"  {command} --ckpt_path {shlex.quote(str(last))}"
        )

    def _output_folder(self) -> Path:
        if self.config.output is not None:
            return Path(self.config.output)
        if self.config.ckpt_path is not None:
            checkpoints = Path(self.config.ckpt_path).parent
            if checkpoints.name == "checkpoints":  # of an interrupted run, whose folder is used again
                return checkpoints.parent
        # with the seed, because runs of several seeds are started at the same time
        name = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_seed{self.config.seed_everything}"
        return Path("runs", self.recipe, name)

    def _save_configuration(self) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        repeatable = self.config.clone()
        repeatable.ckpt_path = None
        self.parser.save(repeatable, self.output / "config.yaml", overwrite=True)
        for logger in self.trainer.loggers:
            logger.log_hyperparams(self.hyperparameters)

    def _with_links(self, network: dict[str, Any]) -> dict[str, Any]:
        """Return the configuration of the network with its arguments that come from the data."""
        linked = dict(zip(_LINKED, (list(self.datamodule.frame_shape), self.datamodule.num_classes), strict=True))
        accepted = inspect.signature(self.classes["network"]).parameters
        linked = {name: value for name, value in linked.items() if name in accepted}
        return {**network, "init_args": {**network.get("init_args", {}), **linked}}

    def _lacks_rate_monitor(self) -> bool:
        """Return whether the network has spiking layers and the user configured no monitor of their rates."""
        configured = self.config_init.trainer.callbacks or []
        configured = configured if isinstance(configured, list) else [configured]
        monitored = any(isinstance(callback, FiringRateMonitor) for callback in configured)
        return not monitored and any(True for _ in spiking_layers(self.model))

    def _logger(self, names: Mapping[str, str]) -> Logger | bool:
        if self.config.trainer.fast_dev_run:
            return False
        if not self.config.wandb:
            return CSVLogger(self.output, "logs")
        chosen = [names[group] for group in ("method", "network", "data")]
        return wandb_logger(self.output, " ".join(chosen), [*chosen, self.recipe])


def _is_relevant(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_IGNORED_MESSAGES)


def _option_names(kind: type) -> list[str]:
    """Return the names of the options of a class, with those that it passes on to its base classes."""
    names: list[str] = LightningArgumentParser().add_class_arguments(kind, fail_untyped=False)
    return names


def _import_path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _pop_group(options: dict[str, Any], group: str) -> dict[str, Any]:
    """Remove the options ``group.name`` and return them by name."""
    names = [name for name in options if name.startswith(f"{group}.")]
    return {name.removeprefix(f"{group}."): options.pop(name) for name in names}


def _without_option(arguments: Sequence[str], option: str) -> list[str]:
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument != option and not argument.startswith(f"{option}="):
            kept.append(argument)
        skip = argument == option
    return kept
