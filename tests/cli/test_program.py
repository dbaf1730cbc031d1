"""The program `lightning-snn`: its sub-commands, wrong names, Ctrl-C, and what it imports."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import yaml

import lightning_snn.callbacks
import lightning_snn.nn.neurons
from lightning_snn import __version__
from lightning_snn.cli import catalog, installation
from lightning_snn.cli.choices import GROUPS
from lightning_snn.cli.commands import COMMANDS
from lightning_snn.cli.epoch_lines import EpochLines
from lightning_snn.cli.program import main
from lightning_snn.nn import Neuron, StatefulLayer
from tests.cli.tiny import DEFAULTS, call, parse
from tests.support.processes import ROOT, run_python


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the message of a command that ends with status 2."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def public(package: object, base: type, *hidden: type) -> set[str]:
    found = {name: getattr(package, name) for name in package.__all__}
    return {name for name, kind in found.items() if isinstance(kind, type) and issubclass(kind, base)} - {
        kind.__name__ for kind in (base, *hidden)
    }


def test_the_catalog_lists_what_the_library_finds_when_it_is_imported():
    for kind, group in (("methods", "method"), ("networks", "network"), ("data", "data")):
        assert set(catalog.catalog(kind)) == set(GROUPS[group].classes())
    assert set(catalog.catalog("neurons")) == public(lightning_snn.nn.neurons, StatefulLayer, Neuron)
    assert set(catalog.catalog("callbacks")) == public(lightning_snn.callbacks, pl.Callback)
    assert set(catalog.catalog("recipes")) == {path.stem for path in (ROOT / "recipes").glob("*.py")}


def test_each_entry_has_the_first_line_of_its_documentation():
    assert "HardwareConstraints" not in catalog.catalog("callbacks")
    for kind in catalog.KINDS:
        for name, line in catalog.catalog(kind).items():
            assert 10 < len(line) <= 120, (kind, name)
            assert "`" not in line
    assert catalog.catalog("recipes")["sbnn_dvs"] == "A spiking Bayesian network learns event-camera gestures."
    assert catalog.catalog("data")["NMNIST"].startswith("N-MNIST, read in place from its original tree {Train,Test}/")


def test_references_and_mathematics_lose_their_markup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "one.py").write_text('"""From :class:`~a.b.Name` by :math:`x_t + W.s`, ``2 x`` and `y`."""\n')
    (tmp_path / "_helper.py").write_text('"""Not a recipe."""\n')
    monkeypatch.setattr(catalog, "recipe_folder", lambda: tmp_path)
    assert catalog.catalog("recipes") == {"one": "From Name by x_t + W.s, 2 x and y."}


def test_list_prints_all_kinds_or_one(capsys: pytest.CaptureFixture[str]):
    main(["list"])
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line and not line.startswith(" ")] == [
        kind for kind in catalog.KINDS if catalog.catalog(kind)
    ]
    main(["list", "methods"])
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(GROUPS["method"].classes())
    assert printed[0].split() == ["EProp", *catalog.catalog("methods")["EProp"].split()]


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (["lst"], "did you mean list?"),
        (["list", "metods"], "did you mean methods?"),
        (["run", "sbn_dvs"], "did you mean sbnn_dvs?"),
    ],
)
def test_a_wrong_name_is_refused_with_the_nearest(arguments, nearest, capsys: pytest.CaptureFixture[str]):
    message = refused(capsys, *arguments)
    assert f"but got '{arguments[-1]}'; {nearest}" in message


def test_an_option_before_the_recipe_is_told_its_place(capsys: pytest.CaptureFixture[str]):
    message = refused(capsys, "run", "--small", "true", "sbnn_dvs")
    assert message.endswith("but got 'true'. Options come after the recipe")


@pytest.mark.parametrize("arguments", [["predict", "no.ckpt", "Gestures"], ["convert", "no.ckpt", "no.nir"]])
def test_a_missing_checkpoint_is_named(arguments, capsys: pytest.CaptureFixture[str]):
    assert "Expected no.ckpt to be a checkpoint, but it does not exist." in refused(capsys, *arguments)


def test_a_wrong_name_far_from_all_is_refused_with_all_names(capsys: pytest.CaptureFixture[str]):
    message = refused(capsys, "zzz")
    assert message.endswith(f"Expected a command, one of {', '.join(COMMANDS)}, but got 'zzz'")


def test_help_and_version(capsys: pytest.CaptureFixture[str]):
    for arguments in ([], ["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert f"lightning_snn {__version__}" in printed
    for command in COMMANDS.values():
        assert " ".join(command.help.split()[:3]) in " ".join(printed.split())


def test_help_list_and_errors_import_neither_torch_nor_lightning():
    finished = run_python(
        "-c",
        "import contextlib, io, json, sys\n"
        "from lightning_snn.cli.program import main\n"
        "from lightning_snn.cli.commands import COMMANDS\n"
        "for line in (['--help'], ['list'], ['lst'], ['run', 'x'], *([name, '--help'] for name in COMMANDS)):\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        main(line)\n"
        "print(json.dumps(sorted(sys.modules)))",
        cwd=ROOT,
    )
    assert finished.returncode == 0, finished.stderr
    modules = set(json.loads(finished.stdout))
    assert "lightning_snn.cli.commands.predict" in modules
    assert not modules & {"torch", "lightning", "numpy", "jsonargparse", "yaml"}


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of recipes of its own."""
    folder = tmp_path / "recipes"
    (folder / "configs").mkdir(parents=True)
    monkeypatch.setattr(catalog, "recipe_folder", lambda: folder)
    monkeypatch.setattr("lightning_snn.cli.commands.run.recipe_folder", lambda: folder)
    monkeypatch.setattr(sys, "argv", ["lightning-snn"])
    return folder


