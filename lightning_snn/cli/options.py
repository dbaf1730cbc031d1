"""Options of recipes: of the run, of data, network, method, module and Trainer, and what some take from others."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from lightning_snn.cli.choices import GROUPS, given_values, import_path
from lightning_snn.cli.parser import option_names
from lightning_snn.cli.wandb import WandbOptions
from lightning_snn.convert.converted import Converted, converter_for
from lightning_snn.data import FrameDataModule
from lightning_snn.module import SpikingModule
from lightning_snn.nn.registry import spiking_layers

Options = Mapping[str, Any]
# arguments of network and method that come from the data: their group, their name, and the attribute of the data
_LINKS = (
    ("network", "input_shape", "frame_shape"),
    ("network", "num_classes", "num_classes"),
    ("method", "input_shape", "frame_shape"),
)


def add_options(
    parser: LightningArgumentParser,
    classes: Mapping[str, type],
    defaults: Options,
    variants: Mapping[str, Options],
    trainer: type[pl.Trainer] | Callable[..., pl.Trainer],
) -> None:
    """Add the options of a recipe to its parser.

    Args:
        parser: the parser.
        classes: chosen class of each group, whose options are listed in the help.
        defaults: options and their values.
        variants: default options per variant.
        trainer: class of the Trainer, or a function that returns one.
    """
    parser.add_argument(
        "--output", type=str | None, help="new folder for the run; the default is runs/RECIPE/TIME_SEED_UNIQUE"
    )
    parser.add_argument(
        "--wandb",
        type=bool | WandbOptions,
        default=False,
        help="log to Weights & Biases with firing rates, offline without a key; --wandb.log_model, "
        "--wandb.posterior_mean and --wandb.nir upload the best checkpoint, its posterior mean and its NIR file, and "
        "WANDB_PROJECT, WANDB_RUN_GROUP, and WANDB_TAGS are used",
    )
    parser.add_argument(
        "--compile",
        type=bool | str,
        default=False,
        help="compile training steps and predictions with torch.compile, or with this backend of it; the first steps "
        "take from seconds to minutes, and a CPU needs a C++ compiler",
    )
    parser.add_argument(
        "--ckpt_path", type=str | None, help="checkpoint from which to resume, with the options of its run"
    )
    for name, special in variants.items():
        changes = ", ".join(f"{option} {value}" for option, value in special.items())
        parser.add_argument(f"--{name}", type=bool, default=False, help=f"with other defaults: {changes}")
    options = dict(defaults)
    for name, group in GROUPS.items():
        known, kind = group.classes(), classes[name]
        linked = [target for link, target, _ in _LINKS if link == name]
        accepted = [f"--{name}.{option}" for option in option_names(kind) if option not in linked]
        section = parser.add_argument_group(
            group.title, f"{kind.__name__} takes {' '.join(accepted) or 'no options'}", name=name
        )
        section.add_subclass_arguments(
            (group.base,),
            name,
            as_group=False,
            metavar="NAME",
            help=f"{', '.join(known)}, or an import path; then --{name}.OPTION VALUE. See --{name}.help NAME",
            default={"class_path": import_path(kind), "init_args": _pop_group(options, name)},
        )
    parser.add_class_arguments(SpikingModule, "model", fail_untyped=False)
    parser.add_lightning_class_args(trainer, "trainer")
    parser.set_defaults({option: value for option, value in options.items() if option not in GROUPS})
    for source, target in (
        *((f"data.{source}", f"{group}.init_args.{name}") for group, name, source in _LINKS),
        ("data.num_classes", "model.num_classes"),
        ("data.pairs", "model.pairs"),
        ("method", "model.method"),
    ):
        parser.link_arguments(source, target, apply_on="instantiate")
    parser.link_arguments("network", "model.network", compute_fn=plain_network, apply_on="instantiate")


def refuse_linked_options(parser: LightningArgumentParser, arguments: Sequence[str]) -> None:
    """End with an error if the command line gives an argument of network or method that comes from the data.

    Raises:
        SystemExit: with status 2 and a message.
    """
    for group, name, source in _LINKS:
        for option, value in given_values(arguments, [f"{group}.{name}"]):
            parser.error(f"Expected no option --{option}, because it is `{source}` of the data, but got {value}")


def with_linked_options(group: str, options: dict[str, Any], kind: type, data: FrameDataModule) -> dict[str, Any]:
    """Return the configuration of network or method with its arguments that come from the data.

    Args:
        group: "network" or "method".
        options: its configuration.
        kind: its class.
        data: the data.
    """
    accepted = inspect.signature(kind).parameters
    linked = {}
    for link, name, source in _LINKS:
        if link == group and name in accepted:
            value = getattr(data, source)
            linked[name] = list(value) if isinstance(value, tuple) else value
    return {**options, "init_args": {**options.get("init_args", {}), **linked}}


def plain_network(network: nn.Module) -> nn.Module:
    """Return a network of this library: one of snntorch or SpikingJelly is converted, with one line printed.

    Raises:
        ValueError: if it cannot be converted exactly.
    """
    converter = converter_for(network)
    if converter is None:
        return network
    converted = Converted(network)
    neurons = len(list(spiking_layers(converted)))
    rank_zero_only(print)(f"network: {converter} converted {import_path(type(network))}, {neurons} layers of neurons")
    return converted


def as_converted(options: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of a network of another library that builds the converted one."""
    return {"class_path": import_path(Converted), "init_args": {"network": options}}


def _pop_group(options: dict[str, Any], group: str) -> dict[str, Any]:
    """Remove the options ``group.name`` and return them by name."""
    names = [name for name in options if name.startswith(f"{group}.")]
    return {name.removeprefix(f"{group}."): options.pop(name) for name in names}
