"""Results of a comparison: table, curves and reliability, as files and figures."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_snn import figures
from lightning_snn.callbacks.tracking import markdown_table
from lightning_snn.cli.comparison.record import RECORD
from lightning_snn.cli.comparison.run import is_tested
from lightning_snn.cli.reading import read_options
from lightning_snn.cli.resume import RESULTS
from lightning_snn.files import write_json, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "comparison"
BUDGETS = ("steps", "seconds")
# name of each column, its heading, and its form in Markdown
COLUMNS = {
    "rule": ("rule", ""),
    "budget": ("budget", ""),
    "learning_rate": ("learning rate", "g"),
    "accuracy": ("accuracy", ".3f"),
    "nll": ("NLL", ".3f"),
    "ece": ("ECE", ".3f"),
    "spikes": ("spikes per neuron and step", ".3f"),
    "operations": ("SynOps per sample", ".3g"),
    "peak_mb": ("peak memory, MB", ".1f"),
    "ms_per_step": ("ms per step", ".1f"),
    "steps": ("steps", ".0f"),
    "passes": ("passes", ".1f"),
    "seconds": ("seconds", ".1f"),
    "runs": ("runs", ".0f"),
}
# columns without a place in Markdown, by budget
_LEFT_OUT = {"steps": ("budget", "runs", "steps"), "seconds": ("budget", "runs")}
# of the test in `metrics.json`
_TESTED = {
    "accuracy": "accuracy",
    "nll": "nll",
    "ece": "ece",
    "spikes": "spikes_per_neuron_per_step",
    "operations": "synaptic_operations_per_sample",
}


def results_of(
    runs: Mapping[tuple[str, str], Sequence[Path]],
    rates: Mapping[str, float | None],
    peaks: Mapping[str, int],
    refused: Mapping[str, str],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the results of the runs that have been tested, as plain data.

    Args:
        runs: folders of the runs of each budget and rule, one for each seed.
        rates: chosen learning rate of each rule; None where the rule has its own optimizer.
        peaks: peak memory of a training step of each rule, in bytes.
        refused: reason of each rule that was refused.
        settings: what to state with the results.

    Returns:
        `settings`; `refused`; `rows`, one for each budget and rule with the means over its runs, named as `COLUMNS`,
        and the accuracy of each;
        `curves` of each budget and rule, the means of the validation scores; and its `reliability` in all tests.
    """
    found: dict[str, Any] = {"settings": dict(settings), "refused": dict(refused), "rows": []}
    found |= {"curves": {budget: {} for budget in BUDGETS}, "reliability": {budget: {} for budget in BUDGETS}}
    for (budget, rule), folders in runs.items():
        tested = [folder for folder in folders if is_tested(folder)]
        if not tested:
            continue
        rows = [_row_of(folder) for folder in tested]
        means = {name: _mean([row.get(name) for row in rows]) for name in COLUMNS if name not in ("rule", "budget")}
        means |= {"learning_rate": rates[rule], "peak_mb": peaks[rule] / 1e6, "runs": len(rows)}
        each = {"accuracies": [row["accuracy"] for row in rows]}
        found["rows"].append({"rule": rule, "budget": budget} | means | each)
        records = [read_options(folder / RECORD) for folder in tested]
        found["curves"][budget][rule] = [
            {name: _mean([row.get(name) for row in points]) for name in ("step", "seconds", "accuracy", "nll")}
            for points in zip(*(record["rows"] for record in records), strict=True)
        ]
        found["reliability"][budget][rule] = pooled_bins([record["reliability"] for record in records])
    return found


def pooled_bins(parts: Sequence[Mapping[str, Sequence[float | None]]]) -> dict[str, list[float | None]]:
    """Return the bins of all samples of several tests.

    Args:
        parts: `confidence`, `accuracy` and `count` of the bins of each; None in empty bins.

    Example:
        >>> one = {"confidence": [0.25, None], "accuracy": [0.0, None], "count": [1, 0]}
        >>> pooled_bins([one, {"confidence": [0.5, None], "accuracy": [1.0, None], "count": [3, 0]}])
        {'confidence': [0.4375, None], 'accuracy': [0.75, None], 'count': [4, 0]}
    """
    counts = [sum(each) for each in zip(*(part["count"] for part in parts), strict=True)]

    def mean(name: str) -> list[float | None]:
        sums = [
            sum(value * size for value, size in zip(values, sizes, strict=True) if size)
            for values, sizes in zip(
                zip(*(part[name] for part in parts), strict=True),
                zip(*(part["count"] for part in parts), strict=True),
                strict=True,
            )
        ]
        return [total / count if count else None for total, count in zip(sums, counts, strict=True)]

    return {"confidence": mean("confidence"), "accuracy": mean("accuracy"), "count": counts}


