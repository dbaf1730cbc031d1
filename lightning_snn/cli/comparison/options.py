"""Options of a comparison, and what of them belongs to each run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from lightning_snn.checks import nearest_name
from lightning_snn.cli.choices import GROUPS, given_values, import_path
from lightning_snn.cli.comparison.run import as_arguments
from lightning_snn.cli.folders import CONFIG, new_folder
from lightning_snn.cli.options import Options
from lightning_snn.cli.reading import read_options
from lightning_snn.cli.recipe import RecipeCLI
from lightning_snn.cli.resume import differences
from lightning_snn.files import write_text

OPTIONS_OF_RUNS = "options_of_runs.yaml"
# of the comparison and not of its runs
_OWN = ("rules", "steps", "seconds", "learning_rates", "evaluations", "seeds", "threads")
# may change when a comparison goes on, because finished runs stay what they are
_MAY_CHANGE = ("rules", "seconds", "seeds", "threads", "wandb")


class ComparisonCLI(RecipeCLI):
    """Command line of a comparison: options of data, network, module and Trainer, and those of the comparison.

    With the folder of an earlier comparison as `output`, options that are not given are those of that comparison.

    Args:
        recipe: see `compare`.
        defaults: see `compare`.
        rules: see `compare`.
        presets: see `compare`.
        variants: see `compare`.
    """

    def __init__(
        self,
        recipe: str,
        defaults: Options,
        rules: Mapping[str, Options],
        presets: Mapping[str, Options],
        variants: Mapping[str, Options],
    ) -> None:
        self.known_rules = rules
        arguments = sys.argv[1:]
        folder = dict(given_values(arguments, ["output"])).get("output")
        self.earlier = Path(str(folder)) if folder is not None and (Path(str(folder)) / CONFIG).is_file() else None
        if self.earlier is not None:
            arguments = ["--config", str(self.earlier / CONFIG), *arguments]
        super().__init__(recipe, defaults, presets, variants, arguments=arguments)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        own = {name: self.option_defaults.pop(name) for name in _OWN if name in self.option_defaults}
        super().add_core_arguments_to_parser(parser)
        known = ", ".join(self.known_rules)
        parser.add_argument(
            "--rules",
            type=list[str] | dict[str, dict[str, Any]] | None,
            help=f"rules that are compared, of {known}, any other method by name or import path, or in a "
            "configuration file names and their options, such as {mine: {method: SpikingBayes, method.samples: 16}}",
        )
        for name, kind, default, description in (
            ("steps", int, 600, "optimizer steps of every rule"),
            ("seconds", float | None, None, "seconds of training steps of every rule, in a second comparison"),
            ("learning_rates", list[float], [3e-4, 1e-3, 3e-3, 1e-2], "those of which validation data choose"),
            ("evaluations", int, 8, "validations of a run, evenly spaced; divides the number of steps"),
            ("seeds", list[int] | None, None, "seeds of runs; the first one chooses the learning rate"),
            ("threads", int, 1, "threads of PyTorch"),
        ):
            parser.add_argument(f"--{name}", type=kind, default=default, help=description)
        parser.set_defaults(own)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        for argument in sys.argv[1:]:
            if argument.split("=")[0].split(".")[0] == "--method":
                parser.error(
                    f"Expected no option {argument.split('=')[0]}, because a comparison trains by several methods. "
                    "Choose them with --rules"
                )
        super().parse_arguments(parser, args)
        config = self.config
        if config.ckpt_path is not None:
            parser.error("Expected no option --ckpt_path; to go on with a comparison give its folder as --output")
        for name in ("steps", "evaluations", "threads"):
            if config[name] < 1:
                parser.error(f"Expected option --{name} to be an integer of at least 1, but got {config[name]}")
        if config.steps % config.evaluations:
            parser.error(
                f"Expected option --steps to be a multiple of the {config.evaluations} evaluations, but got "
                f"{config.steps}. Change it or --evaluations"
            )
        if not config.learning_rates or min(config.learning_rates) <= 0:
            parser.error(f"Expected option --learning_rates to be larger than 0, but got {config.learning_rates}")
        if config.seconds is not None and config.seconds <= 0:
            parser.error(f"Expected option --seconds to be larger than 0, but got {config.seconds}")
        self.rules = self._chosen_rules(parser)
        self.seeds = config.seeds or [config.seed_everything]

    def instantiate_classes(self) -> None:
        """Check what all runs share, by building data, network and module once; nothing is trained."""
        try:
            self.config_init = self.parser.instantiate_classes(self.config)
        except (ImportError, OSError, ValueError) as error:
            self.refuse(error)
        if "nll" not in self.config_init.model.val_metrics:
            self.parser.error("Expected data of a classification, because rules are compared by its metrics")
        self.folder = self._folder()

    def check_data(self) -> None:
        """End with a message if the data are missing or damaged, before anything is written."""
        data = self.config_init.data
        try:
            data.prepare_data()
            data.setup("fit")
        except (ImportError, OSError, ValueError) as error:
            self.refuse(error)

    def write(self) -> None:
        """Write the options into the folder of the comparison, and those that all runs share into a file beside."""
        write_text(self.folder / CONFIG, self._configuration())
        shared = yaml.safe_load(self._configuration())
        for name in (*_OWN, *self.variants, "method", "seed_everything"):
            shared.pop(name, None)
        shared["model"].pop("learning_rate", None)
        write_text(self.folder / OPTIONS_OF_RUNS, yaml.safe_dump(shared, sort_keys=False))

    def arguments_of(self, rule: str, steps: int, learning_rate: float | None, seed: int) -> list[str]:
        """Return the arguments of a run, without its folder.

        Args:
            rule: name of the rule.
            steps: number of optimizer steps.
            learning_rate: None leaves it to the method.
            seed: seed of weights and draws.
        """
        options = {
            **self.rules[rule],
            "trainer.max_steps": steps,
            "trainer.max_epochs": -1,
            "trainer.val_check_interval": steps // self.config.evaluations,
            "trainer.check_val_every_n_epoch": None,
            "seed_everything": seed,
        }
        if learning_rate is not None:
            options["model.learning_rate"] = learning_rate
        return ["--config", str(self.folder / OPTIONS_OF_RUNS), *as_arguments(options)]

    def _chosen_rules(self, parser: LightningArgumentParser) -> dict[str, Options]:
        given = self.config.rules
        if given is None:
            return dict(self.known_rules)
        if isinstance(given, dict):
            for name, options in given.items():
                if "method" not in options or Path(name).name != name:
                    parser.error(
                        "Expected option --rules to hold names that can name a folder, and options with a `method`, "
                        f"but got {name!r} with {options}"
                    )
            return {name: dict(options) for name, options in given.items()}
        chosen: dict[str, Options] = {}
        for name in given:
            try:
                chosen[name] = self.known_rules.get(name) or {"method": import_path(GROUPS["method"].find(name))}
            except (ImportError, ValueError) as error:
                near = nearest_name(name, [*self.known_rules, *GROUPS["method"].classes()])
                reason = str(error).partition(";")[0]
                parser.error(
                    f"Expected option --rules to hold names of {', '.join(self.known_rules)}, or methods, but got "
                    f"{name!r} ({reason}{near})"
                )
        return chosen

    def _folder(self) -> Path:
        if self.earlier is None:
            output = self.config.output
            if output is not None and Path(output).exists():
                self.parser.error(
                    f"Expected option --output to be a new folder or that of a comparison, but {output} is neither. "
                    "Choose another folder"
                )
            return Path(output) if output is not None else new_folder(self.recipe, self.config.seed_everything)
        before, now = read_options(self.earlier / CONFIG), yaml.safe_load(self._configuration())
        changed = {
            name: values for name, values in differences(before, now).items() if name.split(".")[0] not in _MAY_CHANGE
        }
        if changed:
            listed = "".join(f"\n  --{name} {new} instead of {old}" for name, (old, new) in changed.items())
            self.parser.error(
                f"Expected the options of the comparison in {self.earlier}, but got{listed}\n"
                "Choose another folder for other options"
            )
        return self.earlier


def run_name(budget: str, learning_rate: float | None, seed: int) -> str:
    """Return the name of the folder of a run.

    Example:
        >>> run_name("steps", 1e-3, 0), run_name("seconds_5", None, 1)
        ('steps_lr0.001_seed0', 'seconds_5_seed1')
    """
    return "_".join([budget, *([] if learning_rate is None else [f"lr{learning_rate:g}"]), f"seed{seed}"])
