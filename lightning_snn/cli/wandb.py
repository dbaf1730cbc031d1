"""Weights & Biases for recipes: online with a key and a server, otherwise offline with a message."""

from __future__ import annotations

import netrc
import os
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from lightning_snn.cli.resume import WANDB_ID
from lightning_snn.files import write_text

_SECONDS_TO_CONNECT = 30


@dataclass
class WandbOptions:
    """Options of Weights & Biases.

    Attributes:
        log_model: upload the best checkpoint when training ends; "all" uploads it whenever it is written.
        posterior_mean: upload the posterior mean of the best checkpoint as the weights of the plain network.
        nir: upload the network of the best checkpoint as a NIR file; of a Bayesian one the posterior mean.
    """

    log_model: bool | Literal["all"] = False
    posterior_mean: bool = False
    nir: bool = False


class SweepLogger(WandbLogger):
    """Logger of a run of a sweep, whose configuration holds the parameters of the sweep under their names.

    Such a value cannot change. Of a parameter that chooses a class, such as `method`, the class and its options are
    logged as `method_config`.
    """

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        options = dict(vars(params) if isinstance(params, Namespace) else params)
        for name in self._parameters & options.keys():
            value = options.pop(name)
            if isinstance(value, dict):
                options[f"{name}_config"] = value
        super().log_hyperparams(options)

    @cached_property
    def _parameters(self) -> set[str]:
        return set(self.experiment.config.keys())


def wandb_logger(folder: Path, group: str, tags: Sequence[str], options: WandbOptions | None = None) -> WandbLogger:
    """Return a logger whose run has started.

    The environment variables of W&B have their meaning: `WANDB_PROJECT` replaces the project `lightning_snn`,
    `WANDB_RUN_GROUP` the group, and `WANDB_TAGS` adds tags, separated by commas. If the folder holds the id of a run,
    that run goes on.

    Args:
        folder: folder of the W&B files; created if it is missing.
        group: group of the run, shared for example by runs of other seeds.
        tags: tags of the run.
        options: further options.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = folder / WANDB_ID
    own_tags = (tag.strip() for tag in os.environ.get("WANDB_TAGS", "").split(","))
    settings: dict[str, Any] = {
        "project": os.environ.get("WANDB_PROJECT") or "lightning_snn",
        "group": os.environ.get("WANDB_RUN_GROUP") or group,
        "tags": list(dict.fromkeys([*tags, *filter(None, own_tags)])),
        # absolute, because the process that writes may have another working folder
        "save_dir": str(folder.absolute()),
        "id": (known.read_text(encoding="utf-8").strip() or None) if known.is_file() else None,
        "log_model": (options or WandbOptions()).log_model,
    }
    logger = _started(folder, settings)
    _keep_id(logger, known)
    return logger


def _started(folder: Path, options: dict[str, Any]) -> WandbLogger:
    import wandb

    reason = why_offline()
    kind = SweepLogger if os.environ.get("WANDB_SWEEP_ID") else WandbLogger
    if reason is None:
        logger = kind(**options, settings=wandb.Settings(init_timeout=_SECONDS_TO_CONNECT))
        try:
            _ = logger.experiment
            return logger
        except wandb.errors.CommError as error:
            reason = f"the server cannot be reached ({error})"
    # the process of W&B otherwise reports on itself over the network, also in an offline run
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    # all processes of a run reach this line
    kept = folder / "wandb"
    rank_zero_only(print)(
        f"Weights & Biases: {reason}, so the run is kept offline in {kept}\n"
        f"  wandb sync {kept}/offline-run-*   uploads it"
    )
    # `mode` instead of `offline`, which sets an environment variable that W&B has already read
    logger = kind(**options, mode="offline", settings=wandb.Settings(silent=True))
    _ = logger.experiment
    return logger


@rank_zero_only
def _keep_id(logger: WandbLogger, file: Path) -> None:
    if logger.version is not None:
        write_text(file, f"{logger.version}\n")


def why_offline() -> str | None:
    """Return the reason why a run cannot be uploaded, or None if the settings allow it; the network is not used."""
    import wandb

    settings = wandb.setup().settings
    if settings.mode in ("offline", "dryrun"):
        return "WANDB_MODE is offline"
    if settings.mode == "disabled" or settings.api_key or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return None
    hosts = {urlsplit(settings.base_url).netloc, "api.wandb.ai"}
    file = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        if file.is_file() and hosts & netrc.netrc(file).hosts.keys():
            return None
    except (OSError, netrc.NetrcParseError) as error:
        return f"no API key was found, because {file} cannot be read ({error})"
    return "no API key was found"