def test_run_executes_the_script_as_the_main_module_with_its_options(recipes: Path, capsys):
    (recipes / "part.py").write_text("NAME = 'part'\n")
    (recipes / "one.py").write_text(
        '"""One."""\nimport sys\nimport part\n'
        "print(__name__, part.NAME, sys.argv, sys.modules['__main__'].__doc__, sys.path[0])\n"
    )
    main(["run", "one", "--help", "--trainer.max_epochs", "3", "-c", "x.yaml"])
    script = recipes / "one.py"
    argv = [str(script), "--help", "--trainer.max_epochs", "3", "-c", "x.yaml"]
    assert capsys.readouterr().out.strip() == f"__main__ part {argv} One. {recipes}"
    del sys.modules["part"]


def test_run_finds_configurations_that_come_with_the_recipes(recipes: Path, capsys):
    (recipes / "one.py").write_text('"""One."""\nimport sys\nprint(sys.argv[1:])\n')
    shipped = recipes / "configs" / "one_small.yaml"
    shipped.write_text("# A small network.\nx: 1\n")
    assert catalog.catalog("configs") == {"one_small": "A small network."}
    Path("mine.yaml").write_text("x: 2\n")
    options = ["--config", "one_small", "--config=one_small.yaml", "-c", "mine.yaml", "--output", "one_small"]
    main(["run", "one", *options])
    expected = ["--config", str(shipped), f"--config={shipped}", *options[3:]]
    assert capsys.readouterr().out.strip() == str(expected)
    Path("one_small.yaml").write_text("x: 3\n")  # a file of the working folder comes first
    main(["run", "one", "--config", "one_small.yaml"])
    assert capsys.readouterr().out.strip() == str(["--config", "one_small.yaml"])


@pytest.mark.parametrize(
    "stop", ["raise KeyboardInterrupt", "try:\n    raise KeyboardInterrupt\nexcept KeyboardInterrupt:\n    exit(1)"]
)
def test_ctrl_c_ends_with_130_and_one_line(stop: str, recipes: Path, capsys: pytest.CaptureFixture[str]):
    (recipes / "one.py").write_text(f'"""One."""\n{stop}\n')
    with pytest.raises(SystemExit) as ended:
        main(["run", "one"])
    assert ended.value.code == 130
    assert capsys.readouterr().err == "\nStopped.\n"


def test_a_recipe_that_says_itself_that_it_was_stopped_prints_no_second_line(recipes: Path, capsys):
    (recipes / "one.py").write_text("try:\n    raise KeyboardInterrupt\nexcept KeyboardInterrupt:\n    exit(130)\n")
    with pytest.raises(SystemExit) as ended:
        main(["run", "one"])
    assert ended.value.code == 130
    assert capsys.readouterr().err == ""


def test_errors_of_a_recipe_keep_their_traceback(recipes: Path):
    (recipes / "one.py").write_text("raise ValueError('a bug')\n")
    with pytest.raises(ValueError, match="a bug"):
        main(["run", "one"])


def test_a_reader_that_ends_early_is_no_error():
    finished = run_python(
        "-c",
        "import subprocess, sys\n"
        "listing = subprocess.Popen([sys.executable, '-m', 'lightning_snn', 'list'], stdout=subprocess.PIPE,\n"
        "                           stderr=subprocess.PIPE, pipesize=4096)\n"
        "listing.stdout.close()\n"
        "print(listing.stderr.read().decode(), listing.wait())",
        cwd=ROOT,
    )
    assert finished.stdout.split() == ["141"], finished.stderr


