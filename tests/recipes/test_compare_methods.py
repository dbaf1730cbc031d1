from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_snn import data
from lightning_snn.cli.choices import GROUPS
from lightning_snn.cli.comparison import compare
from lightning_snn.cli.comparison.options import ComparisonCLI
from lightning_snn.methods import Method
from tests.recipes.test_sbnn_dvs import TINY, write_nmnist
from tests.support.recipes import RECIPES, load_recipe

RECIPE = str(RECIPES / "compare_methods.py")


def parsed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> ComparisonCLI:
    monkeypatch.setattr(sys, "argv", [RECIPE, *arguments])
    script = load_recipe("compare_methods")
    return ComparisonCLI(RECIPE, script.DEFAULTS, script.RULES, script.PRESETS, {})


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", [RECIPE, *arguments, "--trainer.accelerator", "cpu"])
    script = load_recipe("compare_methods")
    return compare(RECIPE, script.DEFAULTS, script.RULES, script.PRESETS)


def test_every_rule_of_the_library_is_compared():
    rules = load_recipe("compare_methods").RULES.values()
    chosen = {GROUPS["method"].find(options["method"]) for options in rules}
    assert chosen == set(GROUPS["method"].classes().values())
    assert all(issubclass(kind, Method) for kind in chosen)


@pytest.mark.parametrize("name", ["Gestures", "NMNIST", "MNIST", "SHD", "SpokenDigits"])
def test_inputs_are_between_0_and_1_and_are_not_augmented(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if name not in data.__all__:
        pytest.skip(f"this version has no data set {name}")
    monkeypatch.chdir(tmp_path)
    root = [] if name in ("Gestures", "SpokenDigits") else ["--data.root", "x"]
    found = parsed(monkeypatch, "--data", name, *root).config_init
    assert type(found.data).__name__ == name
    assert name == "MNIST" or found.data.max_count == 1  # pixels are between 0 and 1
    assert not found.data.event_augmentation
    assert [layer.out_features for layer in found.network if hasattr(layer, "out_features")] == [
        128,
        found.data.num_classes,
    ]


def test_options_of_runs_are_those_of_the_comparison_with_those_of_the_rule(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli = parsed(monkeypatch, "--network.hidden", "[7]", "--steps", "80", "--output", "out", "--rules", "[SLTT]")
    assert cli.arguments_of("SLTT", 80, 0.5, 3) == [
        *("--config", "out/options_of_runs.yaml", "--method", "OnlineThroughTime", "--method.trace", "false"),
        *("--trainer.max_steps", "80", "--trainer.max_epochs", "-1", "--trainer.val_check_interval", "10"),
        *("--trainer.check_val_every_n_epoch", "null", "--seed_everything", "3", "--model.learning_rate", "0.5"),
    ]


@pytest.mark.slow
def test_all_rules_train_on_gestures_and_convolutions_have_refusals(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_SNN_CACHE", str(tmp_path / "cache"))
    short = [*TINY[:-2], "--steps", "2", "--evaluations", "1", "--learning_rates", "[0.01]"]
    found = run(monkeypatch, *short, "--output", "mlp")
    assert found["refused"] == {}
    assert [row["rule"] for row in found["rows"]] == list(load_recipe("compare_methods").RULES)
    assert {row["steps"] for row in found["rows"]} == {2}

    rules = "[RateBackprop, EProp, TimeToFirstSpike, ExpectationPropagation, SurrogateGradient]"
    found = run(monkeypatch, *short, "--output", "net", "--network", "EventConvNet", "--rules", rules)
    assert [row["rule"] for row in found["rows"]] == ["SurrogateGradient"]
    assert set(found["refused"]) == {"RateBackprop", "EProp", "TimeToFirstSpike", "ExpectationPropagation"}
    for rule, reason in found["refused"].items():
        assert rule in reason
    assert (tmp_path / "mlp" / "accuracy.png").stat().st_size > 10_000


@pytest.mark.slow
def test_recordings_in_files_are_compared_too(tmp_path, monkeypatch):
    write_nmnist(tmp_path / "nmnist")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_SNN_CACHE", str(tmp_path / "cache"))
    options = ["--data", "NMNIST", "--data.root", "nmnist", "--data.val_fraction", "0.4", "--rules", "[SLTT]"]
    found = run(monkeypatch, *options, "--steps", "4", "--evaluations", "2", "--learning_rates", "[0.01]")
    assert found["settings"]["data"] == "NMNIST"
    assert found["rows"][0]["operations"] > 0
