"""`lightning-snn predict` and `lightning-snn cite`: of a tiny run, whose data are of this test and of the library."""

from __future__ import annotations

import csv
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import lightning_snn
from lightning_snn import methods
from lightning_snn.cli.choices import GROUPS
from lightning_snn.cli.citations import LIBRARY
from lightning_snn.cli.program import main
from lightning_snn.data import MNIST, SHD
from tests.cli.tiny import HERE, call
from tests.support.recipes import write_digits

ALLOW = ("--allow", HERE)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run of the tiny recipe, and that of an image data set, which is read from a file."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("lightning_snn.callbacks.report.Report._test_figures", lambda self, trainer: {})
        patch.setattr("lightning_snn.figures.training_curves", lambda history: None)
        patch.setattr("lightning_snn.callbacks.report.log_figure", lambda *arguments: None)
        call(patch, "--output", "tiny", "--trainer.max_epochs", "1", "--method", "SurrogateGradient")
        write_digits(folder / "digits.npz", noise=40, brightness=200)
        digits = ["--data", "MNIST", "--data.root", "digits.npz", "--data.time_steps", "2"]
        call(patch, "--output", "images", *digits, "--method", "SurrogateGradient", "--trainer.max_epochs", "1")
    return folder


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    """The working folder, with a copy of the runs."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def rows(path: str = "predictions.csv") -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert not Path("predictions.csv").exists()
    return " ".join(capsys.readouterr().err.split())


def test_predictions_are_those_of_the_module_with_their_scores(runs: Path, capsys: pytest.CaptureFixture[str]):
    main(["predict", "tiny/checkpoints/best.ckpt", "TinyEvents", *ALLOW])
    printed = capsys.readouterr().out
    run = lightning_snn.load_run("tiny", allow=[HERE])
    run.data.setup()
    (batch,) = [run.data.on_after_batch_transfer(each, 0) for each in run.data.test_dataloader()][:1]
    with torch.no_grad():
        expected = run.module.method.predict(run.module.network, batch[0]).mean
    found = rows()
    assert list(found[0]) == ["sample", "target", "prediction", "p_left", "p_right", "p_both"]
    assert len(found) == 12
    values = torch.tensor([[float(row[f"p_{name}"]) for name in run.data.class_names] for row in found])
    torch.testing.assert_close(values[: len(expected)], expected, rtol=1e-5, atol=1e-6)
    assert [row["target"] for row in found] == ["left", "right", "both"] * 4
    probabilities = np.asarray(values, float)
    targets = np.arange(12) % 3
    accuracy = np.mean(probabilities.argmax(1) == targets)
    nll = -np.mean(np.log(probabilities[np.arange(12), targets]))
    scores = dict(line.rsplit(maxsplit=1) for line in printed.splitlines() if line.startswith("  "))
    assert float(scores["  accuracy"]) == pytest.approx(accuracy, abs=1e-4)
    assert float(scores["  negative log-likelihood (nats)"]) == pytest.approx(nll, abs=1e-4)
    assert "Wrote predictions.csv" in printed
    assert "%|" not in printed  # no bar, because this is no terminal


def test_samples_of_a_prediction_are_those_of_its_seed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lightning_snn.callbacks.report.Report._test_figures", lambda self, trainer: {})
    monkeypatch.setattr("lightning_snn.figures.training_curves", lambda history: None)
    noisy = ["--method", "NoisySpikes", "--method.samples", "2", "--trainer.max_epochs", "1"]
    call(monkeypatch, "--output", "noisy", *noisy)
    for name, seed in (("first", []), ("again", ["--seed", "0"]), ("other", ["--seed", "1"])):
        main(["predict", "noisy/checkpoints/best.ckpt", "TinyEvents", *ALLOW, "--output", name, *seed])
    assert rows("first") == rows("again")
    assert rows("first") != rows("other")


def test_another_set_and_another_file_of_the_data_are_predicted(runs: Path, capsys: pytest.CaptureFixture[str]):
    write_digits(runs / "others.npz", noise=40, brightness=100)
    main(["predict", "images/checkpoints/best.ckpt", "others.npz", "--set", "val", "--output", "val.csv"])
    assert "40 predictions for the val set of others.npz" in capsys.readouterr().out
    main(["predict", "images/checkpoints/best.ckpt", "digits.npz", "--batch_size", "7"])
    assert "100 predictions for the test set of digits.npz" in capsys.readouterr().out
    module = lightning_snn.SpikingModule.load_from_checkpoint("images/checkpoints/best.ckpt")
    images = torch.from_numpy(np.load("digits.npz")["x_test"][:1]).float() / 255
    expected = module.eval().method.predict(module.network, images[None].expand(2, 1, 1, 28, 28)).mean[0]
    first = rows()[0]
    assert [float(first[f"p_{digit}"]) for digit in range(10)] == pytest.approx(expected.tolist(), rel=1e-4)


def test_arrays_are_predicted_with_and_without_targets(runs: Path, capsys: pytest.CaptureFixture[str]):
    x = np.random.default_rng(0).integers(0, 2, (5, 4, 2, 4, 6)).astype(np.uint8)
    np.savez("given.npz", x=x)
    main(["predict", "tiny/checkpoints/last.ckpt", "given.npz", *ALLOW])
    printed = capsys.readouterr().out
    assert "5 predictions for given.npz" in printed
    assert "accuracy" not in printed
    assert "mean predictive entropy (nats)" in printed
    found = rows()
    assert list(found[0]) == ["sample", "prediction", "p_0", "p_1", "p_2"]
    module = lightning_snn.SpikingModule.load_from_checkpoint("tiny/checkpoints/last.ckpt", allow=[HERE])
    mean = module.eval().method.predict(module.network, torch.from_numpy(x).float().transpose(0, 1)).mean
    assert [float(row["p_1"]) for row in found] == pytest.approx(mean[:, 1].tolist(), rel=1e-4)
    np.savez("labeled.npz", x=x, y=np.array([0, 1, 2, 1, 0]))
    main(["predict", "tiny/checkpoints/last.ckpt", "labeled.npz", "--overwrite", *ALLOW])
    assert "accuracy" in capsys.readouterr().out
    assert [row["target"] for row in rows()] == ["0", "1", "2", "1", "0"]


def test_a_checkpoint_outside_of_its_run_needs_its_configuration(runs: Path, capsys: pytest.CaptureFixture[str]):
    shutil.move("images/checkpoints/best.ckpt", "moved.ckpt")
    assert "Expected option --config, because there is no config.yaml" in refused(
        capsys, "predict", "moved.ckpt", "digits.npz"
    )
    main(["predict", "moved.ckpt", "digits.npz", "--config", "images/config.yaml"])
    assert len(rows()) == 100


def test_what_does_not_fit_is_refused_and_nothing_is_written(runs: Path, capsys: pytest.CaptureFixture[str]):
    images, tiny = "images/checkpoints/best.ckpt", "tiny/checkpoints/best.ckpt"
    wrong = np.zeros((2, 3, 5), np.float32)
    np.savez("wrong.npz", x=wrong)
    np.savez("labels.npz", x=np.zeros((2, 3, 1, 28, 28), np.float32), y=np.array([0, 10]))
    np.savez("nan.npz", x=np.full((2, 3, 1, 28, 28), math.nan, np.float32))
    Path("broken.npz").write_bytes(b"PK")
    Path("broken.ckpt").write_bytes(b"PK")
    Path("other.yaml").write_text("data: {class_path: os.system}\n")
    Path("none.yaml").write_text("trainer: {max_epochs: 1}\n")
    for arguments, message in (
        ((images, "absent"), "but absent does not exist"),
        (
            (images, "wrong.npz"),
            "shape [N, T, 1, 28, 28], for which the network was built, but wrong.npz has",
        ),
        ((images, "labels.npz"), "labels below argument `num_classes` 10, but got labels up to 10"),
        ((images, "nan.npz"), "sample 0 holds NaN"),
        ((images, "broken.npz"), "broken.npz"),
        ((images, "wrong.npz", "--set", "val"), "no option --set"),
        ((images, "digits.npz", "--batch_size", "0"), "`batch_size` to be an integer of at least 1, but got 0"),
        ((images, "digits.npz", "--config", "other.yaml"), "to name classes of"),
        ((images, "digits.npz", "--config", "none.yaml"), "none.yaml to name the class of the data"),
        (("broken.ckpt", "digits.npz"), "broken.ckpt to be a checkpoint"),
        (("absent.ckpt", "digits.npz"), "absent.ckpt to be a checkpoint"),
        ((tiny, "TinyEvents"), f"to name classes of lightning_snn, torch.nn, torch.optim only, but it names {HERE}"),
        (
            (tiny, "digits", *ALLOW),
            "DATA to be TinyEvents, the data of the run, which are not read from files",
        ),
    ):
        assert message in refused(capsys, "predict", *arguments), arguments


def test_a_file_is_not_replaced_unasked(runs: Path, capsys: pytest.CaptureFixture[str]):
    Path("mine.csv").write_text("mine")
    message = refused(capsys, "predict", "images/checkpoints/best.ckpt", "digits.npz", "--output", "mine.csv")
    assert "mine.csv exists. Choose another name, or pass --overwrite" in message
    assert Path("mine.csv").read_text() == "mine"


def test_a_regression_is_predicted_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    options = ["--data", "NoisyCurve", "--data.test_size", "20", "--data.train_size", "50", "--data.val_size", "10"]
    regression = ["--model.task", "regression", "--method", "SurrogateGradient", "--trainer.max_epochs", "1"]
    call(monkeypatch, "--output", "curve", *options, *regression)
    capsys.readouterr()
    main(["predict", "curve/checkpoints/best.ckpt", "NoisyCurve"])
    found = rows()
    assert list(found[0]) == ["sample", "target_0", "mean_0"]
    error = np.mean([(float(row["target_0"]) - float(row["mean_0"])) ** 2 for row in found])
    (line,) = (each for each in capsys.readouterr().out.splitlines() if "mean squared error" in each)
    assert float(line.split()[-1]) == pytest.approx(error, rel=1e-3)


def cited(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(["cite", *arguments])
    return capsys.readouterr().out


def test_a_run_cites_its_method_its_data_and_the_library(runs: Path, capsys: pytest.CaptureFixture[str]):
    expected = (
        f"% learning rule: SurrogateGradient\n{methods.SurrogateGradient.citation}\n\n% data: MNIST\n{MNIST.citation}"
        f"\n\n% library\n{LIBRARY}\n"
    )
    for source in ("images", "images/config.yaml", "images/checkpoints/best.ckpt"):
        assert cited(capsys, source) == expected
    shutil.move("images/checkpoints/best.ckpt", "moved.ckpt")
    assert "\n% data: not named by moved.ckpt\n" in cited(capsys, "moved.ckpt")


def test_names_of_the_library_and_simulated_data_are_cited(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    Path("mine.yaml").write_text(yaml.safe_dump({"method": "EProp", "data": {"class_path": "SHD"}}))
    assert methods.EProp.citation in (found := cited(capsys, "mine.yaml"))
    assert SHD.citation in found
    Path("mine.yaml").write_text("method: EProp\ndata: Gestures\n")
    assert "% data: Gestures, which names no publication\n\n" in cited(capsys, "mine.yaml")


def test_files_that_name_no_method_or_strangers_are_refused(runs: Path, capsys: pytest.CaptureFixture[str]):
    Path("none.yaml").write_text("data: SHD\n")
    Path("near.yaml").write_text("method: EPropp\n")
    Path("strange.yaml").write_text("method: subprocess.Popen\n")
    for source, message in (
        ("none.yaml", "Expected none.yaml to name a method"),
        ("near.yaml", "did you mean EProp?"),
        ("strange.yaml", "it names subprocess.Popen"),
        ("tiny/config.yaml", f"it names {HERE}.TinyEvents"),
        ("absent.yaml", "absent.yaml"),
        ("absent.ckpt", "absent.ckpt"),
    ):
        assert message in refused(capsys, "cite", source), source


def test_real_data_name_their_publication():
    for name, kind in GROUPS["data"].classes().items():
        simulated = name in ("Gestures", "NoisyCurve", "ImageFolder") or name.startswith("Spoken")
        assert bool(kind.citation) is not simulated, name
        assert kind.citation.count("{") == kind.citation.count("}")
