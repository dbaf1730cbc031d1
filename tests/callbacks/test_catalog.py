"""Every file of the drop-in catalog runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lightning_snn.callbacks import GradientAlignment, InitializationCheck, Report
from lightning_snn.metrics.functional import coverage_interval
from tests.support.figures import save_nothing
from tests.support.recipes import parse_recipe, run_recipe
from tests.support.scripts import run_script

CATALOG = Path(__file__).resolve().parents[2] / "callbacks"


def test_the_report_script_writes_its_report(tmp_path):
    folder = tmp_path / "report"
    run_script("report.py", tmp_path, folder)
    assert {file.name for file in folder.iterdir()} >= {
        "metrics.json",
        "confusion_matrix.png",
        "reliability.png",
        "training_curves.png",
        "raster.png",
        "report.html",
        "anytime_scores.png",
        "anytime_samples.png",
    }
    assert json.loads((folder / "metrics.json").read_text())["accuracy"] > 0.6


def test_the_alignment_script_prints_the_alignment_of_every_layer(tmp_path):
    printed = run_script("gradient_alignment.py", tmp_path)
    found = dict(line.split() for line in printed.splitlines() if line.startswith("alignment/"))
    layers = ["net.0", "net.2", "net.4", "all"]
    assert set(found) == {f"alignment/{quantity}/{layer}" for quantity in ("cosine", "norm_ratio") for layer in layers}
    assert 0.8 < float(found["alignment/cosine/all"]) <= 1
    assert not list(tmp_path.iterdir())


def test_the_script_of_exact_resuming_prints_that_no_weight_differs(tmp_path):
    printed = [line.split() for line in run_script("exact_resume.py", tmp_path).splitlines()]
    differences = {row[0]: float(row[-1]) for row in printed if "difference" in row}
    assert differences["without"] > 1e-3
    assert differences["with"] == 0


def test_the_script_of_firing_rates_prints_rates_before_and_after_training(tmp_path):
    printed = run_script("firing_rates.py", tmp_path, tmp_path / "figures")
    rows = [line.split() for line in printed.splitlines() if line.startswith(("accuracy", "firing_rates/"))]
    before, after = ({row[0]: float(row[column]) for row in rows} for column in (1, 2))
    assert before["accuracy"] < 0.7 < 0.9 < after["accuracy"]
    assert before["firing_rates/val/dead/lif2"] > 0 == after["firing_rates/val/dead/lif2"]
    assert before["firing_rates/val/rate/lif2"] < after["firing_rates/val/rate/lif2"]
    quantities = {name.split("/")[2] for name in after if name.endswith("/all")}
    assert quantities == {"rate", "sparsity", "dead", "saturated"}
    assert {file.name for file in (tmp_path / "figures").iterdir()} == {
        f"firing_rates_{stage}{kind}.png" for stage in ("train", "val") for kind in ("", "_raster")
    }


def test_the_script_of_predictions_writes_and_reads_them(tmp_path):
    printed = run_script("prediction_writer.py", tmp_path, tmp_path / "own").splitlines()
    assert [line for line in printed if line.startswith(("mean", "target"))] == ["mean (90, 3)", "target (90,)"]
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["predictions.pt"]


def test_the_raster_script_draws_layers_of_its_own_making(tmp_path):
    printed = run_script("spike_raster.py", tmp_path, tmp_path / "figures").splitlines()
    assert "accuracy" in "".join(printed)
    files = {file.name for file in (tmp_path / "figures").iterdir()}
    assert files == {f"raster_{stage}{index}.png" for stage in ("val", "test") for index in ("", "_1", "_2")}
    assert len([line for line in printed if line.endswith(".png")]) == 6


FRAGMENTS = sorted(CATALOG.glob("*.yaml"))


def test_the_energy_script_draws_and_prints_that_spikes_cost_less_than_one_dense_pass(tmp_path):
    pytest.importorskip("spikingjelly")
    printed = run_script("energy.py", tmp_path, tmp_path / "figures")
    found = dict(line.split() for line in printed.splitlines() if line.startswith(("energy/", "test/")))
    assert float(found["test/accuracy"]) > 0.9
    # a kernel of 3, stride 2 and padding 1 makes 17 pairs of places on an axis of 12, and 8 on one of 6
    assert float(found["energy/test/ann_macs/net.0"]) == 17 * 17 * 8
    assert float(found["energy/test/ann_macs/net.2"]) == 8 * 8 * 8 * 16
    assert float(found["energy/test/effective_macs"]) == 0
    assert 0 < float(found["energy/test/ratio"]) < 1
    assert float(found["energy/test/joules"]) < float(found["energy/test/joules_ann"])
    assert {file.name for file in (tmp_path / "figures").iterdir()} == {"energy_test.png", "energy_test.csv"}


def test_the_initialization_script_finds_silent_layers_and_makes_them_learn(tmp_path):
    printed = run_script("initialization_check.py", tmp_path)
    before, _, after = (part.split("\n\n")[0] for part in printed.split("quantity ")[1:])
    assert "Overall verdict: warn" in before
    assert "warn: firing_rate of neurons.2 is 0: the layer is silent or nearly silent, but the network learns" in before
    assert "Remedy: scale up the weights before the layer" in before
    assert "\nfail: " not in after
    left, rescaled = (float(line.split()[-1]) for line in printed.splitlines() if line.startswith("accuracy"))
    assert left < 0.6 < 0.7 < rescaled
    assert not list(tmp_path.iterdir())


def test_the_spike_time_script_draws_and_prints_what_the_network_costs(tmp_path):
    printed = run_script("spike_times.py", tmp_path, tmp_path / "figures")
    found = dict(line.split() for line in printed.splitlines() if line.startswith("test/"))
    assert float(found["test/accuracy"]) > 0.6
    assert {"test/latency", "test/overflow_fraction", "test/spikes_per_neuron", "test/spikes_per_neuron/2"} <= set(
        found
    )
    assert [file.name for file in (tmp_path / "figures").iterdir()] == ["spike_times.png"]


def test_the_script_of_scores_by_epochs_prints_a_curve(tmp_path):
    rows = [line.split() for line in run_script("pass_scores.py", tmp_path).splitlines() if line.startswith("after")]
    assert [float(row[1]) for row in rows] == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert float(rows[-1][4]) > 0.8
    assert float(rows[-1][6]) < float(rows[0][6])


def test_the_uncertainty_script_draws_and_prints_whether_an_ordinary_network_knows_what_it_knows(tmp_path):
    printed = run_script("uncertainty.py", tmp_path, tmp_path / "figures")
    found = dict(line.split() for line in printed.splitlines() if line.startswith(("uncertainty/", "temperature")))
    scores = {name.removeprefix("uncertainty/test/"): float(value) for name, value in found.items()}
    assert scores["temperature"] > 1
    assert scores["nll_tempered"] < scores["nll"]
    assert scores["ood_auroc"] > 0.8
    assert {"brier", "ece", "ece_tempered", "adaptive_ece", "entropy", "aurc"} < set(scores)
    assert {"classwise_ece", "smooth_ece", "augrc", "ood_fpr95_in", "ood_aupr_out"} < set(scores)
    low, high = coverage_interval(calibration=350, test=400, alpha=0.1, level=0.99)
    assert low <= scores["conformal_coverage"] <= high
    assert 1 <= scores["conformal_size"] < 2
    assert {file.name for file in (tmp_path / "figures").iterdir()} == {
        f"uncertainty_test_{kind}.png" for kind in ("reliability", "entropy", "risk_coverage")
    }


def test_the_membrane_script_draws_and_prints_where_the_membranes_are(tmp_path):
    printed = run_script("membrane_trace.py", tmp_path, tmp_path / "figures")
    rows = [line.split() for line in printed.splitlines() if line.startswith(("before ", "after "))]
    found = {(when, name): float(value) for when, name, value in rows}
    keys = {f"membrane/val/{quantity}/{layer}" for quantity in ("mean", "sd") for layer in ("lif1", "lif2")}
    assert keys <= {name for _, name in found}
    assert all(found["after", name] != found["before", name] for name in keys)
    assert found["after", "val/accuracy"] > 0.8
    assert [file.name for file in (tmp_path / "figures").iterdir()] == ["membrane_val.png"]


def test_the_state_guard_script_names_the_leak_and_shows_what_it_does(tmp_path):
    printed = run_script("state_guard.py", tmp_path).splitlines()
    (message,) = (line for line in printed if line.startswith("StateGuard"))
    assert "net.1 (Leaky) starts from `mem`; net.3 (Leaky) starts from `mem`" in message
    rows = {line.split()[0]: line for line in printed if "accuracy" in line}
    accuracy = {name: float(row.split()[2].rstrip(",")) for name, row in rows.items()}
    changed = {name: float(row.split()[-1]) for name, row in rows.items()}
    assert accuracy["reset"] > accuracy["warn"] + 0.2
    assert changed["warn"] > 0.1
    assert changed["reset"] == 0


@pytest.mark.parametrize(
    "fragments", [*([path] for path in FRAGMENTS), FRAGMENTS], ids=[*(path.stem for path in FRAGMENTS), "all"]
)
def test_fragments_add_their_callbacks_to_those_of_a_recipe(fragments, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    quiet = ["--method", "SurrogateGradient", "--trainer.accelerator", "cpu"]
    plain = parse_recipe("sbnn_dvs", monkeypatch, *quiet)
    chosen = [part for path in fragments for part in ("--config", str(path))]
    cli = parse_recipe("sbnn_dvs", monkeypatch, *quiet, *chosen)
    kinds = [type(callback) for callback in cli.trainer.callbacks]
    added = kinds.copy()
    for callback in plain.trainer.callbacks:
        added.remove(type(callback))
    assert any(issubclass(kind, Report) for kind in kinds)
    entries = [yaml.safe_load(path.read_text())["trainer"]["callbacks+"][0]["class_path"] for path in fragments]
    assert [f"lightning_snn.callbacks.{kind.__name__}" for kind in added] == entries


def test_the_alignment_fragment_measures_in_a_recipe(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_SNN_CACHE", str(tmp_path / "cache"))
    data = {"train_subjects": 2, "val_subjects": 1, "test_subjects": 1, "repetitions": 1, "time_steps": 4}
    cli = run_recipe(
        "sbnn_dvs",
        monkeypatch,
        *(part for name, value in data.items() for part in (f"--data.{name}", str(value))),
        *("--method", "RateBackprop", "--method.window", "step", "--network.hidden", "16"),
        *("--config", str(CATALOG / "gradient_alignment.yaml")),
        *("--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu"),
    )
    (callback,) = (each for each in cli.trainer.callbacks if isinstance(each, GradientAlignment))
    assert callback.samples == 32
    assert cli.report.results["accuracy"] >= 0
    assert not (tmp_path / "runs").exists()


def test_the_fragments_of_monitors_run_together_on_the_main_job(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_SNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("lightning_snn.figures.save", save_nothing)
    names = ("energy", "firing_rates", "initialization_check", "membrane_trace", "pass_scores", "spike_raster")
    fragments = [CATALOG / f"{name}.yaml" for name in (*names, "state_guard", "uncertainty")]
    data = {"train_subjects": 2, "val_subjects": 1, "test_subjects": 1, "repetitions": 1, "time_steps": 4}
    cli = run_recipe(
        "sbnn_dvs",
        monkeypatch,
        *(part for name, value in data.items() for part in (f"--data.{name}", str(value))),
        *("--method.samples", "2", "--network.hidden", "16", "--output", "out", "--trainer.max_epochs", "1"),
        *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
        *(part for path in fragments for part in ("--config", str(path))),
    )
    drawn = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert {"energy_test", "firing_rates_val", "membrane_val", "raster_val", "uncertainty_test_reliability"} < drawn
    found = cli.report.results
    assert found["energy/test/ann_macs"] > 0
    assert 0 < found["firing_rates/test/rate/all"] < 1
    assert found["uncertainty/test/nll"] == pytest.approx(found["nll"], rel=1e-4)
    (check,) = (each for each in cli.trainer.callbacks if isinstance(each, InitializationCheck))
    assert check.findings
    assert all(finding.verdict != "fail" for finding in check.findings)


def test_every_file_has_its_row_in_the_table():
    table = (CATALOG / "README.md").read_text()
    files = [*CATALOG.glob("*.py"), *CATALOG.glob("*.yaml")]
    assert [file.name for file in files if f"({file.name})" not in table] == []
