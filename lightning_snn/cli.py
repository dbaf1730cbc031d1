"""The command line that all recipes share: every option of data, network, method and Trainer; a run; a report.

A recipe is a script that calls `main(__file__, defaults)`. `--data`, `--network` and `--method` name a class of the library, or give
the import path of one's own; its options follow as `--data.size 64`. YAML files say the same with `--config`.
"""

from __future__ import annotations

import argparse
import inspect
import netrc
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import lightning.pytorch as pl
import torch
import yaml
from jsonargparse.typing import Path_fr
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from torch import nn

from lightning_snn import __version__, data, methods, networks
from lightning_snn.callbacks import Report
from lightning_snn.data import FrameDataModule
from lightning_snn.methods import Method
from lightning_snn.module import SpikingModule

_USAGE = "%(prog)s [--data NAME] [--network NAME] [--method NAME] [--GROUP.OPTION VALUE ...]"
_GROUPS: dict[str, tuple[ModuleType, type, str]] = {
    "data": (data, FrameDataModule, "What is learned"),
    "network": (networks, nn.Module, "The network"),
    "method": (methods, Method, "How it learns"),
}
_TABLE = {
    "accuracy": ("accuracy", ".4f"),
    "pair_accuracy": ("within-pair direction accuracy", ".4f"),
    "nll": ("negative log-likelihood (nats)", ".4f"),
    "ece": ("expected calibration error", ".4f"),
    "mse": ("mean squared error", ".4g"),
    "spikes_per_neuron_per_step": ("spikes per neuron per step", ".4f"),
    "synaptic_operations_per_sample": ("synaptic operations per sample", ".3g"),
}


def main(recipe: str, defaults: Mapping[str, Any], presets: Mapping[str, Mapping[str, Any]] | None = None) -> RecipeCLI:
    """Run a recipe as the command line says: train, keep the best checkpoint on validation data, test it, report.

    Args:
        recipe: the script, `__file__`; its name names the folder of the run and the W&B group.
        defaults: options and their values, such as ``{"data": "Gestures", "trainer.max_epochs": 30}``.
        presets: for a class name the options that its choice brings along, such as
            ``{"NMNIST": {"data.size": 34, "trainer.max_epochs": 20}}``. They come after `defaults`, before the user's.

    Returns:
        The command line, with its `trainer`, `model`, `datamodule` and `report`.

    Raises:
        SystemExit: with status 2 for bad options; with status 130 after Ctrl-C, having said how to resume.
    """
    cli = None
    try:
        cli = RecipeCLI(recipe, defaults, presets or {})
        cli.run()
    except (KeyboardInterrupt, SystemExit) as stop:
        # the Trainer saves what it has to save on Ctrl-C and then raises an exit of its own
        if not isinstance(stop, KeyboardInterrupt) and not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        print("\n" + (cli.how_to_resume() if cli else "Interrupted before the run began."), file=sys.stderr)
        sys.exit(130)
    return cli


