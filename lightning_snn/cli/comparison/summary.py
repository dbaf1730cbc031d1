"""Summary of a comparison in Weights & Biases: one more run of the group, with the table and the figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_snn.cli.comparison.results import COLUMNS, figures_of
from lightning_snn.cli.recipe import RecipeCLI
from lightning_snn.cli.wandb import wandb_logger


def log_summary(folder: Path, group: str, cli: RecipeCLI, results: Mapping[str, Any]) -> None:
    """Log table and figures as a run of W&B with the tag "comparison".

    Args:
        folder: folder of the comparison, which holds the figures.
        group: group of all its runs.
        cli: its options, for the tags.
        results: as in `comparison.json`.
    """
    tags = [*(cli.classes[name].__name__ for name in ("network", "data")), cli.recipe, "comparison"]
    logger = wandb_logger(folder, group, tags)
    logger.log_hyperparams(results["settings"])
    cells = [[row[name] for name in COLUMNS] for row in results["rows"]]
    logger.log_table("report/comparison", list(COLUMNS), cells)
    for name in figures_of(results):
        logger.log_image(f"report/{name}", [str(folder / f"{name}.png")])
    logger.experiment.finish()
