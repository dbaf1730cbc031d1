"""Artifacts of runs of Weights & Biases: the best checkpoint, the posterior mean, and the NIR file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_snn import LIF, SpikingModule, load_run, run
from lightning_snn.cli.artifacts import check_artifacts, keep_artifacts
from lightning_snn.cli.wandb import WandbOptions
from lightning_snn.methods import ExpectationPropagation, SpikingBayes, SurrogateGradient
from lightning_snn.networks import MLP
from tests.cli.tiny import SelfMadeNetwork, TinyEvents, call, parse
from tests.support.wandb_runs import WandbRun

ALL = ("--wandb.log_model", "true", "--wandb.posterior_mean", "true", "--wandb.nir", "true", "--output", "out")


@pytest.mark.filterwarnings("ignore:NIR has no field for the reset")
def test_best_checkpoint_posterior_mean_and_nir_file_are_kept_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    nir = pytest.importorskip("nir", reason="the optional extra `nir` is not installed")
    from lightning_snn.convert import from_nir

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(Path("staged").resolve()))
    cli = call(monkeypatch, *ALL)
    kept = WandbRun(Path("out"))
    number = Path("out/wandb_run_id.txt").read_text().strip()
    assert set(kept.artifacts) >= {f"model-{number}", f"posterior-mean-{number}", f"nir-{number}"}
    checkpoint = kept.artifacts[f"model-{number}"].manifest.contents[0].local_path
    assert Path(checkpoint).read_bytes() == Path("out/checkpoints/best.ckpt").read_bytes()
    for name, file in (("posterior-mean", "posterior_mean.pt"), ("nir", "network.nir")):
        artifact = kept.artifacts[f"{name}-{number}"]
        assert [each.local_path for each in artifact.manifest.contents] == [str(Path("out", file).resolve())]
        assert "best" in artifact.aliases
        metadata = json.loads(artifact.metadata)
        assert metadata["network"]["init_args"]["hidden"] == [16]
        assert metadata["scores"]["test/nll"] == pytest.approx(cli.report.results["nll"])

    best = load_run("out", allow=["tests.cli.tiny"]).module
    x = torch.rand(4, 3, 2, 4, 6)
    expected = run(best.method.posterior_mean(best.network), x)
    plain = MLP((2, 4, 6), 3, hidden=(16,))
    assert not torch.equal(run(plain, x), expected)
    plain.load_state_dict(torch.load("out/posterior_mean.pt", weights_only=True))
    assert torch.equal(run(plain, x), expected)
    assert torch.equal(run(from_nir(nir.read("out/network.nir")), x), expected)


def test_nothing_is_kept_unless_asked() -> None:
    module = SpikingModule(MLP(48, 3, hidden=(4,)), SurrogateGradient(), num_classes=3)
    logger = SimpleNamespace(version="number")  # which would fail to log anything
    assert keep_artifacts(WandbOptions(), module, (48,), Path("out"), logger, {}) == []
    assert not Path("out").exists()


def test_a_method_without_a_posterior_mean_is_named_before_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--wandb.posterior_mean", "true", "--output", "out", "--method", "SurrogateGradient"]
    with pytest.raises(SystemExit, match="2"):
        parse(monkeypatch, *asked)
    found = capsys.readouterr().err
    assert "option --wandb.posterior_mean, but SurrogateGradient has none" in found
    assert not Path("out").exists()


def test_a_layer_without_a_node_is_named_before_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("nir", reason="the optional extra `nir` is not installed")
    asked = ["--wandb.nir", "true", "--output", "out", "--method", "SurrogateGradient"]
    with pytest.raises(SystemExit, match="2"):
        parse(monkeypatch, *asked, "--network", "MLP", "--network.neuron", "AdaptiveLIF")
    found = capsys.readouterr().err
    assert "AdaptiveLIF" in found
    assert "Leave option --wandb.nir out" in found
    assert not Path("out").exists()


def test_a_missing_package_is_named_before_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "nir", None)
    with pytest.raises(SystemExit, match="2"):
        parse(monkeypatch, "--wandb.nir", "true")
    assert "pip install 'lightning-snn[nir]'" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:NIR has no field for the reset")
def test_the_check_changes_neither_the_module_nor_the_random_numbers() -> None:
    pytest.importorskip("nir", reason="the optional extra `nir` is not installed")
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 5), LIF(), nn.Linear(5, 3))
    module = SpikingModule(network, SpikingBayes(), num_classes=3)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    check_artifacts(WandbOptions(posterior_mean=True, nir=True), module, TinyEvents.frame_shape)
    assert torch.equal(torch.get_rng_state(), state)
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_network_whose_shapes_are_not_known_is_checked_later() -> None:
    module = SpikingModule(SelfMadeNetwork(), SurrogateGradient(), num_classes=3)
    check_artifacts(WandbOptions(nir=True), module, TinyEvents.frame_shape)
    other = SpikingModule(MLP(48, 3, hidden=(4,)), ExpectationPropagation(), num_classes=3)
    with pytest.raises(ValueError, match="ExpectationPropagation has none"):
        check_artifacts(WandbOptions(posterior_mean=True), other, (48,))
