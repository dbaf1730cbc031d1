"""Sweeps of W&B: what an agent passes is accepted, and the run keeps its options."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml

from lightning_snn.cli.sweeps import as_options
from lightning_snn.cli.wandb import SweepLogger
from tests.cli.tiny import parse
from tests.support.recipes import RECIPES, options_of_recipe
from tests.support.slow import others_slow
from tests.support.sweep_server import SweepServer, sent_arguments
from tests.support.wandb_runs import WandbRun

SWEEPS = [path.stem for path in sorted((RECIPES / "sweeps").glob("*.yaml"))]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--method.lam=0.5", "--small=True"], ["--method.lam=0.5", "--small=True"]),
        (["method.lam=0.5", "small=True"], ["--method.lam=0.5", "--small=True"]),
        (["--wandb", "true", "a.b=1"], ["--wandb", "true", "--a.b=1"]),
        (["--data.root", "a=b", "--output", "c=d"], ["--data.root", "a=b", "--output", "c=d"]),
        (["--model.learning_rate=None"], ["--model.learning_rate=null"]),
        (["--model.learning_rate", "None"], ["--model.learning_rate", "null"]),
        (["--output=None", "--output", "None"], ["--output=None", "--output", "None"]),
        (["--data.root=Nones"], ["--data.root=Nones"]),
        (
            ["--method={'class_path': 'A', 'x': None, 'y': True}"],
            ['--method={"class_path": "A", "x": null, "y": true}'],
        ),
        (["--network.hidden=[64, 64]"], ["--network.hidden=[64, 64]"]),
        (["--help"], ["--help"]),
        ([], []),
    ],
)
def test_arguments_of_an_agent_become_options(given: list[str], expected: list[str]) -> None:
    assert as_options(given) == expected


@pytest.mark.parametrize("form", others_slow(["args", "args_no_equals", "args_no_hyphens"], ["args_no_hyphens"]))
def test_every_form_of_a_parameter_has_its_value(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = {
        "method.init_args.lam": 0.125,
        "method.kl_weight": 1e-05,
        "method.bias_epochs": None,
        "method.recurrent_posterior": False,
        "network.hidden": [5, 6],
        "trainer.max_epochs": 3,
        "other": True,
    }
    config = parse(monkeypatch, *sent_arguments(parameters)[form]).config
    method = config.method.init_args
    assert (method.lam, method.kl_weight, method.bias_epochs) == (0.125, 1e-5, None)
    assert method.recurrent_posterior is False
    assert (config.network.init_args.hidden, config.trainer.max_epochs, config.other) == ([5, 6], 3, True)


@pytest.mark.parametrize("order", [1, -1])
def test_a_parameter_may_choose_a_class_with_its_options(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    choice = {"class_path": "NoisySpikes", "init_args": {"lam": 0.5, "estimator": None}}
    items = list({"method": choice, "seed_everything": 3}.items())[::order]
    cli = parse(monkeypatch, *sent_arguments(dict(items))["args"])
    assert cli.config.method.class_path.endswith("NoisySpikes")
    assert (cli.config.method.init_args.lam, cli.config.seed_everything) == (0.5, 3)
    swapped = list({"method": "NoisySpikes", "method.lam": 0.75}.items())[::order]
    assert parse(monkeypatch, *sent_arguments(dict(swapped))["args"]).config.method.init_args.lam == 0.75


def test_the_method_inside_the_module_is_named_by_its_own_group(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(monkeypatch, "--model.method.init_args.lam=0.1")
    assert "did you mean --method.init_args.lam?" in capsys.readouterr().err


@pytest.mark.parametrize("name", others_slow(SWEEPS, ["methods"]))
def test_every_run_of_a_sweep_is_accepted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = yaml.safe_load((RECIPES / "sweeps" / f"{name}.yaml").read_text(encoding="utf-8"))
    monkeypatch.chdir(RECIPES.parent)
    template = [part for part in sweep["command"] if part not in ("${env}", "python", "${program}")]
    (position,) = (index for index, part in enumerate(template) if part == "${args}")
    bounds = {
        name: each.get("values") or [each[key] for key in ("value", "min", "max") if key in each]
        for name, each in sweep["parameters"].items()
    }
    # each value once, next to the first values of the others
    firsts = {name: values[0] for name, values in bounds.items()}
    runs = [{**firsts, name: value} for name, values in bounds.items() for value in values[-2:]]
    found = []
    for run in runs:
        arguments = [*template[:position], *sent_arguments(run)["args"], *template[position + 1 :]]
        options = options_of_recipe(Path(sweep["program"]).stem, monkeypatch, *arguments)
        assert options["wandb"] is True
        found.append(json.dumps(options, default=str))
    assert len(set(found)) == len({json.dumps(run) for run in runs})


def test_a_run_of_a_sweep_keeps_its_options_next_to_the_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    parameters = {"method": "SpikingBayes", "method.lam": 0.25, "seed_everything": 1}
    Path("out").mkdir()
    settings = wandb.Settings(silent=True)
    folder = str(Path("out").resolve())
    logger = SweepLogger(project="p", save_dir=folder, mode="offline", config=parameters, settings=settings)
    method = {"class_path": "lightning_snn.methods.SpikingBayes", "init_args": {"lam": 0.25, "samples": 8}}
    logger.log_hyperparams({"method": method, "seed_everything": 1, "data": {"class_path": "Gestures"}})
    logger.log_hyperparams({"method": method, "num_classes": 3})
    logger.experiment.finish()
    config = WandbRun(Path("out")).config
    assert {name: config[name] for name in parameters} == parameters
    assert (config["method_config"], config["data"], config["num_classes"]) == (method, {"class_path": "Gestures"}, 3)


@pytest.mark.slow
def test_an_agent_runs_a_sweep_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = {
        "program": "tiny.py",
        "method": "grid",
        "parameters": {},
        # offline only what the agent starts, because the agent itself asks a server
        "command": ["${env}", "WANDB_MODE=offline", sys.executable, "${program}", "--wandb=true", "${args}"],
    }
    chosen = {"class_path": "NoisySpikes", "init_args": {"lam": 0.5, "estimator": None}}
    parameters: list[dict[str, Any]] = [
        {"method.lam": 0.5, "method.bias_epochs": None, "method.recurrent_posterior": True, "seed_everything": 0},
        {"method": "SurrogateGradient", "trainer.max_epochs": 1, "seed_everything": 1},
        {"method": chosen, "network.hidden": [4], "seed_everything": 2},
    ]
    Path("tiny.py").write_text("from tests.cli.tiny import *\nmain('tiny.py', DEFAULTS, PRESETS)\n")
    with SweepServer(sweep, parameters) as server:
        found = server.run_agent(tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr
    runs = sorted(tmp_path.glob("runs/tiny/*"), key=lambda folder: folder.name.split("seed")[1])
    kept = [WandbRun(folder) for folder in runs]
    assert [run.begun.sweep_id for run in kept] == ["sweep"] * 3
    for run, given in zip(kept, parameters, strict=True):
        assert {name: run.config[name] for name in given} == given
        assert "val/nll" in run.values
    methods = [run.config.get("method_config", run.config["method"]) for run in kept]
    kinds = [each["class_path"].rpartition(".")[2] for each in methods]
    assert kinds == ["SpikingBayes", "SurrogateGradient", "NoisySpikes"]
    assert (methods[0]["init_args"]["lam"], methods[2]["init_args"]["lam"]) == (0.5, 0.5)
    configs = [yaml.safe_load((folder / "config.yaml").read_text()) for folder in runs]
    assert all(a != b for a, b in itertools.combinations(configs, 2))
    assert [each["network"]["init_args"]["hidden"] for each in configs] == [[16], [16], [4]]
