"""Every Python block of the documentation runs, one after the other within a document."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from tests.docs.blocks import DOCUMENTS, ROOT, python_blocks
from tests.support.optional import skip_without_libraries


@pytest.mark.parametrize(
    "document", [each for each in DOCUMENTS if python_blocks(each)], ids=lambda path: str(path.relative_to(ROOT))
)
def test_every_python_block_runs(document: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": f"docs_{document.stem}"}
    for number, block in enumerate(python_blocks(document)):
        skip_without_libraries(block)
        exec(compile(block, f"{document.name}, block {number}", "exec"), namespace)
    assert list(tmp_path.iterdir()) == []


def test_the_documentation_on_extending_has_an_example_of_each_part() -> None:
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    chapters = dict(
        zip(
            re.findall(r"^## (.*)$", text, re.MULTILINE),
            re.split(r"^## .*$", text, flags=re.MULTILINE)[1:],
            strict=True,
        )
    )
    limits = {"A neuron": 4, "A learning rule": 4, "A layer type": 5, "A callback": 6, "A dataset": 4}
    assert set(chapters) == set(limits)
    for title, chapter in chapters.items():
        assert "```python" in chapter
        files = re.findall(r"^\d+\. `([^`]+)`", chapter.split("\nFiles")[1], re.MULTILINE)
        assert 1 <= len(files) <= limits[title]
        for file in files:
            assert (ROOT / file).exists() or ("NAME" in file and (ROOT / file).parent.is_dir()), file


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_paths_of_the_documentation_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (document.parent / target).exists(), target
    anchors = {
        re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= anchors
    folders = "lightning_snn|tests|docs|callbacks|recipes|benchmarks"
    for path in re.findall(rf"`((?:{folders})/[\w/.]+)`", text):
        assert "NAME" in path or (ROOT / path).exists(), path


def test_the_glossary_has_one_sentence_per_word_and_identifiers_that_exist() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| word")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert len(rows) > 50
    repeated = {word for word, *_ in rows if [each[0] for each in rows].count(word) > 1}
    assert repeated == {"step"}  # of a layer, and a noise mode that is named for it
    for word, sentence, *identifiers in rows:
        assert sentence[0].isupper(), word
        assert sentence.endswith("."), word
        for name in re.findall(r"(?<!argument )`([A-Za-z_.]+)`", " ".join(identifiers)):
            if "." in name or name in dir(importlib.import_module("lightning_snn")):
                resolve(name.removeprefix("lightning_snn."))


def resolve(name: str) -> None:
    """Import an identifier of the package; the last part may be a field."""
    found: object = importlib.import_module("lightning_snn")
    path = "lightning_snn"
    for part in name.split("."):
        if part in getattr(found, "__annotations__", {}):
            return
        path = f"{path}.{part}"
        if not hasattr(found, part):
            importlib.import_module(path)
        found = getattr(found, part)
