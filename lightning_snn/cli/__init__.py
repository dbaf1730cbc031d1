"""Command line of all recipes: options of data, network, method and Trainer, a run, and a report.

A recipe is a script that calls `main(__file__, defaults)`. `--data`, `--network` and `--method` take the name of a
class of the library or the import path of another one; its options follow as `--data.size 64`. `--config` reads the
same options from a YAML file.
"""

from lightning_snn.cli.command import main
from lightning_snn.cli.load import LoadedRun, load_run
from lightning_snn.cli.recipe import RecipeCLI

__all__ = ["LoadedRun", "RecipeCLI", "load_run", "main"]
