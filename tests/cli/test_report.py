"""Pages of runs that are read from their folders: one run, and two next to each other."""

from __future__ import annotations

import argparse
import base64
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_snn.cli import RecipeCLI
from lightning_snn.cli.commands import report as sub_command
from lightning_snn.cli.program import main
from lightning_snn.cli.report import compare_runs, read_run, write_report
from tests.cli.tiny import DEFAULTS, PRESETS, call
from tests.support.pages import HOSTILE, PNG, Page

ANYTIME = {"samples": 8, "steps": [{"step": 1, "accuracy": 0.5, "nll": 0.7, "ece": 0.1, "entropy": 0.6}]}


def make_run(folder: Path, figures: tuple[str, ...] = ("training_curves",), **results: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(results))
    for name in figures:
        (folder / f"{name}.png").write_bytes(PNG)
    return folder


def rows_of(page: Path, marked: bool | None = None) -> list[list[str]]:
    """Return the cells of all rows of tables, or of those that are highlighted or not."""
    found = []
    for part in page.read_text().split("<tr")[1:]:
        cells = Page("<table><tr" + part.split("</tr>")[0] + "</tr></table>").texts["td"]
        if cells and (marked is None or part.startswith(' class="marked"') == marked):
            found.append(cells)
    return found


def parsed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> RecipeCLI:
    monkeypatch.setattr(sys, "argv", ["tiny.py", *arguments])
    return RecipeCLI("recipes/tiny.py", DEFAULTS, PRESETS)


def test_the_page_of_a_run_holds_what_its_folder_holds(tmp_path: Path) -> None:
    folder = make_run(
        tmp_path / "run",
        ("raster", "own_figure", "anytime_scores", "training_curves"),
        **{"accuracy": 0.875, "energy/test/effective_acs": 1234.5, "broken": None, "seed": 3},
        method="SpikingBayes",
        network="MLP",
        data="Gestures",
        per_class=[{"class": "clap", "samples": 4, "accuracy": 0.5}],
        hyperparameters={"method": {"class_path": "SpikingBayes", "init_args": {"lam": 0.25}}, "list": [1, None]},
        versions={"torch": "2.9"},
        citation="@article{a & b}",
        commands={"Again": "python x.py --name 'a b'"},
        anytime=ANYTIME,
    )
    (folder / "model_summary.txt").write_text("module  type")
    page = write_report(folder)
    assert page == folder / "report.html"
    shown, rows = Page(page.read_text()), rows_of(page)
    assert shown.texts["h1"] == ["SpikingBayes · MLP · Gestures, seed 3"]
    for row in (
        ["accuracy", "0.8750"],
        ["energy/test/effective acs", "1234"],
        ["broken", "–"],
        ["clap", "4", "0.5"],
        ["method", "SpikingBayes"],
        ["method.lam", "0.25"],
        ["list", "[1, null]"],
        ["torch", "2.9"],
        ["1", "0.5", "0.7", "0.1", "0.6"],
    ):
        assert row in rows, row
    assert ["seed", "3"] not in rows
    assert [image["alt"] for image in shown.attributes["img"]] == [
        "anytime_scores",
        "training_curves",
        "raster",
        "own_figure",
    ]
    assert base64.b64decode(shown.attributes["img"][0]["src"].partition(",")[2]) == PNG
    assert shown.texts["pre"] == ["python x.py --name 'a b'", "@article{a & b}", "module  type"]


