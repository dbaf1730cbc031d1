"""Configuration files of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.cli.tiny import parse


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"\xff\xfe\x00", "it is truncated or corrupt: 'utf-8' codec"),
        (b"data: [", "it is truncated or corrupt: ParserError"),
        (b"", "got an empty file"),
        (b"!!python/object/apply:os.mkdir [attacked]", "it is truncated or corrupt: ConstructorError"),
        (None, "it is a folder"),
    ],
)
def test_a_damaged_configuration_file_is_named(
    content: bytes | None, found: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("options.yaml")
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(SystemExit, match="2"):
        parse(monkeypatch, "--config", str(path))
    error = capsys.readouterr().err
    assert "Expected options.yaml to " in error
    assert f", but {found}" in error
    assert not Path("attacked").exists()


@pytest.mark.parametrize("option", [["--config", "options.yaml"], ["--config=options.yaml"]])
def test_a_file_gives_no_options_of_a_class_to_another_one(option: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    network = {"class_path": "MLP", "init_args": {"hidden": [7]}}
    method = {"class_path": "NoisySpikes", "init_args": {"lam": 0.75, "samples": 5}}
    options = {"network": network, "method": method, "trainer": {"max_epochs": 3}}
    Path("options.yaml").write_text(yaml.safe_dump(options))
    same = parse(monkeypatch, *option).config
    assert (same.method.init_args.lam, same.method.init_args.samples) == (0.75, 5)
    other = parse(monkeypatch, *option, "--method", "SpikingBayes").config
    # those of the recipe for the chosen class
    assert (other.method.init_args.lam, other.method.init_args.samples) == (0.25, 0)
    assert other.method.init_args.kl_weight == 0.01
    assert (other.network.init_args.hidden, other.trainer.max_epochs) == ([7], 3)


def test_a_wrong_class_in_a_file_is_named_although_another_one_is_chosen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("options.yaml").write_text("method: {class_path: NoSuchMethod}\n")
    with pytest.raises(SystemExit, match="2"):
        parse(monkeypatch, "--config", "options.yaml", "--method", "SpikingBayes")
    assert "NoSuchMethod" in capsys.readouterr().err


def test_a_missing_configuration_file_is_named_with_the_nearest_that_comes_with_the_recipes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(monkeypatch, "--config", "sbnn_dvs_smal.yaml")
    assert "it does not exist" in (error := capsys.readouterr().err)
    assert "did you mean sbnn_dvs_small?" in error


@pytest.mark.parametrize("written", [["--small"], ["--small", "true"], ["--small=true"], ["--small", "--wandb=false"]])
def test_a_variant_needs_no_value(written: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse(monkeypatch, *written).config.small is True
    assert parse(monkeypatch, *written, "--small", "false").config.small is False
    assert parse(monkeypatch).config.small is False
