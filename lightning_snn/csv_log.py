"""Logger of metrics in a CSV file that is whole at any time."""

from __future__ import annotations

import csv
import io
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from lightning_snn.files import write_text


class AtomicCSVLogger(CSVLogger):
    """`CSVLogger` whose `metrics.csv` survives a full disk and a process that is killed.

    Lightning's logger empties the file and writes it again whenever a new name is logged, at the latest for the test:
    a cut write then loses the metrics of the whole run. This one writes a new file and renames it.

    Example:
        >>> logger = AtomicCSVLogger("logs")
        >>> logger.log_metrics({"loss": 0.5}, step=3)
        >>> logger.save()
        >>> open(f"{logger.log_dir}/metrics.csv").read().split()
        ['loss,step', '0.5,3']
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Writer of the files, created on first use."""
        if self._experiment is None:
            self._experiment = _Writer(self.log_dir)
        return self._experiment


class _Writer(ExperimentWriter):
    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self.rows: list[dict[str, Any]] = []

    def save(self) -> None:
        """Write all metrics of the run."""
        if not self.metrics:
            return
        self.rows += self.metrics
        self.metrics = []
        self.metrics_keys = sorted(set().union(*self.rows))
        text = io.StringIO()
        writer = csv.DictWriter(text, self.metrics_keys)
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.metrics_file_path, text.getvalue())
