"""The command ``lightning-snn report RUN [RUN]``: the page of a run, or two runs next to each other."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_snn.callbacks.html import Markup, element, folded, joined, page, picture, table
from lightning_snn.callbacks.report_page import (
    RunContent,
    caption,
    code_of_citations,
    label,
    run_page,
    score_as_text,
    scores,
    why_no_anytime,
)
from lightning_snn.cli.folders import CONFIG
from lightning_snn.cli.reading import read_options
from lightning_snn.cli.resume import RESULTS
from lightning_snn.files import write_text
from lightning_snn.reading import reading

_PAGE, _COMPARISON = "report.html", "comparison.html"
# of a recipe's figures, in the order of a page; others follow by name
_FIRST = ("training_curves", "anytime_scores", "anytime_samples", "confusion_matrix", "reliability", "raster", "events")
_SIDES = ("A", "B")


def read_run(folder: str | os.PathLike[str]) -> RunContent:
    """Read the content of a run's page from the files in its folder.

    Args:
        folder: folder of a recipe's run, or of a `Report`.

    Returns:
        Its content, with all figures in the folder.

    Raises:
        FileNotFoundError: if the folder has no `metrics.json`.
        OSError: if a file cannot be read; the message names it.
        ValueError: if a file is damaged; the message names it.
    """
    folder = Path(folder)
    if not (folder / RESULTS).is_file():
        raise FileNotFoundError(
            f"Expected the folder of a tested run, but {folder} has no {RESULTS}. Give the folder that the recipe "
            "printed, or that of the callback Report; a run writes this file at the end of its test"
        )
    with reading(folder / RESULTS, "the results of a run", "Test the run again"):
        results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    if not isinstance(results, dict):
        raise ValueError(
            f"Expected {folder / RESULTS} to hold results by name, but got a {type(results).__name__}. Test the run "
            "again"
        )
    if not results.get("hyperparameters") and (folder / CONFIG).is_file():
        results["hyperparameters"] = read_options(folder / CONFIG)
    figures = {}
    for path in sorted(folder.glob("*.png"), key=lambda path: (_place(path.stem), path.stem)):
        with reading(path, "a figure of a run", "Test the run again"):
            figures[path.stem] = path.read_bytes()
    summary = folder / "model_summary.txt"
    text = ""
    if summary.is_file():
        with reading(summary, "a table of modules", "Remove it"):
            text = summary.read_text(encoding="utf-8")
    return RunContent(str(folder), results, figures, text)


def write_report(folder: str | os.PathLike[str], output: str | os.PathLike[str] | None = None) -> Path:
    """Write the page of a run from the files in its folder, for example of a run that was moved.

    Args:
        folder: as in `read_run`.
        output: file to write; None is `report.html` in the folder. An existing file is replaced.

    Returns:
        Path of the page.

    Raises:
        OSError, ValueError: as `read_run`; OSError too if the page cannot be written.

    Example:
        >>> write_report("runs/sbnn_dvs/2026-01-31_12-00-00_seed0")  # doctest: +SKIP
    """
    return write_text(Path(folder) / _PAGE if output is None else output, run_page(read_run(folder)))


def compare_runs(
    first: str | os.PathLike[str], second: str | os.PathLike[str], output: str | os.PathLike[str] = _COMPARISON
) -> Path:
    """Write a page with two runs next to each other: metrics and their differences, options, and figures.

    Args:
        first: folder of run A, as in `read_run`.
        second: folder of run B.
        output: file to write. An existing file is replaced.

    Returns:
        Path of the page.

    Raises:
        OSError, ValueError: as `read_run`; OSError too if the page cannot be written.

    Example:
        >>> compare_runs("runs/sbnn_dvs/seed0", "runs/sbnn_dvs/seed1")  # doctest: +SKIP
    """
    return write_text(output, comparison_page(read_run(first), read_run(second)))


def comparison_page(first: RunContent, second: RunContent) -> str:
    """Return a page with two runs next to each other.

    Options and scores that only one run has are shown, too.

    Example:
        >>> one, other = (RunContent(name, {"nll": nll}) for name, nll in (("one", 0.5), ("other", 0.25)))
        >>> "-0.2500" in comparison_page(one, other)
        True
    """
    runs = first, second
    names = joined(
        element("p", element("b", side), f" {run.title} ", element("span", run.name, class_="soft"))
        for side, run in zip(_SIDES, runs, strict=True)
    )
    sections = {
        "Results": _scores(first, second),
        "Classes": _classes(first, second),
        "Configuration": _options(first.options, second.options),
        "Figures": _figures(runs),
        "Cite": code_of_citations([run.results for run in runs]),
    }
    given = [(heading, content) for heading, content in sections.items() if content is not None]
    return page("Two runs", given, names)


def _scores(first: RunContent, second: RunContent) -> Markup:
    one, other = scores(first.results), scores(second.results)
    rows = []
    for name in dict.fromkeys((*one, *other)):
        before, after = one.get(name), other.get(name)
        texts = (score_as_text(name, value) for value in (before, after))
        rows.append([label(name), *texts, _change(name, before, after)])
    return table(["quantity", *_SIDES, "B − A"], rows, numbers=(1, 2, 3))


def _classes(first: RunContent, second: RunContent) -> Markup | None:
    """Return accuracy and negative log-likelihood by class of two runs on the same classes; None for others."""
    one, other = (run.results.get("per_class") or [] for run in (first, second))
    if not one or [row["class"] for row in one] != [row["class"] for row in other]:
        return None
    quantities = ("accuracy", "nll")
    columns = [f"{quantity} {part}" for quantity in quantities for part in (*_SIDES, "B − A")]
    rows = []
    for left, right in zip(one, other, strict=True):
        row: list[object] = [left["class"]]
        for quantity in quantities:
            before, after = left.get(quantity), right.get(quantity)
            row += [score_as_text(quantity, before), score_as_text(quantity, after), _change(quantity, before, after)]
        rows.append(row)
    return table(["class", *columns], rows, numbers=range(1, 1 + len(columns)))


def _options(first: Mapping[str, str], second: Mapping[str, str]) -> Markup:
    names = dict.fromkeys((*first, *second))
    rows = [[name, first.get(name), second.get(name)] for name in names]
    differing = [row for row in rows if row[1] != row[2]]
    same = [row[:2] for row in rows if row[1] == row[2]]
    if not rows:
        return element("p", "Neither run has an option that was saved.")
    parts: list[Markup] = [element("p", f"{len(differing)} of {len(rows)} options differ.")]
    if differing:
        parts.append(table(["option", *_SIDES], differing, marked=range(len(differing))))
    if same:
        parts.append(folded(f"{len(same)} options that are the same", table(["option", "value"], same)))
    return joined(parts)


def _figures(runs: tuple[RunContent, RunContent]) -> Markup | None:
    names = sorted(dict.fromkeys((*runs[0].figures, *runs[1].figures)), key=lambda name: (_place(name), name))
    parts: list[Markup] = []
    for side, run in zip(_SIDES, runs, strict=True):
        reason = why_no_anytime(run.results)
        if reason is not None:
            parts.append(element("p", f"{side} has no anytime predictions: {reason}."))
    for name in names:
        drawn = (
            picture(f"{name} of {side}", run.figures[name], f"{side}: {run.title}")
            if name in run.figures
            else element("p", f"{side} has no figure {name}.", class_="soft")
            for side, run in zip(_SIDES, runs, strict=True)
        )
        parts += [element("h3", name.replace("_", " ")), element("p", caption(name), class_="soft")]
        parts.append(element("div", *drawn, class_="pair"))
    return joined(parts) if parts else None


def _place(name: str) -> int:
    return _FIRST.index(name) if name in _FIRST else len(_FIRST)


def _change(name: str, before: float | None, after: float | None) -> str:
    """Return the difference of a score with its sign; a dash if one is missing or not finite."""
    change = None if before is None or after is None else after - before
    return ("+" if change is not None and change > 0 else "") + score_as_text(name, change)


def report(options: argparse.Namespace) -> Path:
    """Write the page of one run, or of two next to each other.

    Args:
        options: those of the command.

    Returns:
        Path of the page.

    Raises:
        FileExistsError: if the page exists and is not to be overwritten, unless it is that of the run itself.
        OSError: if a file cannot be read or written; the message names it.
        ValueError: if there are more than two runs, or a file is damaged.
    """
    runs: Sequence[Path] = options.runs
    if len(runs) > 2:
        raise ValueError(f"Expected one RUN or two, but got {len(runs)}. Compare them in pairs")
    output = options.output or (None if len(runs) == 1 else Path(_COMPARISON))
    if output is not None and os.path.lexists(output) and not options.overwrite:
        raise FileExistsError(
            f"Expected the page to be a new file, but {output} exists. Choose another name with --output, or pass "
            "--overwrite"
        )
    return write_report(runs[0], output) if len(runs) == 1 else compare_runs(runs[0], runs[1], output or _COMPARISON)
