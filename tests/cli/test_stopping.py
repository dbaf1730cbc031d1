"""Signals: a run that they end is saved, says how to go on, and goes on as if nothing had happened."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from lightning_snn.cli import RecipeCLI
from tests.cli.tiny import TinyEvents, call
from tests.support.processes import PATIENCE, wait_until, with_checkout
from tests.support.slow import others_slow

TINY = Path(__file__).with_name("tiny.py")
PLAIN = ("--method", "SurrogateGradient", "--trainer.max_epochs", "4")
LAST = Path("checkpoints", "last.ckpt")


def send_at(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, batch: int, hook: str = "augment", times: int = 1
) -> None:
    """Send a signal to this process when a method of the data is called, counted from 0."""
    original: Callable[..., Any] = getattr(TinyEvents, hook)
    called = 0

    def sending(self: TinyEvents, *arguments: Any) -> Any:
        nonlocal called
        called += 1
        if called == batch + 1:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return original(self, *arguments)

    monkeypatch.setattr(TinyEvents, hook, sending)


def stopped(monkeypatch: pytest.MonkeyPatch, *arguments: str, status: int = 143, **sent: Any) -> None:
    with monkeypatch.context() as patch:
        send_at(patch, **{"number": signal.SIGTERM, **sent})
        with pytest.raises(SystemExit) as stop:
            call(patch, *arguments)
        assert stop.value.code == status


def weights(folder: str | Path) -> dict[str, Tensor]:
    return torch.load(Path(folder) / LAST, weights_only=True)["state_dict"]


def check_equal(first: str | Path, second: str | Path) -> None:
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=0)


def resumed_as_told(monkeypatch: pytest.MonkeyPatch, message: str) -> RecipeCLI:
    command = shlex.split(message.strip().splitlines()[-1])
    assert command[:3] == ["python", "tiny.py", "--ckpt_path"]
    return call(monkeypatch, *command[2:])


@pytest.mark.parametrize(("batch", "steps"), others_slow([(0, 1), (4, 5), (5, 6), (9, 10)], [(4, 5), (5, 6)]))
def test_sigterm_saves_the_state_after_the_batch_and_exits_with_143(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], batch: int, steps: int
) -> None:
    """There are 3 batches per epoch: the last of an epoch, 5, is saved after its validation."""
    whole = call(monkeypatch, *PLAIN, "--output", "whole")
    capfd.readouterr()
    stopped(monkeypatch, *PLAIN, "--output", "out", batch=batch)
    err = capfd.readouterr().err
    assert "SIGTERM: training stops after a batch" in err
    assert ("after the last batch" in err) == (steps % 3 > 0)
    assert torch.load(Path("out") / LAST, weights_only=True)["global_step"] == steps
    assert not Path("out/metrics.json").exists()
    resumed = resumed_as_told(monkeypatch, err)
    assert resumed.output == Path("out")
    check_equal("whole", "out")
    assert resumed.report.history["val/nll"] == whole.report.history["val/nll"]
    assert resumed.report.results["nll"] == whole.report.results["nll"]


def test_sigterm_in_a_validation_waits_for_its_end(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, *PLAIN, "--output", "whole", "--trainer.num_sanity_val_steps", "0")
    options = (*PLAIN, "--output", "out", "--trainer.num_sanity_val_steps", "0")
    # an epoch prepares 3 batches of training and 2 of validation
    stopped(monkeypatch, *options, batch=8, hook="preprocess")
    assert torch.load(Path("out") / LAST, weights_only=True)["global_step"] == 6
    resumed_as_told(monkeypatch, capfd.readouterr().err)
    check_equal("whole", "out")


def test_sigterm_in_the_test_leaves_only_the_test_to_do(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = call(monkeypatch, *PLAIN, "--output", "whole")
    calls = 4 * (3 + 2) + 2  # with those of the sanity check
    stopped(monkeypatch, *PLAIN, "--output", "out", batch=calls, hook="preprocess")
    before = weights("out")
    resumed = resumed_as_told(monkeypatch, capfd.readouterr().err)
    assert resumed.report.results["nll"] == whole.report.results["nll"]
    assert resumed.trainer.global_step == 12
    for name, value in weights("out").items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("hook", ["prepare_data", "preprocess"])
def test_sigterm_before_training_leaves_nothing_to_resume(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], hook: str
) -> None:
    """The first batch that is prepared is one of the sanity check."""
    stopped(monkeypatch, *PLAIN, "--output", "out", batch=0, hook=hook)
    err = capfd.readouterr().err
    assert "start again with the same command" in err
    assert ("remove out and" in err) == Path("out").exists() == (hook == "preprocess")


def test_accumulated_gradients_are_used_before_a_run_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    options = (*PLAIN, "--trainer.accumulate_grad_batches", "2", "--output")
    call(monkeypatch, *options, "whole")
    stopped(monkeypatch, *options, "out", batch=3)
    saved = torch.load(Path("out") / LAST, weights_only=True)
    progress = saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
    assert (saved["global_step"], progress["processed"]) == (3, 2), "a second step per epoch has one batch"
    call(monkeypatch, "--ckpt_path", str(Path("out") / LAST))
    check_equal("whole", "out")


def test_the_handlers_of_the_caller_are_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    stopped(monkeypatch, *PLAIN, "--output", "out", batch=4)
    assert signal.getsignal(signal.SIGTERM) is before


def test_without_checkpoints_sigterm_still_ends_with_143(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(monkeypatch, *PLAIN, "--trainer.enable_checkpointing", "false", batch=4)


# ---- jobs of SLURM


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A batch job with one task, and a `scontrol` that writes its arguments into the file that is returned."""
    folder = tmp_path_factory.mktemp("slurm")
    asked = folder / "asked"
    command = folder / "scontrol"
    command.write_text(f'#!/bin/sh\necho "$@" >> {shlex.quote(str(asked))}\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    for name, value in {
        "SLURM_JOB_ID": "4712",
        "SLURM_ARRAY_JOB_ID": "4711",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": "1",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "SLURM_NNODES": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    return asked


@pytest.mark.parametrize("output", [(), ("--output", "out")])
def test_a_requeued_job_goes_on_in_its_folder(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], job: Path, output: tuple[str, ...]
) -> None:
    whole = call(monkeypatch, *PLAIN, "--output", "whole")
    other = call(monkeypatch, *PLAIN, "--seed_everything", "1", "--trainer.max_epochs", "1")
    stopped(monkeypatch, *PLAIN, *output, batch=4, number=signal.SIGUSR1, status=128 + signal.SIGUSR1)
    err = capfd.readouterr().err
    assert job.read_text().split() == ["requeue", "4711_3"]
    assert "SLURM starts job 4711_3 again" in err
    folder = Path(shlex.split(err[err.index("--ckpt_path") :])[1]).parents[1]
    assert torch.load(folder / LAST, weights_only=True)["global_step"] == 5
    assert not list(folder.glob("hpc_ckpt*"))

    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    resumed = call(monkeypatch, *PLAIN, *output)
    assert "because SLURM started its job again" in capfd.readouterr().out
    assert resumed.output == folder != other.output
    assert resumed.report.history["val/nll"] == whole.report.history["val/nll"]
    check_equal("whole", folder)
    # a run that was finished is tested again and stays what it is
    again = call(monkeypatch, *PLAIN, *output)
    assert again.output == folder
    assert again.report.results["nll"] == whole.report.results["nll"]


