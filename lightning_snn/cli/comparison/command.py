"""The command that compares rules: their trials, the choice of learning rates, the runs of each budget, the table."""

from __future__ import annotations

import logging
import math
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from lightning_snn.cli import slurm
from lightning_snn.cli.choices import GROUPS
from lightning_snn.cli.command import exit_status, is_interruption, prepare_process
from lightning_snn.cli.comparison.options import ComparisonCLI, run_name
from lightning_snn.cli.comparison.record import RECORD
from lightning_snn.cli.comparison.results import markdown_of, results_of, write_figures, write_tables
from lightning_snn.cli.comparison.run import (
    ComparedRun,
    Refused,
    arguments_to_go_on,
    is_tested,
    is_trained,
    recording,
)
from lightning_snn.cli.comparison.summary import log_summary
from lightning_snn.cli.folders import FolderTaken
from lightning_snn.cli.options import Options
from lightning_snn.cli.reading import read_options
from lightning_snn.cli.stopping import Stopped, StopSignals
from lightning_snn.files import write_json

TRIAL = "trial.json"


class Trial(NamedTuple):
    """Result of the first training step of a rule.

    Attributes:
        peak_bytes: memory that a training step allocates at its peak.
        has_own_optimizer: whether the rule has its own optimizer, and no learning rate is chosen.
    """

    peak_bytes: int
    has_own_optimizer: bool


def compare(
    recipe: str,
    defaults: Options,
    rules: Mapping[str, Options],
    presets: Mapping[str, Options] = MappingProxyType({}),
    variants: Mapping[str, Options] = MappingProxyType({}),
) -> dict[str, Any]:
    """Compare learning rules with the options of the command line: train, choose learning rates, test, and report.

    Rules that cannot train the network or the data are listed with their reason. The others are trained for the same
    number of optimizer steps at each learning rate. The rate of the smallest negative log-likelihood on validation data
    is tested, with the weights of the last step. With ``seconds``, each rule is then trained at this rate for as many
    steps as take that time. Everything is kept in one folder, in which a comparison that was stopped goes on.

    Args:
        recipe: path of the script, `__file__`.
        defaults: options and their values, such as ``{"data": "Gestures", "steps": 600}``.
        rules: options of each rule by its name, such as ``{"SLTT": {"method": "OnlineThroughTime", "method.trace":
            False}}``.
        presets: default options per class name, see `lightning_snn.cli.main`.
        variants: default options per variant, see `lightning_snn.cli.main`.

    Returns:
        The results: rows of the table, refusals, curves and reliability, as in `comparison.json`.

    Raises:
        SystemExit: with status 2 for bad options; with 128 plus the number of the signal, so 130 after Ctrl-C, after a
            message on how to go on.
    """
    prepare_process()
    comparison = None
    with _without_lines_of_lightning(), StopSignals() as signals:
        try:
            cli = ComparisonCLI(recipe, defaults, rules, presets, variants)
            torch.set_num_threads(cli.config.threads)
            cli.check_data()
            comparison = Comparison(recipe, cli, defaults, presets, signals)
            return comparison.run()
        except (KeyboardInterrupt, SystemExit) as stop:
            if not is_interruption(stop):
                raise
            print("\n" + _how_to_go_on(comparison), file=sys.stderr)
            if isinstance(stop, Stopped) and stop.signal == slurm.requeue_signal():
                print(slurm.requeue(), file=sys.stderr)
            sys.exit(exit_status(stop))


