"""Report of a recipe, and its results as text."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lightning_snn.callbacks import Report
from lightning_snn.callbacks.report_page import LABELS
from lightning_snn.cli.catalog import invocation
from lightning_snn.cli.folders import CONFIG, LAST_CHECKPOINT
from lightning_snn.command_line import program


class RecipeReport(Report):
    """Report that a resumed run finds again in any folder, and whose commands are those of a recipe."""

    @property
    def state_key(self) -> str:
        return self.__class__.__qualname__

    def commands(self, trainer: pl.Trainer) -> dict[str, str]:
        """Return the commands that repeat the run, continue it, load it, and lay it next to another."""
        words = invocation() if program() else []
        found = {"The run was started with": shlex.join([*words, *sys.argv[1:]] if words else [])}
        if words and (self.folder / CONFIG).is_file():
            again = [*words, "--config", str(self.folder / CONFIG)]
            found["The same run in a new folder, with the same seed"] = shlex.join(again)
        last = self.folder / LAST_CHECKPOINT
        epochs = trainer.max_epochs
        if words and last.is_file() and epochs is not None and epochs > 0:
            longer = [*words, "--ckpt_path", str(last), "--trainer.max_epochs", str(2 * epochs)]
            found["The run is finished; for twice as many epochs, it resumes from its last checkpoint with"] = (
                shlex.join(longer)
            )
        found["Its best checkpoint and its data in Python"] = f"run = lightning_snn.load_run({str(self.folder)!r})"
        beside = shlex.join(["lightning-snn", "report", str(self.folder)])
        found["This run next to another one"] = f"{beside} OTHER_RUN"
        return {purpose: command for purpose, command in found.items() if command}


def score_rows(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the label and the value of each score that a table of results shows, as text."""
    return [(label, format(results[name], form)) for name, (label, form) in LABELS.items() if name in results]


def results_table(results: Mapping[str, Any], folder: Path) -> str:
    """Return the results of the test of a run as text."""
    rows = score_rows(results)
    parts = ", ".join(f"{name} {seconds:.0f}" for name, seconds in results["seconds"].items())
    rows += [("seconds", parts), ("report", str(folder / "report.html"))]
    width = max(len(label) for label, _ in rows)
    title = " ".join(str(results[name]) for name in ("method", "network", "data")) + f", seed {results['seed']}"
    return "\n".join(["", title, *(f"  {label:<{width}}  {value}" for label, value in rows)])
