"""Progress of a run without a terminal: one line per epoch instead of a bar."""

from __future__ import annotations

import time

import lightning.pytorch as pl


class EpochLines(pl.Callback):
    """Callback that prints one line per epoch, with the loss, the validation metrics, and the seconds so far.

    Logs of jobs have it in the place of a progress bar, which is redrawn many times a second.

    Example:
        >>> trainer = pl.Trainer(callbacks=[EpochLines()], enable_progress_bar=False)
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        found = trainer.callback_metrics
        names = ["train/loss", *sorted(name for name in found if name.startswith("val/") and name.count("/") == 1)]
        shown = "  ".join(f"{name} {float(found[name]):.4g}" for name in names if name in found)
        epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else "?"
        seconds = time.monotonic() - self._started
        print(f"epoch {trainer.current_epoch + 1}/{epochs}  {shown}  {seconds:.0f} s", flush=True)
