"""Resuming a run: its options, its folder, and what is kept of it."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from lightning_snn.cli import RecipeCLI
from lightning_snn.cli.resume import differences
from tests.cli.tiny import DEFAULTS, HERE, TinyEvents, call, interrupt_at


def interrupted(monkeypatch: pytest.MonkeyPatch, *arguments: str, batch: int = 7) -> None:
    """Run the recipe, with 3 batches per epoch, until Ctrl-C."""
    with monkeypatch.context() as patch:
        interrupt_at(patch, batch)
        with pytest.raises(SystemExit) as stop:
            call(patch, *arguments)
        assert stop.value.code == 130


def contents(folder: str) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*.*")}


def epochs(cli: RecipeCLI) -> list[int]:
    return [step // 3 for step, _ in cli.report.history["val/nll"]]


def test_ctrl_c_keeps_a_checkpoint_that_resumes_as_if_nothing_had_happened(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--trainer.max_epochs",
        "4",
        "--model.learning_rate",
        "0.02",
        "--network.hidden",
        "[7]",
        "--data.rate=0.3",
    ]
    whole = call(monkeypatch, *options, "--output", "whole")
    interrupted(monkeypatch, *options, "--output", "part one")
    message = capsys.readouterr().err
    assert not Path("part one/metrics.json").exists()
    configuration = Path("part one/config.yaml").read_bytes()

    command = shlex.split(message.strip().splitlines()[-1])
    assert command == ["python", "tiny.py", "--ckpt_path", "part one/checkpoints/last.ckpt"]
    resumed = call(monkeypatch, *command[2:])
    assert "The run in part one goes on with its options." in capsys.readouterr().out
    assert resumed.output == Path("part one")
    assert (resumed.datamodule.rate, resumed.model.network[1].out_features) == (0.3, 7)
    assert resumed.report.history == whole.report.history
    weights = [torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True) for run in ("whole", "part one")]
    assert weights[0]["global_step"] == weights[1]["global_step"] == 12
    for name, value in weights[0]["state_dict"].items():
        torch.testing.assert_close(value, weights[1]["state_dict"][name], rtol=0, atol=0)
    assert {name: resumed.report.results[name] for name in ("accuracy", "nll")} == {
        name: whole.report.results[name] for name in ("accuracy", "nll")
    }
    assert Path("part one/config.yaml").read_bytes() == configuration


def test_ctrl_c_in_the_first_epoch_keeps_the_beginning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(monkeypatch, batch=1)
    command = shlex.split(capsys.readouterr().err.strip().splitlines()[-1])
    resumed = call(monkeypatch, "--ckpt_path", command[-1])
    # the folder of the interrupted run goes on
    assert resumed.output.resolve() == Path(command[-1]).resolve().parents[1]
    assert epochs(resumed) == [1, 2]
    assert {"ckpt_path", "output"}.isdisjoint(yaml.safe_load((resumed.output / "config.yaml").read_text()))


def test_other_data_and_networks_of_the_run_are_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(
        monkeypatch,
        *("--network", f"{HERE}.SelfMadeNetwork", "--network.width", "6", "--data.batch_size", "12"),
        *("--method", "SurrogateGradient", "--model.readout", "max", "--seed_everything", "3", "--output", "out"),
        batch=3,
    )
    resumed = call(monkeypatch, "--ckpt_path", "out/checkpoints/last.ckpt")
    assert resumed.model.network[-1].in_features == 6
    assert (resumed.datamodule.batch_size, resumed.config.seed_everything) == (12, 3)
    assert type(resumed.model.method).__name__ == "SurrogateGradient"
    assert resumed.model.method.task.readout == "max"


@pytest.mark.parametrize("checkpoint", ["last", "best"])
def test_a_finished_run_continues_in_another_folder_and_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], checkpoint: str
) -> None:
    whole = call(monkeypatch, "--trainer.max_epochs", "4", "--model.lr_scheduler", "null", "--output", "whole")
    call(monkeypatch, "--trainer.max_epochs", "2", "--model.lr_scheduler", "null", "--output", "two")
    before = contents("two")
    saved = torch.load(f"two/checkpoints/{checkpoint}.ckpt", weights_only=True)["epoch"]
    capsys.readouterr()
    longer = call(
        monkeypatch,
        "--ckpt_path",
        f"two/checkpoints/{checkpoint}.ckpt",
        "--trainer.max_epochs",
        "4",
        "--output",
        "four",
    )
    out = capsys.readouterr().out
    assert "The run in two stays as it is and continues in four with its options, except" in out
    assert "--trainer.max_epochs 4 instead of 2" in out
    assert out.count("instead of") == 1
    assert contents("two") == before
    assert yaml.safe_load(Path("four/config.yaml").read_text())["trainer"]["max_epochs"] == 4
    assert saved == 1, "otherwise the epochs after the best one would differ"
    assert longer.report.history == whole.report.history
    best = [torch.load(f"{run}/checkpoints/best.ckpt", weights_only=True)["epoch"] for run in ("whole", "four")]
    assert best[0] == best[1]


def test_the_best_checkpoint_of_a_run_that_was_moved_stays_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--model.learning_rate", "0.3", "--model.lr_scheduler", "null", "--trainer.max_epochs", "5"]
    whole = call(monkeypatch, *options, "--output", "whole")
    nll = [value for _, value in whole.report.history["val/nll"]]
    assert nll.index(min(nll)) < 3, "otherwise the best epoch would come after the interruption"
    interrupted(monkeypatch, *options, "--output", "out", batch=13)
    shutil.move("out", "elsewhere")
    resumed = call(monkeypatch, "--ckpt_path", "elsewhere/checkpoints/last.ckpt")
    assert torch.load("elsewhere/checkpoints/best.ckpt", weights_only=True)["epoch"] == nll.index(min(nll))
    assert resumed.report.results["nll"] == whole.report.results["nll"]


def test_other_data_start_the_comparison_of_checkpoints_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    call(monkeypatch, "--output", "out")
    before = contents("out")
    other = call(
        monkeypatch,
        *("--ckpt_path", "out/checkpoints/last.ckpt", "--data.rate", "0.9", "--trainer.max_epochs", "3"),
        *("--output", "other"),
    )
    assert set(other.changes) == {"data.rate", "trainer.max_epochs"}
    assert contents("out") == before
    assert torch.load("other/checkpoints/best.ckpt", weights_only=True)["epoch"] == 2


def test_a_changed_option_keeps_the_folder_of_an_unfinished_run(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(monkeypatch, "--output", "out", batch=4)
    before = contents("out")
    resumed = call(monkeypatch, "--ckpt_path", "out/checkpoints/last.ckpt", "--model.learning_rate", "0.02")
    assert resumed.output.parts[:2] == ("runs", "tiny")
    assert contents("out") == before


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--output", "out"], "out holds a run. Choose another folder, or resume that run with --ckpt_path out/check"),
        (["--ckpt_path", "out/checkpoints/last.ckpt"], "the run in out is finished. Give options that continue it"),
        (
            ["--ckpt_path", "out/checkpoints/last.ckpt", "--trainer.max_epochs", "3", "--output", "out"],
            "out holds a run",
        ),
        (["--ckpt_path", "out/checkpoints/absent.ckpt"], "absent.ckpt"),
    ],
)
def test_nothing_of_an_earlier_run_is_overwritten(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    call(monkeypatch, "--output", "out", "--trainer.max_epochs", "1")
    before = contents("out")
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, *arguments)
    assert stop.value.code == 2
    assert complaint in capsys.readouterr().err
    assert contents("out") == before


def test_a_dry_run_needs_no_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    call(monkeypatch, "--output", "out", "--trainer.max_epochs", "1")
    before = contents("out")
    call(monkeypatch, "--output", "out", "--trainer.fast_dev_run", "true")
    assert contents("out") == before


def test_a_checkpoint_without_its_run_takes_the_options_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, "--output", "out", "--trainer.max_epochs", "1")
    shutil.move("out/checkpoints/last.ckpt", "kept.ckpt")
    resumed = call(monkeypatch, "--ckpt_path", "kept.ckpt", "--output", "again")
    assert epochs(resumed) == [1, 2]
    assert "kept.ckpt has no config.yaml beside it" in capsys.readouterr().out


def test_a_configuration_repeats_a_run_in_another_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    first = call(monkeypatch, "--output", "out", "--trainer.max_epochs", "1")
    again = call(monkeypatch, "--config", "out/config.yaml")
    assert again.output != first.output
    assert again.report.history == first.report.history


def test_differences_are_named_as_on_the_command_line() -> None:
    before = {"data": {"class_path": "A", "init_args": {"rate": 1, "seed": 0}}, "output": "a", "trainer": {"n": [1]}}
    after = {"data": {"class_path": "B", "init_args": {"rate": 2, "seed": 0}}, "ckpt_path": "b", "trainer": {"n": [1]}}
    assert differences(before, after) == {"data": ("A", "B"), "data.rate": (1, 2)}
    assert differences(before, before) == {}


def test_ctrl_c_before_training_says_to_start_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(self: TinyEvents) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TinyEvents, "prepare_data", stopped)
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, "--output", "out")
    assert stop.value.code == 130
    assert "start again with the same command" in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize(("option", "name"), [("optimizer", "adamw"), ("lr_scheduler", "cosine")])
def test_a_name_in_place_of_a_function_is_written_and_read_again(
    option: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a default that is such a name, the parser would write it as a function that has no import path."""
    defaults = {key: value for key, value in DEFAULTS.items() if key != "model.lr_scheduler"}
    first = RecipeCLI("recipes/tiny.py", defaults, arguments=[f"--model.{option}", name, "--output", "new"])
    Path("options.yaml").write_text(first.start.configuration)
    assert yaml.safe_load(first.start.configuration)["model"][option] == name
    assert first.model.hparams[option] == name
    again = RecipeCLI("recipes/tiny.py", defaults, arguments=["--config", "options.yaml", "--output", "new"])
    assert again.start.configuration == first.start.configuration


def test_fewer_epochs_than_the_checkpoint_has_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(monkeypatch, "--trainer.max_epochs", "4", "--output", "run", batch=10)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, "--ckpt_path", "run/checkpoints/last.ckpt", "--trainer.max_epochs", "1")
    assert stop.value.code == 2
    message = "Expected option --trainer.max_epochs to be at least 2, the epochs of the checkpoint run/checkpoints/last"
    assert message in capsys.readouterr().err
