"""Imports run one way, from the command line down to the mathematics: read from the source, for type checking too."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# from low to high; a part imports parts of lower rows, and those named in the same group of its own row
LAYERS = (
    (
        {
            "checks",
            "_lazy",
            "optim",
            "cpu",
            "files",
            "reading",
            "processes",
            "resuming",
            "checkpoint_io",
            "import_paths",
            "subprocesses",
            "csv_log",
            "command_line",
        },
    ),
    ({"functional"},),
    ({"nn"},),
    ({"networks", "convert"}, {"methods"}),
    ({"metrics"},),
    ({"module", "batches", "checkpoint", "compiled"}, {"callbacks"}),
    ({"cli"},),
    ({"__main__"},),
)
# outside that order: the highest row that they import, and the lowest that imports them
APART = {"figures": ("functional", "callbacks"), "data": ("nn", "cli")}
SHARED_BY_METHODS = {"base", "tasks", "noisy", "online", "penalties"}

ROW = {part: row for row, groups in enumerate(LAYERS) for group in groups for part in group}
GROUP = {part: group for groups in LAYERS for group in groups for part in group}


@dataclass(frozen=True)
class Import:
    """An import of a module of the package by another one.

    Attributes:
        source: dotted name of the module that imports, without the package.
        target: dotted name of the module that is imported; the package itself is "".
        name: what is imported of it; empty for the module itself.
        line: of the source.
        runs: when the source is imported, and not within a function or for type checking only.
    """

    source: str
    target: str
    name: str
    line: int
    runs: bool

    def __str__(self) -> str:
        return f"{self.source or '__init__'}:{self.line} imports {self.name} of {self.target or '__init__'}"


def imports_within(folder: Path) -> list[Import]:
    """Return every import of a package's modules in the package, relative ones too."""
    paths = {_module_name(path, folder): path for path in sorted(folder.rglob("*.py"))}
    return [each for module, path in paths.items() for each in _imports_of(module, path, folder.name, set(paths))]


def _module_name(path: Path, folder: Path) -> str:
    return ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


def _imports_of(module: str, path: Path, package: str, modules: set[str]) -> Iterator[Import]:
    tree = ast.parse(path.read_text())
    running = set(map(id, _run_on_import(tree)))
    parents = [package, *module.split(".")] if module else [package]
    if path.name != "__init__.py":
        parents.pop()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            whole = ".".join([*base, *filter(None, [node.module])])
            found = [(whole, alias.name) for alias in node.names]
        else:
            continue
        for target, name in found:
            if target.split(".")[0] != package:
                continue
            inside = target.removeprefix(package).removeprefix(".")
            submodule = f"{inside}.{name}".removeprefix(".")
            if name and submodule in modules:
                inside, name = submodule, ""
            yield Import(module, inside, name, node.lineno, id(node) in running)


