"""A run of a recipe, loaded in Python from its folder."""

from __future__ import annotations

import sys
import tempfile
from argparse import ArgumentError
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.plugins.io import AsyncCheckpointIO

import lightning_snn
from lightning_snn import run
from tests.cli.tiny import HERE, call
from tests.support.training import trainer


def test_a_run_gives_its_module_and_its_data(monkeypatch: pytest.MonkeyPatch) -> None:
    cli = call(
        monkeypatch,
        *("--output", "out", "--network.hidden", "[7]", "--network.neuron.beta", "0.6", "--data.rate", "0.4"),
        *("--method.lam", "0.75", "--model.readout", "last"),
    )
    loaded = lightning_snn.load_run("out", allow=[HERE])
    assert repr(loaded.module) == repr(cli.model)
    assert not loaded.module.training
    assert (type(loaded.data), loaded.data.rate) == (type(cli.datamodule), 0.4)
    assert loaded.config["network"]["init_args"]["hidden"] == [7]
    best = torch.load("out/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert best.keys() == loaded.module.state_dict().keys()
    for name, value in loaded.module.state_dict().items():
        torch.testing.assert_close(value, best[name], rtol=0, atol=0)
    (results,) = trainer().test(loaded.module, loaded.data, verbose=False)
    assert results["test/nll"] == pytest.approx(cli.report.results["nll"])


def test_options_that_are_null_stay_null(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default of `cutoff` is a number, so that leaving null out would change the network in silence."""
    call(
        monkeypatch,
        "--output",
        "out",
        "--network",
        f"{HERE}.Clipped",
        "--network.cutoff",
        "null",
        "--method",
        "SurrogateGradient",
    )
    assert lightning_snn.load_run("out", allow=[HERE]).module.network.cutoff is None
    call(monkeypatch, "--output", "default", "--network", f"{HERE}.Clipped", "--method", "SurrogateGradient")
    assert lightning_snn.load_run("default", allow=[HERE]).module.network.cutoff == 0.5


def test_a_network_of_the_working_folder_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("some_nets_of_mine.py").write_text(
        "from torch import nn\nfrom lightning_snn import LIF\n\n\nclass Net(nn.Sequential):\n"
        "    def __init__(self, num_classes: int, width: int = 5) -> None:\n"
        "        super().__init__(nn.Flatten(), nn.Linear(48, width), LIF(), nn.Linear(width, num_classes))\n"
    )
    call(monkeypatch, "--network", "some_nets_of_mine.Net", "--network.width", "6", "--output", "out")
    loaded = lightning_snn.load_run("out", "last", allow=[HERE, "some_nets_of_mine"])
    assert run(loaded.module.network, torch.zeros(4, 2, 2, 4, 6)).shape == (4, 2, 3)
    assert loaded.module.network[1].out_features == 6


def test_the_configuration_is_plain_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    call(monkeypatch, "--output", "out")
    written = yaml.safe_load(Path("out/config.yaml").read_text())
    assert written["network"]["class_path"] == "lightning_snn.networks.MLP"
    assert written["method"]["init_args"]["lam"] == 0.25
    logged = yaml.safe_load(Path("out/logs/version_0/hparams.yaml").read_text())
    assert logged["method_options"]["lam"] == 0.25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("absent",), "absent has no config.yaml. Give the folder that the recipe printed"),
        (("out", "other"), "It has best.ckpt, last.ckpt"),
    ],
)
def test_a_missing_run_is_named(monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str) -> None:
    call(monkeypatch, "--output", "out", "--trainer.max_epochs", "1")
    with pytest.raises(FileNotFoundError, match=message):
        lightning_snn.load_run(*arguments)


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The mark that a module leaves when it is imported."""
    mark = tmp_path / "imported"
    (tmp_path / "nets_of_a_stranger.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield mark
    sys.modules.pop("nets_of_a_stranger", None)


def in_checkpoint(group: str, value: Any) -> None:
    path = Path("out/checkpoints/best.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["hyper_parameters"][group] = value
    torch.save(checkpoint, path)


def in_configuration(group: str, value: Any) -> None:
    path = Path("out/config.yaml")
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), group: value}))


STRANGE = "nets_of_a_stranger.Net"


@pytest.mark.parametrize(
    ("change", "group", "value"),
    [
        (in_checkpoint, "network", {"class_path": STRANGE}),
        (in_checkpoint, "network", f"{{class_path: {STRANGE}}}"),
        (in_checkpoint, "network", {"class_path": "lightning_snn.networks.MLP", "init_args": {"neuron": STRANGE}}),
        (in_checkpoint, "method", {"class_path": STRANGE}),
        (in_checkpoint, "readout", STRANGE),
        (in_checkpoint, "optimizer", {"class_path": STRANGE}),
        (in_checkpoint, "penalties", {"rate": {"class_path": STRANGE}}),
        (in_configuration, "data", {"class_path": STRANGE}),
        (in_configuration, "data", f"{{class_path: {STRANGE}}}"),
    ],
)
def test_a_run_names_only_classes_of_modules_that_are_allowed(
    monkeypatch: pytest.MonkeyPatch, stranger: Path, change: Callable[[str, Any], None], group: str, value: Any
) -> None:
    call(monkeypatch, "--output", "out", "--trainer.max_epochs", "1")
    with pytest.raises(
        ValueError, match=rf"config.yaml to name classes of .*names {HERE}.TinyEvents.*allow=\['{HERE}'\]"
    ):
        lightning_snn.load_run("out")
    lightning_snn.load_run("out", allow=[HERE])
    change(group, value)
    with pytest.raises(ValueError, match=r"to name classes of .* but it names nets_of_a_stranger.Net. If you trust"):
        lightning_snn.load_run("out", allow=[HERE])
    assert not stranger.exists()
    with pytest.raises((ValueError, ArgumentError)):  # there is no such class
        lightning_snn.load_run("out", allow=[HERE, "nets_of_a_stranger"])
    assert stranger.exists()


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"data: [", b"[]", b"network: 1\n", b"!!python/name:os.system\n"]
)
def test_damaged_options_of_a_run_are_named(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    call(monkeypatch, "--output", "out", "--trainer.max_epochs", "1")
    Path("out/config.yaml").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"^Expected out/config.yaml to (be|hold) .*, but (it is truncated|got an empty file|got list)"
    ):
        lightning_snn.load_run("out", allow=[HERE])


def test_the_checkpoints_of_a_run_need_no_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/dev/null")
    cli = call(monkeypatch, "--output", "out", "--trainer.max_epochs", "1")
    assert isinstance(cli.trainer.strategy.checkpoint_io, lightning_snn.AtomicCheckpointIO)
    assert sorted(path.name for path in Path("out/checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    cli = call(
        monkeypatch,
        *("--output", "other", "--trainer.fast_dev_run", "true"),
        *("--trainer.plugins", "lightning.pytorch.plugins.io.AsyncCheckpointIO"),
    )
    assert isinstance(cli.trainer.strategy.checkpoint_io, AsyncCheckpointIO)
