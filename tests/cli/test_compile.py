"""The option `--compile` of recipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lightning_snn import SpikingModule
from tests.cli.tiny import call, parse

METRICS = ("accuracy", "nll", "ece", "brier")


def scores(folder: str) -> dict[str, float]:
    metrics = json.loads(Path(folder, "metrics.json").read_text())
    return {name: metrics[name] for name in METRICS}


def test_a_compiled_run_has_the_scores_and_checkpoints_of_one_that_is_not(
    monkeypatch: pytest.MonkeyPatch, drawn: None
) -> None:
    options = ("--method", "SurrogateGradient", "--seed_everything", "3", "--trainer.deterministic", "true")
    compiled = call(monkeypatch, "--output", "compiled", "--compile", "eager", *options)
    plain = call(monkeypatch, "--output", "plain", *options)
    assert compiled.model._compiled is not None
    assert compiled.model._compiled._functions
    assert plain.model._compiled is None
    assert scores("compiled") == scores("plain")
    assert yaml.safe_load(Path("compiled/config.yaml").read_text())["compile"] == "eager"
    loaded = SpikingModule.load_from_checkpoint("compiled/checkpoints/last.ckpt", allow=["tests.cli.tiny"])
    assert loaded._compiled is None
    assert list(loaded.state_dict()) == list(plain.model.state_dict())


def test_a_method_that_cannot_be_compiled_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(monkeypatch, "--compile", "true", "--method", "ExpectationPropagation")
    assert ended.value.code == 2
    assert "Expected a method whose steps can be compiled, but got ExpectationPropagation" in capsys.readouterr().err


def test_true_compiles_by_the_default_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse(monkeypatch, "--compile", "true").model._compiled.options == {}
    assert parse(monkeypatch).model._compiled is None