def write_tables(folder: Path, results: Mapping[str, Any]) -> None:
    """Write `comparison.json`, `.csv` and `.md` into the folder of a comparison."""
    write_json(folder / f"{NAME}.json", results)
    text = io.StringIO()
    table = csv.DictWriter(text, [*COLUMNS, "refused"], extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows([*results["rows"], *({"rule": rule, "refused": why} for rule, why in results["refused"].items())])
    write_text(folder / f"{NAME}.csv", text.getvalue())
    write_text(folder / f"{NAME}.md", markdown_of(results) + "\n")


def write_figures(folder: Path, results: Mapping[str, Any]) -> None:
    """Write the figures into the folder of a comparison."""
    for name, figure in figures_of(results).items():
        figures.save(figure, folder / f"{name}.png")


def markdown_of(results: Mapping[str, Any]) -> str:
    """Return the results as tables in Markdown, one for each budget, and the reasons of rules that were refused.

    Args:
        results: as in `comparison.json`.
    """
    settings, parts = results["settings"], []
    titles = {
        "steps": f"{settings['steps']} optimizer steps",
        "seconds": f"{settings['seconds']} seconds of training steps",
    }
    for budget in BUDGETS:
        rows = [row for row in results["rows"] if row["budget"] == budget]
        if rows:
            columns = [name for name in COLUMNS if name not in _LEFT_OUT[budget]]
            cells = [_cells(row, columns, settings["learning_rates"]) for row in rows]
            cells += [[rule, *["refused"] * (len(columns) - 1)] for rule in results["refused"]]
            table = markdown_table([COLUMNS[name][0] for name in columns], cells)
            parts.append(f"{titles[budget]}:\n\n{table}")
    if any("†" in part for part in parts):
        parts.append("† The smallest or the largest learning rate that was tried.")
    parts += [f"- {rule} was refused: {why}" for rule, why in results["refused"].items()]
    return "\n\n".join(parts)


def figures_of(results: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the figures of a comparison by name: accuracy against costs, and reliability side by side.

    Args:
        results: as in `comparison.json`.
    """
    first = [row for row in results["rows"] if row["budget"] == "steps"]
    if not first:
        return {}
    curves = results["curves"]
    panels = {
        budget: {rule: [(row[key], row["accuracy"]) for row in rows] for rule, rows in curves[budget].items()}
        for budget, key in (("steps", "step"), ("seconds", "seconds"))
    }
    # without a budget in seconds, the seconds of the runs of equal steps
    panels["seconds"] = panels["seconds"] or {
        rule: [(row["seconds"], row["accuracy"]) for row in rows] for rule, rows in curves["steps"].items()
    }
    memory = {row["rule"]: (row["peak_mb"], row["accuracy"]) for row in first}
    bins = {
        rule: (each["confidence"], each["accuracy"], each["count"])
        for rule, each in results["reliability"]["steps"].items()
        if each
    }
    drawn = {"accuracy": figures.accuracy_by_cost(panels["steps"], panels["seconds"], memory)}
    return drawn | ({"reliability": figures.reliability_diagrams(bins)} if bins else {})


def _row_of(folder: Path) -> dict[str, Any]:
    tested, last = read_options(folder / RESULTS), read_options(folder / RECORD)["rows"][-1]
    scores = {name: tested.get(key) for name, key in _TESTED.items()}
    costs = {"steps": last["step"], "passes": last["passes"], "seconds": last["seconds"]}
    return {**scores, **costs, "ms_per_step": 1e3 * last["seconds"] / last["step"]}


def _mean(values: Sequence[Any]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _cells(row: Mapping[str, Any], columns: Sequence[str], tried: Sequence[float]) -> list[str]:
    """Return the cells of a row in Markdown."""
    texts = {name: "" if row[name] is None else format(row[name], COLUMNS[name][1]) for name in columns}
    if row["learning_rate"] in (min(tried), max(tried)):
        texts["learning_rate"] += " †"
    if row["runs"] > 1:
        texts["accuracy"] += f" ({min(row['accuracies']):.3f}-{max(row['accuracies']):.3f})"
    return list(texts.values())
