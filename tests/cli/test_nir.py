"""NIR files on the command line: as the network of a recipe, and converted from and to checkpoints."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from lightning_snn import SpikingModule, run
from lightning_snn.cli.program import main as run_command
from lightning_snn.convert import from_nir, read_nir, to_nir, write_nir
from lightning_snn.nn import LIF
from tests.cli.tiny import call, parse

pytest.importorskip("nir")
SURROGATE = ("--method", "SurrogateGradient", "--trainer.max_epochs", "1")


@pytest.fixture
def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 8), LIF(0.8, reset="zero"), nn.Linear(8, 3))


@pytest.fixture
def file(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("lightning_snn.convert.nir.files.check_in_process", lambda *arguments: None)
    return write_nir("nets/tiny.nir", to_nir(network, (2, 4, 6)))


def converted(*arguments: object) -> None:
    run_command(["convert", *map(str, arguments)])


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as stop:
        converted(*arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_a_recipe_trains_the_network_of_a_file(file: Path, network: nn.Module, monkeypatch: pytest.MonkeyPatch):
    cli = parse(monkeypatch, "--network", "nets/tiny.nir", *SURROGATE)
    x = torch.rand(5, 2, 2, 4, 6)
    assert torch.equal(run(cli.model.network, x), run(network, x))
    cli = call(monkeypatch, "--network=nets/tiny.nir", "--output", "out", *SURROGATE)
    assert cli.trainer.global_step > 0
    options = yaml.safe_load(Path("out/config.yaml").read_text())["network"]
    assert options["class_path"] == "lightning_snn.convert.nir.network.NIRNetwork"
    assert options["init_args"]["path"] == str(file.absolute())
    module = SpikingModule.load_from_checkpoint("out/checkpoints/last.ckpt")
    assert torch.equal(run(module.network, x), run(cli.model.network, x))
    # and leaves again, with the shape that the checkpoint holds
    converted("out/checkpoints/last.ckpt", "trained.nir")
    assert torch.equal(run(from_nir("trained.nir"), x), run(cli.model.network, x))


def test_a_network_of_another_input_is_refused_with_both_shapes(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        parse(monkeypatch, "--network", "nets/tiny.nir", "--data", "tests.cli.tiny.OtherEvents")
    assert "with inputs of shape [1, 5, 5], as the data need, but it has [2, 4, 6]" in " ".join(
        capsys.readouterr().err.split()
    )
    with pytest.raises(SystemExit):
        parse(monkeypatch, "--network", "absent.nir")
    assert "absent.nir to be a NIR graph (HDF5), but it does not exist" in " ".join(capsys.readouterr().err.split())


def test_a_configuration_file_that_names_a_nir_file_says_how(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    Path("options.yaml").write_text("network: nets/tiny.nir\n")
    with pytest.raises(SystemExit):
        parse(monkeypatch, "--config", "options.yaml")
    assert "the network of a NIR file has the `class_path` lightning_snn.convert.NIRNetwork" in capsys.readouterr().err


def test_a_bayesian_checkpoint_leaves_as_its_mean_or_a_sample(file: Path, monkeypatch: pytest.MonkeyPatch):
    cli = call(monkeypatch, "--network", str(file), "--output", "out", "--trainer.max_epochs", "1")
    method, network = cli.model.method, cli.model.network
    path = "out/checkpoints/last.ckpt"
    converted(path, "mean.nir", "--dt", "1e-3")
    mean = read_nir("mean.nir")
    assert mean.metadata["lightning_snn"]["dt"] == 1e-3
    assert np.array_equal(mean.nodes["1"].weight, network.get_submodule("1").weight.detach())
    converted(path, "sample.nir", "--sample", "3")
    sample = method.posterior_sample(network, torch.Generator().manual_seed(3))
    assert np.array_equal(read_nir("sample.nir").nodes["1"].weight, sample.get_submodule("1").weight.detach())
    converted(path, "integers.nir", "--weight_bits", "4", "--weight_ranges", "channel", "--at_or_above")
    node = read_nir("integers.nir").nodes["1"]
    assert node.metadata["lightning_snn"]["codes"].max() == 15
    assert len(np.unique(node.weight[0])) <= 16


def test_a_file_becomes_a_checkpoint_that_builds_itself(file: Path, network: nn.Module):
    converted("nets/tiny.nir", "tiny.ckpt", "--reset", "subtract")
    module = SpikingModule.load_from_checkpoint("tiny.ckpt")
    x = torch.rand(5, 2, 2, 4, 6)
    assert torch.equal(module(x), run(from_nir(file, reset="subtract"), x))
    assert module.num_classes == 3
    with pytest.warns(UserWarning, match='no field for the reset="subtract"'):
        converted("tiny.ckpt", "back.nir")
    assert torch.equal(run(from_nir("back.nir"), x), module(x))


@pytest.mark.usefixtures("file")
def test_the_command_refuses_wrong_files(capsys: pytest.CaptureFixture[str]):
    assert "OUT to be a checkpoint (.ckpt) and a NIR file (.nir)" in " ".join(refused(capsys, "a.nir", "b.nir").split())
    Path("there.ckpt").write_text("kept")
    assert "there.ckpt exists. Choose another name, or pass --overwrite" in refused(
        capsys, "nets/tiny.nir", "there.ckpt"
    )
    assert Path("there.ckpt").read_text() == "kept"
    converted("nets/tiny.nir", "there.ckpt", "--overwrite")
    assert "--sample, but its method is SurrogateGradient" in refused(capsys, "there.ckpt", "o.nir", "--sample", 1)
    assert "absent.nir to be a NIR graph" in refused(capsys, "absent.nir", "o.ckpt")
    assert "absent.ckpt to be a checkpoint" in refused(capsys, "absent.ckpt", "o.nir")
    Path("damaged.nir").write_bytes(b"x" * 100)
    assert "damaged.nir to be a NIR graph" in refused(capsys, "damaged.nir", "o.ckpt")
    write_nir("one.nir", to_nir(nn.Linear(3, 1), (3,)))
    assert "outputs of at least two classes, [C], but got [1]" in " ".join(refused(capsys, "one.nir", "o.ckpt").split())
    assert not Path("o.nir").exists()
    assert not Path("o.ckpt").exists()


@pytest.mark.usefixtures("file")
def test_a_checkpoint_without_the_shape_of_a_sample_needs_it(capsys: pytest.CaptureFixture[str], monkeypatch):
    cli = call(monkeypatch, "--network", "tests.cli.tiny.SelfMadeNetwork", "--output", "out", *SURROGATE)
    path = Path("out/checkpoints/last.ckpt")
    assert "pass `allow=" in " ".join(refused(capsys, path, "o.nir").split())
    assert "--input_shape, because" in refused(capsys, path, "o.nir", "--allow", "tests.cli.tiny")
    with pytest.warns(UserWarning, match="no field for the reset"):
        converted(path, "o.nir", "--allow", "tests.cli.tiny", "--input_shape", "2,4,6")
    x = torch.rand(5, 2, 2, 4, 6)
    assert torch.equal(run(from_nir("o.nir"), x), run(cli.model.network, x))


@pytest.mark.usefixtures("file")
def test_the_command_is_that_of_the_package(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["lightning_snn", "convert", "nets/tiny.nir", "tiny.ckpt"])
    runpy.run_module("lightning_snn", run_name="__main__")
    assert capsys.readouterr().out == "Wrote tiny.ckpt\n"