def test_a_recipe_is_resumed_by_the_command_that_started_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(sys, "argv", ["recipes/sbnn_dvs.py"])
    assert catalog.invocation() == ["python", "recipes/sbnn_dvs.py"]
    package = tmp_path / "lightning_snn"
    (package / "recipes").mkdir(parents=True)
    monkeypatch.setattr(catalog, "_PACKAGE", package)
    monkeypatch.setattr(sys, "argv", [str(package / "recipes" / "sbnn_dvs.py")])
    assert catalog.recipe_folder() == package / "recipes"
    assert catalog.invocation() == ["lightning-snn", "run", "sbnn_dvs"]


def test_info_names_versions_devices_kernels_and_extras(capsys: pytest.CaptureFixture[str]):
    main(["info"])
    printed = capsys.readouterr().out
    for word in (__version__, pl.__version__, "Devices", "cpu", "lif", "Extras", *installation.EXTRAS):
        assert word in printed


def test_every_extra_is_explained():
    text = (ROOT / "pyproject.toml").read_text()
    section = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    extras = set(re.findall(r"^(\w+) = \[", section, re.MULTILINE))
    assert set(installation.EXTRAS) == extras - {"test", "dev", "docs"}


class Distribution:
    """Metadata of an installed distribution with two extras."""

    requires = ("numpy", 'numpy<0.1; extra == "one"', 'absent_package; extra == "one"', 'torch; extra == "two"')

    def get_all(self, name: str) -> list[str]:
        return ["one", "two", "spikingjelly"]


def test_missing_packages_and_wrong_versions_of_an_extra_are_found(monkeypatch: pytest.MonkeyPatch):
    versions = {"numpy": "2.4.6", "torch": "2.13.0+cpu"}
    monkeypatch.setattr(installation, "_version", versions.get)
    monkeypatch.setattr(installation.metadata, "requires", lambda name: Distribution.requires)
    monkeypatch.setattr(installation.metadata, "metadata", lambda name: Distribution())
    assert installation.missing("one") == ["numpy<0.1 instead of 2.4.6", "absent_package"]
    assert installation.missing("two") == []
    assert installation.missing("spikingjelly") == ["spikingjelly"]
    with pytest.raises(ValueError, match="one of the extras of lightning-snn, but got 'three'"):
        installation.missing("three")


def test_an_installation_without_metadata_says_that_its_extras_are_unknown(monkeypatch: pytest.MonkeyPatch):
    def absent(name: str) -> None:
        raise installation.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(installation.metadata, "metadata", absent)
    assert "was not installed by pip or uv" in installation.describe()


def test_completion_needs_shtab(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lightning_snn.cli.program.find_spec", lambda name: None)
    assert "pip install 'lightning-snn[completion]'" in refused(capsys, "--print_completion", "shtab-bash")


def test_completion_knows_commands_recipes_and_options(capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("shtab")
    main(["--print_completion", "shtab-bash"])
    script = capsys.readouterr().out
    for word in ("predict", "sbnn_dvs", "callbacks", "--batch_size"):
        assert word in script


def test_the_module_is_the_program(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["python -m lightning_snn", "list", "neurons"])
    runpy.run_module("lightning_snn", run_name="__main__")
    assert "AdaptiveLIF" in capsys.readouterr().out


def test_the_library_is_cited_as_in_its_citation_file():
    from lightning_snn.cli.citations import LIBRARY

    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    plain = LIBRARY.replace("{", "").replace("}", "")
    assert f"title = {cff['title']}," in plain
    assert f"author = {cff['authors'][0]['name']}," in plain
    assert f"version = {cff['version']}\n" in plain


@pytest.mark.parametrize("chosen", [None, True, False])
def test_without_a_terminal_there_is_a_line_per_epoch_and_no_bar(
    chosen: bool | None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    options = [] if chosen is None else ["--trainer.enable_progress_bar", str(chosen).lower()]
    monkeypatch.delitem(DEFAULTS, "trainer.enable_progress_bar")
    cli = call(monkeypatch, "--output", "out", "--method", "SurrogateGradient", *options)
    printed = capfd.readouterr()
    assert ("100%" in printed.out) is (chosen is True)
    lines = [line for line in printed.out.splitlines() if line.startswith("epoch ")]
    expected = r"epoch \d/2  train/loss [\d.]+  val/accuracy [\d.]+  .*val/nll [\d.]+.*  \d+ s"
    assert len(lines) == (2 if chosen is None else 0)
    assert [line for line in lines if not re.fullmatch(expected, line)] == []
    assert cli.shows_progress is (chosen is True)
    # the choice is not among the options of the run, so that it resumes in place from a terminal
    assert yaml.safe_load(Path("out/config.yaml").read_text())["trainer"]["enable_progress_bar"] is chosen


def test_a_terminal_has_a_progress_bar(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(DEFAULTS, "trainer.enable_progress_bar")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    cli = parse(monkeypatch)
    assert cli.shows_progress
    assert cli.trainer.progress_bar_callback is not None
    assert not any(isinstance(callback, EpochLines) for callback in cli.trainer.callbacks)