def _run_on_import(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child
        yield from _run_on_import(child)


def against_the_layers(imports: list[Import]) -> list[str]:
    """Return the imports that run up, or between parts of one row; only the package's `__init__` may import all."""
    found = []
    for each in imports:
        source, target = each.source.split(".")[0], each.target.split(".")[0]
        if source in ("", target) or target == "":
            continue
        unknown = {source, target} - set(ROW) - set(APART)
        if unknown:
            found.append(f"{each}: no place in the order for {', '.join(sorted(unknown))}")
        elif source in APART:
            allowed = target in ROW and ROW[target] <= ROW[APART[source][0]]
            found += [] if allowed else [str(each)]
        elif target in APART:
            found += [] if ROW[source] >= ROW[APART[target][1]] else [str(each)]
        elif ROW[target] >= ROW[source] and target not in GROUP[source]:
            found.append(str(each))
    return found


def between_methods(imports: list[Import]) -> list[str]:
    """Return the imports of a method by another method, or by what methods share."""
    found = []
    for each in imports:
        if each.source.startswith("methods.") and each.target.startswith("methods."):
            source, target = each.source.split(".")[1], each.target.split(".")[1]
            if source != target and target not in SHARED_BY_METHODS:
                found.append(str(each))
    return found


def circles(imports: list[Import]) -> list[str]:
    """Return the modules of each circle of imports that run when a module is imported."""
    targets: dict[str, set[str]] = {}
    for each in imports:
        if each.runs:
            targets.setdefault(each.source, set()).add(each.target)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        ahead = [start]
        while ahead:
            new = targets.get(ahead.pop(), set()) - seen
            seen |= new
            ahead += new
        return seen

    reach = {module: reached(module) for module in targets}
    within = {module: frozenset(other for other in reach[module] if module in reach.get(other, ())) for module in reach}
    return sorted(", ".join(sorted(name or "__init__" for name in circle)) for circle in set(within.values()) if circle)


def private_names(imports: list[Import]) -> list[str]:
    """Return the imports of a module's private names by other modules."""
    return [str(each) for each in imports if each.name.startswith("_") and not each.name.endswith("__")]


def imports_of_recipes(root: Path) -> list[str]:
    """Return the files outside `recipes` and the tests that import something of it."""
    found = []
    for folder in ("lightning_snn", "callbacks", "benchmarks"):
        for path in sorted((root / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                found += [str(path.relative_to(root)) for name in names if name.split(".")[0] == "recipes"]
    return found


RULES = (against_the_layers, between_methods, circles, private_names)


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    return imports_within(ROOT / "lightning_snn")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_no_import_of_the_package_is(rule: Callable[[list[Import]], list[str]], imports: list[Import]):
    assert rule(imports) == []


def test_nothing_imports_recipes():
    assert imports_of_recipes(ROOT) == []


# what each rule is to find in a small package, by the files that are changed
BROKEN = {
    "an arrow back": ("functional/gaussian.py", "from lightning_snn.nn import LIF", "against_the_layers"),
    "an arrow back for type checking": (
        "functional/lif.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lightning_snn.nn.neurons import LIF",
        "against_the_layers",
    ),
    "an arrow back in a function": ("nn/neurons.py", "def f():\n    import lightning_snn.cli", "against_the_layers"),
    "an arrow between parts of one row": ("module.py", "from lightning_snn import callbacks", "against_the_layers"),
    "figures of networks": ("figures.py", "from lightning_snn.nn import LIF", "against_the_layers"),
    "data in a method": ("methods/one.py", "from lightning_snn.data import MNIST", "against_the_layers"),
    "a part without a place": ("magic.py", "from lightning_snn.nn import LIF", "against_the_layers"),
    "a method of another method": ("methods/one.py", "from lightning_snn.methods.two import rule", "between_methods"),
    "a relative import of another method": ("methods/one.py", "from .two.rules import rule", "between_methods"),
    "a method in what methods share": ("methods/noisy.py", "from lightning_snn.methods import one", "between_methods"),
    "a circle": ("methods/two/rules.py", "from lightning_snn.methods.two import Two", "circles"),
    "a private name": ("nn/neurons.py", "from lightning_snn.functional.lif import _scan", "private_names"),
}
SMALL = {
    "__init__.py": "from lightning_snn.module import SpikingModule",
    "functional/__init__.py": "",
    "functional/lif.py": "",
    "nn/__init__.py": "from lightning_snn.nn.neurons import LIF",
    "nn/neurons.py": "from lightning_snn.functional.lif import scan",
    "methods/__init__.py": "from .one import One\nfrom .two import Two",
    "methods/base.py": "from lightning_snn.nn import LIF",
    "methods/one.py": "from lightning_snn.methods.base import Method",
    "methods/two/__init__.py": "from lightning_snn.methods.two.rules import Two",
    "methods/two/rules.py": "from ..base import Method\ndef later():\n    from lightning_snn.methods.two import Two",
    "module.py": "from lightning_snn.methods import One",
    "callbacks.py": "from lightning_snn import figures",
    "figures.py": "from lightning_snn.functional import lif",
    "data.py": "from lightning_snn.nn.neurons import LIF",
    "cli.py": "from lightning_snn.data import MNIST\nfrom lightning_snn import __version__",
}


def reports(folder: Path, files: dict[str, str]) -> dict[str, list[str]]:
    for name, text in files.items():
        path = folder / "lightning_snn" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = imports_within(folder / "lightning_snn")
    return {rule.__name__: rule(found) for rule in RULES}


def test_a_package_in_order_has_no_report(tmp_path: Path):
    assert not any(reports(tmp_path, SMALL).values())


@pytest.mark.parametrize(("file", "text", "rule"), BROKEN.values(), ids=BROKEN)
def test_an_import_against_a_rule_is_reported(file: str, text: str, rule: str, tmp_path: Path):
    found = reports(tmp_path, SMALL | {file: text})
    assert len(found.pop(rule)) == 1
    assert not any(found.values())


def test_an_import_of_recipes_is_reported(tmp_path: Path):
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks" / "script.py").write_text("def f():\n    from recipes.sbnn_dvs import DEFAULTS")
    assert imports_of_recipes(tmp_path) == ["callbacks/script.py"]
