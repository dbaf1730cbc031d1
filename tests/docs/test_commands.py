"""The commands of the documentation are accepted as printed: their options are parsed, and nothing is trained."""

from __future__ import annotations

import concurrent.futures
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
import pytest
import torch

from lightning_snn.cli import RecipeCLI
from lightning_snn.cli.commands.run import with_shipped_configs
from lightning_snn.cli.program import build_parser
from tests.docs.blocks import DOCUMENTS, ROOT

COMMAND = re.compile(r"python ((?:recipes|benchmarks|callbacks)/\w+\.py[^`\n]*)")
PROGRAM = re.compile(r"^lightning-snn (\w[^#|>\n]*)", re.MULTILINE)
PAGES = [*DOCUMENTS, ROOT / "README.md", ROOT / "callbacks" / "README.md"]


def commands() -> list[str]:
    """Return each command once, without its comment and without a closing parenthesis of the text around it."""
    found = [match for page in PAGES for match in COMMAND.findall(page.read_text(encoding="utf-8"))]
    return sorted({re.sub(r"\s+#.*", "", command).strip() for command in found})


def program_commands() -> list[str]:
    """Return each command of ``lightning-snn`` in a block of a page once, without its name."""
    return sorted({match.strip() for page in PAGES for match in PROGRAM.findall(page.read_text(encoding="utf-8"))})


class Started(BaseException):
    """The script has accepted its options."""


def start(*arguments: Any, **options: Any) -> NoReturn:
    raise Started


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder in which the files exist that commands read for their options."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "callbacks", "callbacks")
    shutil.copytree(ROOT / "recipes" / "configs", "recipes/configs")
    Path("mine.yaml").write_text("trainer: {max_epochs: 1}\n")
    Path("runs/.../checkpoints").mkdir(parents=True)
    torch.save({"pytorch-lightning_version": "2.6"}, "runs/.../checkpoints/last.ckpt")
    return tmp_path


def accepted(command: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Start a script with the options of a command, and return whether it accepts them."""
    script, *arguments = shlex.split(command)
    monkeypatch.setattr(sys, "argv", [str(ROOT / script), *arguments])
    monkeypatch.syspath_prepend(ROOT / Path(script).parent)
    # what scripts call first when their options are right
    monkeypatch.setattr(torch, "set_num_threads", start)
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", start)
    monkeypatch.setattr(RecipeCLI, "instantiate_trainer", start)
    if Path(script).parent.name == "callbacks":
        monkeypatch.setattr(pl, "seed_everything", start)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except Started:
        return True
    except SystemExit as stop:
        return stop.code in (0, None)
    raise AssertionError(f"{command} ran to its end")


@pytest.mark.parametrize("command", commands())
def test_a_command_is_accepted_as_printed(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert accepted(command, monkeypatch)


@pytest.mark.parametrize(
    "command",
    [
        "recipes/sbnn_dvs.py --trainer.max_epoch 5",
        "recipes/ttfs_mnist.py",
        "benchmarks/ttfs_exactness.py",
        "benchmarks/ttfs_exactness.py mnist",
        "benchmarks/rate_accuracy.py mnist",
    ],
)
def test_a_wrong_command_is_not_accepted(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not accepted(command, monkeypatch)


@pytest.mark.parametrize("command", program_commands())
def test_a_command_of_the_program_is_accepted_as_printed(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, *_ = words = shlex.split(command)
    options = build_parser(name)[0].parse_args(words)
    if name == "run":
        assert accepted(
            shlex.join([f"recipes/{options.recipe}.py", *with_shipped_configs(options.options)]), monkeypatch
        )


def test_commands_of_the_program_are_found() -> None:
    assert {"list", "run", "predict", "info", "cite"} <= {command.split()[0] for command in program_commands()}


def test_commands_are_found() -> None:
    found = {command.partition(" ")[0] for command in commands()}
    assert {"recipes/sbnn_dvs.py", "recipes/ep_mnist.py", "benchmarks/uncertainty.py", "benchmarks/lif.py"} <= found