def test_a_job_that_died_before_a_checkpoint_starts_in_its_folder(monkeypatch: pytest.MonkeyPatch, job: Path) -> None:
    stopped(monkeypatch, *PLAIN, batch=0, hook="preprocess")
    (folder,) = Path("runs/tiny").iterdir()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    cli = call(monkeypatch, *PLAIN)
    assert cli.output == folder
    assert (folder / "metrics.json").is_file()


@pytest.mark.parametrize("change", ["options", "job", "first start"])
def test_another_job_or_other_options_get_another_folder(
    monkeypatch: pytest.MonkeyPatch, job: Path, change: str
) -> None:
    stopped(monkeypatch, *PLAIN, batch=4)
    (folder,) = Path("runs/tiny").iterdir()
    if change != "first start":
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    if change == "job":
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    options = ("--model.learning_rate", "0.5") if change == "options" else ()
    assert call(monkeypatch, *PLAIN, *options).output != folder


def test_a_job_that_slurm_does_not_start_again_says_so(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], job: Path
) -> None:
    (job.parent / "scontrol").write_text("#!/bin/sh\necho requeue is disabled >&2\nexit 1\n")
    stopped(monkeypatch, *PLAIN, batch=4, number=signal.SIGUSR1, status=128 + signal.SIGUSR1)
    err = capfd.readouterr().err
    assert "SLURM does not start job 4711_3 again (scontrol requeue: requeue is disabled)" in err
    assert "--ckpt_path" in err


# ---- processes


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(TINY), *arguments],
        env=with_checkout(environment),
        # a shell starts background jobs that ignore Ctrl-C, and their children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def is_training(folder: Path) -> bool:
    """Return whether a run, which logs every epoch, has trained one."""
    metrics = folder / "logs" / "version_0" / "metrics.csv"
    return metrics.is_file() and (folder / LAST).is_file()


def test_ctrl_c_twice_ends_a_process_with_a_checkpoint_and_one_message() -> None:
    process = start(*PLAIN, "--trainer.max_epochs", "100000", "--output", "out")
    wait_until(lambda: is_training(Path("out")), process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    while process.poll() is None:  # and again and again, as people do
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            continue
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert err.count("--ckpt_path out/checkpoints/last.ckpt") == 1
    assert torch.load(Path("out") / LAST, weights_only=True)["state_dict"], "it is whole"


@pytest.mark.slow
def test_sigterm_ends_two_processes_that_train_together_after_the_same_batch() -> None:
    together = ("--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu")
    process = start(*PLAIN, *together, "--trainer.max_epochs", "100000")
    runs = Path("runs", "tiny")
    wait_until(lambda: runs.is_dir() and any(map(is_training, runs.iterdir())), process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143, err
    assert "Traceback" not in err
    (folder,) = runs.iterdir()
    assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["devices"] in (2, "2")
    saved = torch.load(folder / LAST, weights_only=True)
    epochs = str(saved["epoch"] + 2)
    resume = start("--ckpt_path", str(folder / LAST), "--trainer.max_epochs", epochs, "--output", "out")
    _, err = resume.communicate(timeout=PATIENCE)
    assert resume.returncode == 0, err
    assert (Path("out") / "metrics.json").is_file()
