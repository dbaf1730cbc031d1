"""Damaged files that a command reads are named before anything runs, and nothing is left of the command."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch

import lightning_snn
from lightning_snn.cli.reading import check_checkpoint, read_options
from tests.cli.tiny import call

OPTIONS = {
    "empty": (b"", "hold options by name, .* but got an empty file"),
    "a list": (b"- 1\n", "hold options by name, .* but got list"),
    "no YAML": (b"a: [1\nb: }", "corrupt: ParserError: while parsing a flow sequence"),
    "binary": (bytes(range(128, 256)), "corrupt: 'utf-8' codec can't decode"),
    "another encoding": (
        "trainer: {max_epochs: 1} # é".encode("latin-1"),
        "corrupt: 'utf-8' codec can't decode",
    ),
    "a null byte": (b"trainer:\0 1", "corrupt: ReaderError: unacceptable character"),
}


def checkpoint(**content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


WHOLE = checkpoint(**{"pytorch-lightning_version": "2.6", "state_dict": {"weight": torch.ones(1000)}})
CHECKPOINTS = {
    "empty": (b"", "truncated, damaged or something else"),
    "half": (WHOLE[: len(WHOLE) // 2], "truncated, damaged or something else"),
    "all but the end": (WHOLE[:-20], "truncated, damaged or something else"),
    "zeros": (bytes(len(WHOLE)), "truncated, damaged or something else"),
    "text": (b"hello", "truncated, damaged or something else"),
    "tensors": (checkpoint(weight=torch.ones(3)), "holds something else"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        call(patch, "--trainer.max_epochs", "1", "--output", str(folder))
    return folder


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, *arguments)
    assert stop.value.code == 2
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    return capsys.readouterr().err


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_damaged_configuration_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], finished: Path, kind: str
) -> None:
    content, message = OPTIONS[kind]
    Path("bad.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=f"Expected bad.yaml to .*{message}"):
        read_options("bad.yaml")
    assert "Expected bad.yaml to " in refused(monkeypatch, capsys, "--config", "bad.yaml")

    kept = (finished / "config.yaml").read_bytes()
    try:
        (finished / "config.yaml").write_bytes(content)
        last = str(finished / "checkpoints" / "last.ckpt")
        assert f"Expected {finished}/config.yaml to " in refused(monkeypatch, capsys, "--ckpt_path", last)
        with pytest.raises(ValueError, match=f"Expected {finished}/config.yaml to "):
            lightning_snn.load_run(finished)
    finally:
        (finished / "config.yaml").write_bytes(kept)


def test_a_folder_is_no_configuration(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Path("folder").mkdir()
    assert "Expected folder to be a configuration file" in refused(monkeypatch, capsys, "--config", "folder")


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_damaged_checkpoint_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], finished: Path, kind: str
) -> None:
    content, message = CHECKPOINTS[kind]
    Path("bad.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=f"Expected bad.ckpt to be a checkpoint.*{message}"):
        check_checkpoint("bad.ckpt")
    assert "Expected bad.ckpt to be a checkpoint" in refused(monkeypatch, capsys, "--ckpt_path", "bad.ckpt")
    best = finished / "checkpoints" / "best.ckpt"
    kept = best.read_bytes()
    try:
        best.write_bytes(content)
        with pytest.raises(ValueError, match=f"Expected {best} to be a checkpoint"):
            lightning_snn.load_run(finished, allow=["tests.cli.tiny"])
    finally:
        best.write_bytes(kept)


def test_a_missing_checkpoint_is_not_called_damaged() -> None:
    with pytest.raises(FileNotFoundError, match=r"Expected no\.ckpt to be a checkpoint, but it does not exist"):
        check_checkpoint("no.ckpt")


def test_whole_files_are_read(finished: Path) -> None:
    """The control: the errors above are about the damage."""
    assert read_options(finished / "config.yaml")["trainer"]["max_epochs"] == 1
    for name in ("best", "last"):
        check_checkpoint(finished / "checkpoints" / f"{name}.ckpt")
    Path("whole.ckpt").write_bytes(WHOLE)
    check_checkpoint("whole.ckpt")
