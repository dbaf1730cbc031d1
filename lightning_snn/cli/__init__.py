"""The command line that all recipes share: every option of data, network, method and Trainer; a run; a report.

A recipe is a script that calls `main(__file__, defaults)`. `--data`, `--network` and `--method` name a class of the
library, or give the import path of one's own; its options follow as `--data.size 64`. YAML files say the same with
`--config`.
"""

from lightning_snn.cli.recipe import RecipeCLI, main

__all__ = ["RecipeCLI", "main"]
