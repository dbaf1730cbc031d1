"""A run of a recipe, loaded in Python from its folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import yaml

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
    loaded = lightning_snn.load_run("out")
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
    assert lightning_snn.load_run("out").module.network.cutoff is None
    call(monkeypatch, "--output", "default", "--network", f"{HERE}.Clipped", "--method", "SurrogateGradient")
    assert lightning_snn.load_run("default").module.network.cutoff == 0.5


def test_a_network_of_the_working_folder_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("some_nets_of_mine.py").write_text(
        "from torch import nn\nfrom lightning_snn import LIF\n\n\nclass Net(nn.Sequential):\n"
        "    def __init__(self, num_classes: int, width: int = 5) -> None:\n"
        "        super().__init__(nn.Flatten(), nn.Linear(48, width), LIF(), nn.Linear(width, num_classes))\n"
    )
    call(monkeypatch, "--network", "some_nets_of_mine.Net", "--network.width", "6", "--output", "out")
    loaded = lightning_snn.load_run("out", "last")
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
