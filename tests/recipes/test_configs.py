"""The configuration files of recipes are those of the recipes, and every key in them has a comment."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.recipes.test_sbnn_shd import write_shd
from tests.support.recipes import CONFIGS, RECIPES, options_of_recipe, run_recipe, write_colored_images, write_digits
from tests.support.slow import others_slow

FILES = sorted(CONFIGS.glob("*.yaml"))
NAMES = [path.stem for path in FILES]
OF_COMMAND_LINE = [path.stem for path in sorted(RECIPES.glob("*.py")) if "main(__file__" in path.read_text("utf-8")]
GROUPS = ("data", "network", "method", "model")


def recipe_of(name: str) -> str:
    (recipe,) = (each for each in OF_COMMAND_LINE if name == each or name.startswith(f"{each}_"))
    return recipe


def options_in(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value that is no mapping, with its dotted name; classes by their name alone."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{path}.{index}")
    else:
        yield path, value.rpartition(".")[2] if path.endswith("class_path") else value


def uncommented(text: str) -> list[str]:
    """Return the lines with a key and no comment; `init_args` needs none."""
    keys = (line for line in text.splitlines() if re.match(r"\s*(- )?[\w.]+:", line))
    return [line for line in keys if "  # " not in line and line.strip() != "init_args:"]


@pytest.mark.parametrize("path", [*FILES, *sorted((RECIPES / "sweeps").glob("*.yaml"))], ids=lambda path: path.stem)
def test_every_key_has_a_comment(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert uncommented(text) == []
    assert uncommented(text.replace("  # ", "  ")) != []


def test_every_recipe_has_its_defaults_and_a_small_setting() -> None:
    expected = {f"{recipe}{end}" for recipe in OF_COMMAND_LINE for end in ("", "_small")}
    assert expected <= set(NAMES)
    assert {recipe_of(name) for name in NAMES} == set(OF_COMMAND_LINE)


@pytest.mark.parametrize("recipe", others_slow(OF_COMMAND_LINE, ["sbnn_dvs", "rate_cifar10"]))
def test_the_defaults_are_those_of_the_recipe_and_complete(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = options_of_recipe(recipe, monkeypatch)
    given = options_of_recipe(recipe, monkeypatch, "--config", str(CONFIGS / f"{recipe}.yaml"))
    assert dict(leaves(given)) == dict(leaves(defaults))
    listed = options_in(recipe)
    for group in GROUPS:
        missing = dict(leaves(defaults[group])).keys() - dict(leaves(listed[group])).keys()
        assert not missing, f"{recipe}.yaml lacks options of {group}: {sorted(missing)}"


@pytest.mark.parametrize(
    "name", others_slow([name for name in NAMES if name not in OF_COMMAND_LINE], ["sbnn_dvs_small"])
)
def test_a_setting_holds_what_it_names(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(name)
    given = dict(leaves(options_of_recipe(recipe, monkeypatch, "--config", str(CONFIGS / f"{name}.yaml"))))
    named = dict(leaves(options_in(name)))
    assert {key: given[key] for key in named} == named
    if name.endswith("_small"):
        defaults = dict(leaves(options_in(recipe)))
        parts = ("class_path", "trainer.callbacks", "limit_")
        same = {key for key, value in named.items() if defaults.get(key, ...) == value}
        assert not {key for key in same if not any(part in key for part in parts)}


@pytest.mark.parametrize("key", others_slow(["network.init_args.hiden", "trainer.max_epoch"], ["trainer.max_epoch"]))
def test_a_key_that_the_recipe_lacks_is_refused(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {}
    inner = options
    *groups, last = key.split(".")
    for group in groups:
        inner = inner.setdefault(group, {})
    inner[last] = 3
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(options))
    with pytest.raises(SystemExit, match="2"):
        options_of_recipe("sbnn_dvs", monkeypatch, "--config", str(tmp_path / "wrong.yaml"))
    assert last in capsys.readouterr().err


def test_the_published_setting_of_rate_based_backpropagation(monkeypatch: pytest.MonkeyPatch) -> None:
    file = str(CONFIGS / "rate_cifar10_published.yaml")
    options = options_of_recipe("rate_cifar10", monkeypatch, "--config", file)
    neuron = options["network"]["init_args"]["neuron"]
    assert neuron["class_path"].endswith("DetachedLIF")
    constants = neuron["init_args"]
    assert (constants["beta"], constants["threshold"]) == (0.2, 1.0)
    assert constants["surrogate"]["init_args"] == {"width": 0.25}
    assert options["method"]["init_args"]["grad_scale"] == "paper"
    data = options["data"]["init_args"]
    assert (data["augmentation"], data["auto_augment"], data["cutout"], data["batch_size"]) == (True, True, 16, 128)
    optimizer = options["model"]["optimizer"]
    assert optimizer["class_path"].endswith("SGD")
    assert optimizer["init_args"] == {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
    schedule = options["model"]["lr_scheduler"]
    assert schedule["class_path"].endswith("CosineAnnealingLR")
    assert (schedule["init_args"]["T_max"], schedule["init_args"]["eta_min"]) == (300, 0.0)
    assert options["trainer"]["max_epochs"] == 300


def root_of(kind: str, folder: Path) -> list[str]:
    """Return the options that name the data of a class, and write them if they do not exist."""
    path = folder / kind
    if kind in ("Gestures", "NoisyCurve", "SpokenDigits"):
        return []
    if not path.exists():
        if kind == "SHD":
            write_shd(path)
        else:
            path = path.with_suffix(".npz")
            write_colored_images(path) if kind == "CIFAR10" else write_digits(path, noise=140, brightness=100)
    return ["--data.root", str(path)]


@pytest.mark.parametrize("recipe", others_slow(OF_COMMAND_LINE, ["ep_regression"]))
def test_a_small_setting_runs(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_SNN_CACHE", str(tmp_path / "cache"))
    kind = options_in(recipe)["data"]["class_path"]
    quick = ("--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu")
    arguments = ("--config", str(CONFIGS / f"{recipe}_small.yaml"), *root_of(kind, tmp_path), *quick)
    cli = run_recipe(recipe, monkeypatch, *arguments)
    assert cli.report.results["data"] == kind