class RecipeCLI(LightningCLI):
    """LightningCLI with the groups data, network, method, model and trainer; what depends on the data is linked.

    The network gets `input_shape` and `num_classes` from the data, if it has such arguments; the module gets
    `num_classes` and `pairs`. All that a run writes lies in the folder `output`.

    Args:
        recipe, defaults, presets: see `main`.
    """

    def __init__(self, recipe: str, defaults: Mapping[str, Any], presets: Mapping[str, Mapping[str, Any]]) -> None:
        self.recipe = Path(recipe).stem
        self.classes = _chosen_classes(sys.argv[1:], defaults)
        self.option_defaults = dict(defaults)
        for kind in self.classes.values():
            self.option_defaults.update(presets.get(kind.__name__, {}))
        super().__init__(
            SpikingModule,
            FrameDataModule,
            run=False,
            seed_everything_default=0,
            save_config_callback=None,
            auto_configure_optimizers=False,
            # the module's checkpoints hold the whole configuration anyway, see `instantiate_classes`
            load_from_checkpoint_support=False,
            parser_kwargs={
                "description": inspect.getdoc(sys.modules["__main__"]),
                "usage": _USAGE,
                "allow_abbrev": False,
            },
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--output", type=str | None, help="folder of the run; runs/RECIPE/TIME if not given")
        parser.add_argument("--wandb", type=bool, default=False, help="log to Weights & Biases, offline without a key")
        parser.add_argument("--ckpt_path", type=Path_fr | None, help="checkpoint from which to resume")
        options = dict(self.option_defaults)
        for group, (package, base, title) in _GROUPS.items():
            kind = self.classes[group]
            # of networks only the library's are offered: every layer of torch is an nn.Module
            bases = (*_known_classes(package, base).values(), kind) if base is nn.Module else (base,)
            names = ", ".join(_known_classes(package, base))
            parser.add_subclass_arguments(
                tuple(dict.fromkeys(bases)),
                group,
                metavar="NAME",
                help=f"{names}, or an import path; then --{group}.OPTION VALUE. See --{group}.help NAME",
                default={"class_path": _import_path(kind), "init_args": _pop_group(options, group)},
            )
            parser.groups[group].title = title
        options = {name: value for name, value in options.items() if name not in _GROUPS}
        parser.add_class_arguments(SpikingModule, "model", fail_untyped=False)
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults(options)
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
        folder = Path(self.config.ckpt_path or "").absolute().parent
        if self.config.output is not None:
            self.output = Path(self.config.output)
        elif self.config.ckpt_path is not None and folder.name == "checkpoints":
            self.output = folder.parent
        else:
            self.output = Path("runs", self.recipe, time.strftime("%Y-%m-%d_%H-%M-%S"))
        groups = ("seed_everything", "data", "network", "method", "model", "trainer")
        configuration = yaml.safe_load(self.parser.dump(self.config))
        self.hyperparameters = {group: configuration[group] for group in groups}
        try:
            super().instantiate_classes()
        except ValueError as error:
            self.parser.error(str(error))
        # plain data from which `SpikingModule.load_from_checkpoint(path)` builds network and method again
        self.model.hparams.update(
            self.hyperparameters["model"],
            network=self._with_links(self.hyperparameters["network"]),
            method=self.hyperparameters["method"],
            _instantiator="lightning.pytorch.cli.instantiate_module",
        )

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        options = self.config.trainer
        names = {group: kind.__name__ for group, kind in self.classes.items()}
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
        if options.enable_checkpointing is not False:
            checkpoints = self.output / "checkpoints"
            # the likelihood sees accuracy and calibration both; without validation data the last epoch is the best
            monitor = "val/nll" if options.limit_val_batches != 0 else None
            callbacks += [
                ModelCheckpoint(
                    str(checkpoints),
                    "best",
                    monitor=monitor,
                    save_on_train_epoch_end=True,
                    enable_version_counter=False,
                ),
                LastCheckpoint(checkpoints / "last.ckpt"),
            ]
        self.trainer_defaults["callbacks"] = callbacks
        if options.logger is None:
            kwargs["logger"] = self._wandb_logger(names) if self.config.wandb else CSVLogger(self.output, "logs")
        elif self.config.wandb:
            self.parser.error("Expected either option --wandb or option --trainer.logger, but got both")
        return super().instantiate_trainer(default_root_dir=str(self.output), **kwargs)

    def run(self) -> None:
        """Train, test the best checkpoint, print the table."""
        print(f"{self.recipe}: {self.report.details['method']}, run folder {self.output}")
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.output.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, self.output / "config.yaml", overwrite=True)
            for logger in self.trainer.loggers:
                logger.log_hyperparams(self.hyperparameters)
        self.trainer.fit(self.model, self.datamodule, ckpt_path=self.config.ckpt_path and str(self.config.ckpt_path))
        best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
        self.trainer.test(self.model, self.datamodule, ckpt_path=best or None, verbose=False)
        for logger in self.trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish()
        if self.trainer.is_global_zero:
            print(self.table())

    def table(self) -> str:
        """What the test found, for people to read."""
        found = self.report.results
        rows = [(label, format(found[name], form)) for name, (label, form) in _TABLE.items() if name in found]
        parts = ", ".join(f"{name} {spent:.0f}" for name, spent in found["seconds"].items())
        rows += [("seconds", parts), ("report", str(self.output))]
        width = max(len(label) for label, _ in rows)
        title = " ".join(str(found[name]) for name in ("method", "network", "data")) + f", seed {found['seed']}"
        return "\n".join(["", title, *(f"  {label:<{width}}  {value}" for label, value in rows)])

    def how_to_resume(self) -> str:
        """What to tell a user who pressed Ctrl-C."""
        last = self.output / "checkpoints" / "last.ckpt"
        if not last.is_file():
            return "Interrupted before training began; nothing is lost by starting again."
        command = shlex.join(["python", sys.argv[0], *_without_option(sys.argv[1:], "--ckpt_path")])
        return (
            f"Interrupted; the last checkpoint is kept. An epoch that was not finished starts again on resuming, by\n"
            f"  {command} --ckpt_path {shlex.quote(str(last))}"
        )

    def _with_links(self, network: dict[str, Any]) -> dict[str, Any]:
        """The network's configuration with the arguments that it got from the data."""
        linked = {"input_shape": list(self.datamodule.frame_shape), "num_classes": self.datamodule.num_classes}
        accepted = inspect.signature(self.classes["network"]).parameters
        linked = {name: value for name, value in linked.items() if name in accepted}
        return {**network, "init_args": {**network.get("init_args", {}), **linked}}

    def _wandb_logger(self, names: Mapping[str, str]) -> WandbLogger:
        import wandb

        self.output.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {
            "project": "lightning_snn",
            "group": self.recipe,
            "tags": list(names.values()),
            "save_dir": str(self.output),
        }
        reason = _why_offline()
        if reason is None:
            logger = WandbLogger(**options)
            try:
                _ = logger.experiment
                return logger
            except wandb.errors.CommError as error:
                reason = f"the server cannot be reached ({error})"
        print(f"Weights & Biases: {reason}, so the run is kept offline in {self.output / 'wandb'}")
        return WandbLogger(**options, offline=True)


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt`: at the start of training and after every epoch.

    With it goes the state of torch's random number generators, so that a resumed run continues as the uninterrupted one
    would have. Lightning can also save and resume in the middle of an epoch, but then shows the same samples again.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.path = trainer.strategy.broadcast(self.path)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer)

    def state_dict(self) -> dict[str, Any]:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {"cpu": torch.get_rng_state(), "cuda": cuda}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        torch.set_rng_state(state_dict["cpu"])
        if len(state_dict["cuda"]) == torch.cuda.device_count() > 0:
            torch.cuda.set_rng_state_all(state_dict["cuda"])

    def _save(self, trainer: pl.Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.path)


def _chosen_classes(arguments: Sequence[str], defaults: Mapping[str, Any]) -> dict[str, type]:
    """The class that each group ends up with.

    It is looked up before the options are parsed, because jsonargparse would hand options of the default class on to the
    chosen one where their names agree: the image size of one data set to another.
    """
    scan = argparse.ArgumentParser(usage=_USAGE, add_help=False, allow_abbrev=False)
    for option in (*_GROUPS, "config"):
        flags = ("-c", "--config") if option == "config" else (f"--{option}",)
        scan.add_argument(*flags, dest="given", action="append", default=[], type=partial(_mapping, option))
    names = {group: defaults[group] for group in _GROUPS}
    for given in scan.parse_known_args(arguments)[0].given:
        for group in _GROUPS:
            value = given.get(group)
            names[group] = (value.get("class_path") if isinstance(value, dict) else value) or names[group]
    classes = {}
    for group, (package, base, _) in _GROUPS.items():
        try:
            classes[group] = _class_named(names[group], package, base)
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            known = ", ".join(_known_classes(package, base))
            scan.error(
                f"Expected option --{group} to be one of {known}, or the import path of a {base.__name__}, but got "
                f"{names[group]!r} ({error})"
            )
    return classes


def _mapping(option: str, text: str) -> dict[str, Any]:
    """What an option says, as a configuration file would; an unreadable one is left for the parser to refuse."""
    try:
        value = yaml.safe_load(Path(text).read_text(encoding="utf-8") if option == "config" else text)
    except (OSError, yaml.YAMLError):
        return {}
    if option != "config":
        return {option: value}
    return value if isinstance(value, dict) else {}


def _class_named(name: str, package: ModuleType, base: type) -> type:
    if "." in name:
        module, _, attribute = name.rpartition(".")
        kind = getattr(import_module(module), attribute)
    elif name in _known_classes(package, base):
        return _known_classes(package, base)[name]
    else:
        raise ValueError("no such name")
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise TypeError(f"it is no {base.__name__}")
    return kind


def _known_classes(package: ModuleType, base: type) -> dict[str, type]:
    public = {name: getattr(package, name) for name in package.__all__}
    return {
        name: kind
        for name, kind in sorted(public.items())
        if isinstance(kind, type) and issubclass(kind, base) and kind is not base
    }


def _import_path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _pop_group(options: dict[str, Any], group: str) -> dict[str, Any]:
    """Take the options ``group.name`` out, by their names."""
    names = [name for name in options if name.startswith(f"{group}.")]
    return {name.removeprefix(f"{group}."): options.pop(name) for name in names}


def _why_offline() -> str | None:
    """Why a run cannot be uploaded to Weights & Biases; None if it can."""
    import wandb

    settings = wandb.setup().settings
    if settings.mode in ("offline", "dryrun"):
        return "WANDB_MODE asks for it"
    if settings.mode == "disabled" or settings.api_key or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return None
    hosts = {urlsplit(settings.base_url).netloc, "api.wandb.ai"}
    file = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    if file.is_file() and hosts & set(netrc.netrc(file).hosts):
        return None
    return "no API key was found"


def _without_option(arguments: Sequence[str], option: str) -> list[str]:
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument != option and not argument.startswith(f"{option}="):
            kept.append(argument)
        skip = argument == option
    return kept