@contextmanager
def _without_lines_of_lightning() -> Iterator[None]:
    """Leave out the lines on devices and seeds, which would repeat at each run."""
    loggers = [logging.getLogger(f"lightning.{package}") for package in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class Comparison:
    """Runs of a comparison.

    Args:
        recipe: path of the script.
        cli: its options.
        defaults: see `compare`.
        presets: see `compare`; of methods the options of the method itself.
        signals: signals that end a run after a batch.

    Attributes:
        refused: reason of each rule that cannot train the network or the data.
        busy: runs that other processes write.
    """

    def __init__(
        self,
        recipe: str,
        cli: ComparisonCLI,
        defaults: Options,
        presets: Mapping[str, Options],
        signals: StopSignals,
    ) -> None:
        self.recipe, self.cli, self.signals = recipe, cli, signals
        # of classes; other options come from the file that all runs share
        self.defaults, self.presets = {name: defaults[name] for name in GROUPS}, presets
        self.folder = cli.folder
        self.group = (
            f"{cli.recipe} {' '.join(cli.classes[name].__name__ for name in ('network', 'data'))} {self.folder.name}"
        )
        self.refused: dict[str, str] = {}
        self.trials: dict[str, Trial] = {}
        self.chosen: dict[str, float | None] = {}
        self.busy: list[Path] = []

    def run(self) -> dict[str, Any]:
        """Do all that is not done yet, and return the results."""
        self.cli.write()
        print(f"The comparison is kept in {self.folder}", flush=True)
        for number, rule in enumerate(self.cli.rules):
            self._say(number, rule, self._try(rule))
        for number, rule in enumerate(self.cli.rules):
            if rule in self.trials:
                self._compare(number, rule)
                write_tables(self.folder, self._results())
        results = self._results()
        write_tables(self.folder, results)
        write_figures(self.folder, results)
        print("\n" + markdown_of(results))
        if self.busy:
            print(
                f"{len(self.busy)} runs are written by other processes, such as {self.busy[0]}. Start this command "
                f"again when these have ended:\n  {self.command}"
            )
        elif self.cli.config.wandb:
            log_summary(self.folder, self.group, self.cli, results)
        return results

    @property
    def command(self) -> str:
        """Command that goes on with this comparison."""
        return shlex.join(["python", sys.argv[0], "--output", str(self.folder)])

    def _try(self, rule: str) -> str:
        """Find out whether a rule can train, and what a step costs; return a message."""
        file = self.folder / rule / TRIAL
        if not file.is_file():
            try:
                arguments = self.cli.arguments_of(rule, self.cli.config.steps, None, self.cli.seeds[0])
                tried = self._cli([*arguments, "--output", str(file.parent / "trial")])
                if tried.trainer.world_size > 1:
                    self.cli.parser.error(
                        "Expected a comparison on one device, because seconds and memory are those of one, but got "
                        f"{tried.trainer.world_size}. Give --trainer.devices 1"
                    )
                found = Trial(tried.peak_memory(), tried.has_own_optimizer)
            except Refused as error:
                self.refused[rule] = str(error)
                return f"refused: {error}"
            write_json(file, found._asdict())
        self.trials[rule] = Trial(**read_options(file))
        return f"a step needs {self.trials[rule].peak_bytes / 1e6:.1f} MB"

    def _compare(self, number: int, rule: str) -> None:
        """Choose the learning rate of a rule, and train and test it with every seed and budget."""
        config, seeds, folder = self.cli.config, self.cli.seeds, self.folder / rule
        rates: Sequence[float | None] = [None] if self.trials[rule].has_own_optimizer else config.learning_rates
        for rate in rates:
            self._ensure(number, rule, "steps", config.steps, rate, seeds[0], tested=len(rates) == 1)
        trained = {rate: folder / run_name("steps", rate, seeds[0]) for rate in rates}
        if not all(map(is_trained, trained.values())):
            return  # other processes train some of them
        self.chosen[rule] = chosen = min(rates, key=lambda rate: last_validation(trained[rate]))
        for seed in seeds:
            self._ensure(number, rule, "steps", config.steps, chosen, seed)
        first = trained[chosen]
        if config.seconds is None or not is_trained(first):
            return
        row = read_options(first / RECORD)["rows"][-1]
        each = config.seconds * row["step"] / row["seconds"] / config.evaluations
        steps = config.evaluations * max(1, round(each))
        for seed in seeds:
            self._ensure(number, rule, f"seconds_{config.seconds:g}", steps, chosen, seed)

    def _ensure(
        self, number: int, rule: str, budget: str, steps: int, rate: float | None, seed: int, tested: bool = True
    ) -> None:
        """Train, and test if asked, unless that was done or another process does it."""
        folder = self.folder / rule / run_name(budget, rate, seed)
        if is_tested(folder) or (is_trained(folder) and not tested):
            return
        at = "" if rate is None else f", learning rate {rate:g}"
        self._say(number, rule, f"{steps} steps{at}, seed {seed}" + (", test" if is_trained(folder) else ""))
        try:
            arguments = [*self.cli.arguments_of(rule, steps, rate, seed), *recording()]
            cli = self._cli(arguments_to_go_on(folder, arguments))
            try:
                cli.train()
                if tested:
                    cli.test()
                else:
                    cli.end_wandb()
            finally:
                cli.start.release()
        except FolderTaken:
            self.busy.append(folder)
            return
        row = read_options(folder / RECORD)["rows"][-1]
        scores = f"validation accuracy {row['accuracy']:.3f}, NLL {last_validation(folder):.3f}"
        self._say(number, rule, f"{scores} after {row['seconds']:.1f} s")

    def _cli(self, arguments: list[str]) -> ComparedRun:
        return ComparedRun(self.recipe, self.defaults, self.presets, self.group, self.signals, arguments)

    def _say(self, number: int, rule: str, message: str) -> None:
        print(f"[{number + 1}/{len(self.cli.rules)}] {rule}: {message}", flush=True)

    def _results(self) -> dict[str, Any]:
        budgets = {"steps": "steps"}
        if self.cli.config.seconds is not None:
            budgets["seconds"] = f"seconds_{self.cli.config.seconds:g}"
        runs = {
            (budget, rule): [self.folder / rule / run_name(name, rate, seed) for seed in self.cli.seeds]
            for budget, name in budgets.items()
            for rule, rate in self.chosen.items()
        }
        return results_of(
            runs=runs,
            rates=self.chosen,
            peaks={rule: trial.peak_bytes for rule, trial in self.trials.items()},
            refused=self.refused,
            settings={
                **{name: kind.__name__ for name, kind in self.cli.classes.items() if name != "method"},
                **{name: self.cli.config[name] for name in ("steps", "seconds", "learning_rates", "threads")},
                "seeds": self.cli.seeds,
                "torch": torch.__version__,
            },
        )


def last_validation(folder: Path) -> float:
    """Return the negative log-likelihood of a run's last weights on validation data; infinity if it is no number."""
    value = read_options(folder / RECORD)["rows"][-1].get("nll")
    return math.inf if value is None or math.isnan(value) else float(value)


def _how_to_go_on(comparison: Comparison | None) -> str:
    if comparison is None:
        return "Stopped before the comparison started."
    return f"Stopped. What is finished is kept; go on, with the same options, with\n  {comparison.command}"
