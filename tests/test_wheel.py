"""The wheel works without the repository: its program runs recipes from an empty folder."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.processes import PATIENCE, ROOT, wait_until

pytestmark = pytest.mark.slow


def build(command: str, source: Path, target: Path) -> Path:
    """Build a distribution of the sources in a folder, with the setuptools of this environment."""
    script = f"import sys; from setuptools import build_meta; print(build_meta.{command}(sys.argv[1]))"
    finished = subprocess.run([sys.executable, "-c", script, str(target)], cwd=source, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    (found,) = target.iterdir()
    return found


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution of this checkout, and the wheel that is built from it alone."""
    folder = tmp_path_factory.mktemp("build")
    ignored = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__", "_build", "_pictures")
    shutil.copytree(ROOT, folder / "checkout", ignore=ignored)
    for name in ("sdist", "wheel"):
        (folder / name).mkdir()
    source = build("build_sdist", folder / "checkout", folder / "sdist")
    with tarfile.open(source) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return source, build("build_wheel", unpacked, folder / "wheel")


@pytest.fixture(scope="module")
def installed(distributions: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the wheel is unpacked."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(distributions[1]) as archive:
        archive.extractall(folder)
    return folder


def start(installed: Path, folder: Path, arguments: Sequence[str]) -> subprocess.Popen[str]:
    """Start the program of the unpacked wheel in a folder, without the checkout on Python's path."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "LIGHTNING_SNN_CACHE": str(folder / "cache")}
    script = "import sys; sys.argv[0] = 'lightning-snn'; from lightning_snn.cli.program import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def program(installed: Path, folder: Path, *arguments: str) -> tuple[int, str, str]:
    process = start(installed, folder, arguments)
    printed, errors = process.communicate(timeout=PATIENCE)
    return process.returncode, printed, errors


def test_the_wheel_has_the_recipes_and_nothing_of_the_checkout(distributions: tuple[Path, Path]):
    with zipfile.ZipFile(distributions[1]) as archive:
        names = archive.namelist()
    shipped = {name.removeprefix("lightning_snn/") for name in names if name.startswith("lightning_snn/recipes/")}
    here = {str(path.relative_to(ROOT)) for path in (ROOT / "recipes").rglob("*") if path.suffix in (".py", ".yaml")}
    assert shipped == here
    assert "lightning_snn/py.typed" in names
    assert {name.partition("/")[0] for name in names} == {"lightning_snn", "lightning_snn-0.1.0.dist-info"}


def test_the_source_distribution_has_what_its_tests_need(distributions: tuple[Path, Path]):
    with tarfile.open(distributions[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("setup.py", "constraints.txt", "docs/index.md", "recipes/sbnn_dvs.py", "tests/conftest.py"):
        assert name in names
    assert "callbacks/energy.yaml" in names


def test_a_recipe_is_run_predicted_cited_and_stopped_from_an_empty_folder(installed: Path, tmp_path: Path):
    status, printed, errors = program(installed, tmp_path, "list")
    assert (status, errors) == (0, "")
    assert "sbnn_dvs" in printed
    curve = ("run", "ep_regression", "--data.train_size", "100", "--data.batch_size", "50", "--trainer.max_epochs", "1")
    status, printed, errors = program(installed, tmp_path, *curve, "--trainer.accelerator", "cpu", "--output", "run")
    assert status == 0, errors
    assert (tmp_path / "run" / "curve.png").is_file()
    assert "epoch 1/1  train/loss " in printed
    assert "%|" not in printed + errors
    status, printed, errors = program(installed, tmp_path, "predict", "run/checkpoints/best.ckpt", "NoisyCurve")
    assert status == 0, errors
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 501
    status, printed, errors = program(installed, tmp_path, "cite", "run/checkpoints/best.ckpt")
    assert (status, printed.count("\n@")) == (0, 2)
    status, printed, errors = program(installed, tmp_path, "info")
    assert status == 0, errors

    process = start(installed, tmp_path, [*curve[:-1], "100000", "--output", "stopped"])
    wait_until((tmp_path / "stopped" / "checkpoints" / "last.ckpt").is_file, process)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert errors.rstrip().endswith("lightning-snn run ep_regression --ckpt_path stopped/checkpoints/last.ckpt")
    assert "Traceback" not in errors
