"""Weights & Biases for recipes: online with a key and a server, otherwise offline with a message."""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

_SECONDS_TO_CONNECT = 30


def wandb_logger(folder: Path, group: str, tags: list[str]) -> WandbLogger:
    """Return a logger whose run has started, in the project `lightning_snn`.

    Args:
        folder: folder of the W&B files; created if it is missing.
        group: group of the run, shared for example by runs of other seeds.
        tags: tags of the run.
    """
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    # absolute, because the process that writes may have another working folder
    where = {"save_dir": str(folder.absolute())}
    options: dict[str, Any] = {"project": "lightning_snn", "group": group, "tags": tags, **where}
    reason = why_offline()
    if reason is None:
        logger = WandbLogger(**options, settings=wandb.Settings(init_timeout=_SECONDS_TO_CONNECT))
        try:
            _ = logger.experiment
            return logger
        except wandb.errors.CommError as error:
            reason = f"the server cannot be reached ({error})"
    # all processes of a run reach this line
    kept = folder / "wandb"
    rank_zero_only(print)(
        f"Weights & Biases: {reason}, so the run is kept offline in {kept}\n"
        f"  wandb sync {kept}/offline-run-*   uploads it"
    )
    # `mode` instead of `offline`, which sets an environment variable that W&B has already read
    logger = WandbLogger(**options, mode="offline", settings=wandb.Settings(silent=True))
    _ = logger.experiment
    return logger


def why_offline() -> str | None:
    """Return the reason why a run cannot be uploaded, or None if the settings allow it."""
    import wandb

    settings = wandb.setup().settings
    if settings.mode in ("offline", "dryrun"):
        return "WANDB_MODE is offline"
    if settings.mode == "disabled" or settings.api_key or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return None
    hosts = {urlsplit(settings.base_url).netloc, "api.wandb.ai"}
    file = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    if file.is_file() and hosts & netrc.netrc(file).hosts.keys():
        return None
    return "no API key was found"
