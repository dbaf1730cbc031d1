"""The pages of the documentation and its reference are complete, without a build of the site."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import yaml

import lightning_snn
from lightning_snn import callbacks, methods, nn
from lightning_snn.data import FrameDataModule
from lightning_snn.methods import Method
from lightning_snn.nn import Neuron
from tests.docs.blocks import DOCUMENTS, ROOT

DOCS = ROOT / "docs"
SETTINGS = ("ConformalSets", "HardwareConstraints")  # of callbacks, described on their pages
API = {path.stem: path.read_text(encoding="utf-8") for path in (DOCS / "api").glob("*.md")}


def public_classes(package: object, base: type) -> list[str]:
    """Return the public classes of a package below a base class."""
    found = {name: getattr(package, name) for name in package.__all__}  # type: ignore[attr-defined]
    return sorted(name for name, kind in found.items() if isinstance(kind, type) and issubclass(kind, base))


def titles(folder: str) -> str:
    """Return the first paragraphs of all pages in a folder."""
    return "\n".join(
        "\n".join(path.read_text(encoding="utf-8").split("\n\n")[:3]) for path in sorted((DOCS / folder).glob("*.md"))
    )


@pytest.mark.parametrize("name", [name for name in public_classes(methods, Method) if name != "Method"])
def test_every_method_has_a_page_with_all_its_parts(name):
    pages = [path for path in (DOCS / "methods").glob("*.md") if f"\n\n`{name}`" in path.read_text(encoding="utf-8")]
    assert len(pages) == 1
    text = pages[0].read_text(encoding="utf-8")
    chapters = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert {"Idea", "When to use it, and when not", "Cost"} <= set(chapters)
    assert "$$" in text


@pytest.mark.parametrize("name", [name for name in public_classes(nn, Neuron) if name != "Neuron"])
def test_every_neuron_has_a_page(name):
    assert re.search(rf"^# .*\b{name}\b", titles("neurons"), re.MULTILINE)


@pytest.mark.parametrize("name", [name for name in callbacks.__all__ if name not in SETTINGS])
def test_every_callback_has_a_page_that_names_its_script(name):
    (page,) = (
        path for path in (DOCS / "callbacks").glob("*.md") if path.read_text(encoding="utf-8").startswith(f"# {name}\n")
    )
    assert f"python callbacks/{page.stem}.py" in page.read_text(encoding="utf-8")
    assert (ROOT / "callbacks" / f"{page.stem}.py").is_file()


def test_every_data_module_and_recipe_is_listed():
    data = (DOCS / "datasets.md").read_text(encoding="utf-8")
    for name in public_classes(lightning_snn.data, FrameDataModule):
        assert name == "FrameDataModule" or f"| `{name}` |" in data
    recipes = (DOCS / "recipes.md").read_text(encoding="utf-8")
    for recipe in (ROOT / "recipes").glob("*.py"):
        assert f"| `recipes/{recipe.name}` |" in recipes


def test_every_public_package_is_in_the_reference():
    described = set(re.findall(r"automodule:: ([\w.]+)", "\n".join(API.values())))
    for name in ("callbacks", "data", "figures", "functional", "methods", "metrics", "networks", "nn"):
        assert f"lightning_snn.{name}" in described
    for name in described:
        importlib.import_module(name)


def test_the_reference_names_objects_that_exist():
    directives = re.findall(r"automodule:: ([\w.]+)\n   :members: (.+)", "\n".join(API.values()))
    assert len(directives) > 5
    for module, members in directives:
        for member in members.split(", "):
            assert hasattr(importlib.import_module(module), member), f"{module}.{member}"


def test_pictures_of_the_pages_are_made_by_the_scripts():
    made = (DOCS / "pictures.py").read_text(encoding="utf-8")
    used = {
        found
        for path in DOCUMENTS
        for found in re.findall(r"_pictures/([\w.]+?)(?:/[\w.]+)?\n", path.read_text(encoding="utf-8"))
    }
    assert len(used) > 15
    for name in used:
        stem = Path(name).stem
        if any(stem.startswith(f"{results.stem}_") for results in (DOCS / "measured").glob("*.json")):
            continue
        assert name in made or f'"{stem.removeprefix("neuron_")}":' in made or f'"{stem}",' in made


def test_yaml_of_the_pages_can_be_read():
    blocks = [
        block
        for path in DOCUMENTS
        for block in re.findall(r"^```yaml\n(.*?)^```$", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    ]
    assert blocks
    for block in blocks:
        assert isinstance(yaml.safe_load(block), dict)


def test_issue_forms_and_the_citation_are_valid():
    for path in [*(ROOT / ".github").rglob("*.yml"), ROOT / "CITATION.cff"]:
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict), path
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == lightning_snn.__version__
    credited = {reference["notes"] for reference in citation["references"]}
    assert len(credited) > 5
    assert credited < set(public_classes(methods, Method))