def test_a_run_of_little_says_what_is_missing(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", (), nll=0.5, anytime={"missing": "the inputs have one time step"})
    text = write_report(folder, tmp_path / "page.html").read_text()
    assert "There are no anytime predictions: the inputs have one time step." in text
    assert "no method that names its publication" in text
    assert "no command that repeats it" in text
    assert "no hyperparameters" in text
    assert not (folder / "report.html").exists()


def test_two_runs_stand_next_to_each_other(tmp_path: Path) -> None:
    options = {"method": {"class_path": "A", "init_args": {"lam": 0.5}}, "trainer": {"max_epochs": 3}}
    classes = [{"class": "clap", "accuracy": 0.5, "nll": 0.7}, {"class": "wave", "accuracy": None, "nll": 0.25}]
    others = [{"class": "clap", "accuracy": 0.75, "nll": 0.2}, {"class": "wave", "accuracy": 1.0, "nll": 0.25}]
    first = make_run(
        tmp_path / "first",
        ("raster", "reliability"),
        **{"accuracy": 0.5, "nll": 0.75, "ece": None, "own": 2.0},
        per_class=classes,
        hyperparameters=options,
        citation="@first",
        anytime=ANYTIME,
    )
    options = {"method": {"class_path": "B", "init_args": {"samples": 4}}, "trainer": {"max_epochs": 3}}
    second = make_run(
        tmp_path / "second",
        ("reliability",),
        **{"accuracy": 0.625, "nll": 0.25, "ece": 0.125, "mse": 1.0},
        per_class=others,
        hyperparameters=options,
        citation="@second",
        anytime={"missing": "`anytime_batches` is 0"},
    )
    page = compare_runs(first, second, tmp_path / "both.html")
    shown, rows = Page(page.read_text()), rows_of(page)
    for row in (
        ["accuracy", "0.5000", "0.6250", "+0.1250"],
        ["negative log-likelihood (nats)", "0.7500", "0.2500", "-0.5000"],
        ["expected calibration error", "–", "0.1250", "–"],
        ["own", "2", "–", "–"],
        ["mean squared error", "–", "1", "–"],
        ["clap", "0.5000", "0.7500", "+0.2500", "0.7000", "0.2000", "-0.5000"],
        ["wave", "–", "1.0000", "–", "0.2500", "0.2500", "0.0000"],
    ):
        assert row in rows, row
    assert rows_of(page, marked=True) == [
        ["method", "A", "B"],
        ["method.lam", "0.5", "–"],
        ["method.samples", "–", "4"],
    ]
    assert ["trainer.max_epochs", "3"] in rows_of(page, marked=False)
    assert "3 of 4 options differ." in shown.texts["p"]
    assert [image["alt"] for image in shown.attributes["img"]] == [
        "reliability of A",
        "reliability of B",
        "raster of A",
    ]
    assert "B has no figure raster." in shown.texts["p"]
    assert "B has no anytime predictions: `anytime_batches` is 0." in shown.texts["p"]
    assert shown.texts["pre"] == ["@first\n\n@second"]


def test_runs_on_other_classes_are_not_compared_by_class(tmp_path: Path) -> None:
    one, other = (
        make_run(tmp_path / name, (), per_class=[{"class": name, "accuracy": 0.5, "nll": 0.7}]) for name in "ab"
    )
    assert "Classes" not in compare_runs(one, other, tmp_path / "both.html").read_text()


@pytest.mark.parametrize("text", HOSTILE)
def test_names_of_a_run_are_shown_as_they_are(text: str, tmp_path: Path) -> None:
    name = text.replace("/", "")
    folder = make_run(
        tmp_path / name,
        (),
        **{text: 0.5, "per_class": [{"class": text, "accuracy": 0.5}], text * 2: None},
        hyperparameters={text: text},
        versions={text: text},
        citation=text,
        commands={text: text},
        anytime={"missing": text},
        spikes_per_neuron_per_step_by_layer={text: 0.1},
        layers_without_counted_operations=[text],
    )
    (folder / f"{name}.png").write_bytes(PNG)
    for page in (write_report(folder), compare_runs(folder, folder, tmp_path / "both.html")):
        shown = Page(page.read_text())
        tags = set(shown.attributes)
        assert not tags & {"script", "iframe", "svg", "link", "object", "form"}
        assert not [key for tag in shown.attributes.values() for each in tag for key in each if key.startswith("on")]
        assert all(image["src"].startswith("data:image/png") for image in shown.attributes["img"])
        expected = text.encode("utf-8", "backslashreplace").decode()
        assert expected in shown.texts["td"]
        assert expected in shown.texts["pre"]


def test_options_of_a_run_without_them_are_those_of_its_configuration_file(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", (), nll=0.5)
    (folder / "config.yaml").write_text("trainer: {max_epochs: 7}\n")
    assert read_run(folder).options == {"trainer.max_epochs": "7"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "Expected the folder of a tested run, but .*run has no metrics.json"),
        ("{", "Expected .*metrics.json to be the results of a run, but it is truncated or corrupt"),
        ("[1]", "Expected .*metrics.json to hold results by name, but got a list"),
    ],
)
def test_a_folder_without_results_is_refused(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    if content is not None:
        (tmp_path / "run" / "metrics.json").write_text(content)
    with pytest.raises((OSError, ValueError), match=message):
        write_report(tmp_path / "run")
    with pytest.raises(SystemExit) as stop:
        main(["report", str(tmp_path / "run")])
    assert stop.value.code == 2
    assert "error: Expected" in capsys.readouterr().err
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_damaged_figure_is_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", (), nll=0.5)
    (folder / "raster.png").write_bytes(b"cut")
    assert "The figure raster cannot be shown" in write_report(folder).read_text()


def test_the_command_writes_pages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (str(make_run(tmp_path / name, (), nll=0.5)) for name in "ab")
    main(["report", first])
    main(["report", first])  # its own page is replaced
    main(["report", first, second])
    assert capsys.readouterr().out.splitlines() == [f"Wrote {first}/report.html"] * 2 + ["Wrote comparison.html"]
    for arguments, message in (
        ([first, second], "comparison.html exists. Choose another name with --output, or pass --overwrite"),
        ([first, "-o", "comparison.html"], "comparison.html exists"),
        ([first, second, first], "Expected one RUN or two, but got 3. Compare them in pairs"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["report", *arguments])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
    main(["report", first, "-o", "comparison.html", "--overwrite"])
    assert "Two runs" not in Path("comparison.html").read_text()


def test_the_commands_of_a_recipe_repeat_and_continue_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    cli = call(monkeypatch, "--output", "my run", "--trainer.max_epochs", "1", "--method.lam", "0.5")
    found = json.loads(Path("my run/metrics.json").read_text())
    commands = [shlex.split(command) for command in found["commands"].values()]
    assert [words[:2] for words in commands[:3]] == [["python", "tiny.py"]] * 3
    assert commands[0][2:4] == ["--output", "my run"]
    repeated, longer = (parsed(monkeypatch, *words[2:]) for words in commands[1:3])
    assert repeated.config.method.init_args.lam == 0.5
    assert repeated._configuration() == cli._configuration()
    changed = yaml.safe_load(cli._configuration())
    changed["trainer"]["max_epochs"] = 2
    assert yaml.safe_load(longer._configuration()) == changed
    assert commands[-1] == ["lightning-snn", "report", "my run", "OTHER_RUN"]

    assert found["citation"].startswith("@article{walker2025principled")
    shown = Page(Path("my run/report.html").read_text())
    assert shown.texts["h1"] == ["SpikingBayes · MLP · TinyEvents, seed 0"]
    assert [f"python tiny.py --config '{Path('my run', 'config.yaml')}'"] == [
        text for text in shown.texts["pre"] if "--config" in text
    ]
    assert ["data", DEFAULTS["data"]] in rows_of(Path("my run/report.html"))
    assert found["anytime"]["samples"] == 12


def test_the_sub_command_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "run", (), nll=0.5)
    parser = argparse.ArgumentParser()
    sub_command.add_arguments(parser)
    sub_command.run(parser.parse_args([str(folder)]))
    assert capsys.readouterr().out == f"Wrote {folder / 'report.html'}\n"
