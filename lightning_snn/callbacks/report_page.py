"""Page of a run: its results, figures, configuration, commands, and what to cite, in one HTML file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_snn.callbacks.html import Markup, code, element, folded, joined, page, picture, table
from lightning_snn.command_line import flat_options

LABELS = {
    "accuracy": ("accuracy", ".4f"),
    "pair_accuracy": ("within-pair direction accuracy", ".4f"),
    "nll": ("negative log-likelihood (nats)", ".4f"),
    "ece": ("expected calibration error", ".4f"),
    "mse": ("mean squared error", ".4g"),
    "hardware/accuracy_unconstrained": ("validation accuracy without constraints", ".4f"),
    "hardware/accuracy_before": ("validation accuracy under constraints", ".4f"),
    "hardware/accuracy_after": ("validation accuracy after fine-tuning", ".4f"),
    "spikes_per_neuron": ("spikes per neuron", ".4f"),
    "latency": ("latency (input windows)", ".3f"),
    "spikes_per_neuron_per_step": ("spikes per neuron per step", ".4f"),
    "synaptic_operations_per_sample": ("synaptic operations per sample", ".3g"),
}
"""labels and formats of metrics by their name in `metrics.json`"""

_MORE_LABELS = {
    "brier": "Brier score",
    "seconds/data": "seconds until the data were set up",
    "seconds/training": "seconds of training and validation",
    "seconds/total": "seconds in all",
}
_CAPTIONS = {
    "training_curves": "Every metric that the module and its callbacks logged, against the optimizer step.",
    "confusion_matrix": "True and predicted classes of the test samples.",
    "reliability": "Accuracy by confidence, above the number of samples. Gaps to the diagonal are miscalibration.",
    "raster": "Spikes of the first test sample.",
    "events": "Events of the first test sample.",
    "anytime_scores": "Scores of the prediction after each time step.",
    "anytime_samples": (
        "Class probabilities after each time step, above their entropy, of the first test sample of each class, at "
        "most four. With a method that predicts by several samples, the shaded part of the entropy is the mutual "
        "information of class and model, which more training data would reduce."
    ),
}
_ANYTIME = ("anytime_scores", "anytime_samples")
# entries of `metrics.json` that are numbers, but no scores
_NOT_SCORES = ("seed",)


@dataclass(frozen=True)
class RunContent:
    """Content of the page of a run.

    Attributes:
        name: name of the run, such as its folder.
        results: content of its `metrics.json`.
        figures: content of PNG files by name, in the order of the page.
        model_summary: table of its modules.
    """

    name: str
    results: Mapping[str, Any]
    figures: Mapping[str, bytes] = field(default_factory=dict)
    model_summary: str = ""

    @property
    def title(self) -> str:
        """Method, network and data, if a recipe has named them, or else the name."""
        chosen = [str(self.results[name]) for name in ("method", "network", "data") if name in self.results]
        return f"{' · '.join(chosen)}, seed {self.results.get('seed', '?')}" if len(chosen) == 3 else self.name

    @property
    def options(self) -> dict[str, str]:
        """Options of the run as text, by dotted names."""
        options = self.results.get("hyperparameters") or {}
        return {name: as_text(value) for name, value in flat_options(options).items()}


def run_page(run: RunContent) -> str:
    """Return the page of a run.

    Example:
        >>> text = run_page(RunContent("run <1>", {"accuracy": 0.9}))
        >>> "run &lt;1&gt;" in text, "0.9000" in text, "<script" in text
        (True, True, False)
    """
    sections = {
        "Results": _results(run),
        "Over time": _over_time(run),
        "Figures": figures_of(run, [name for name in run.figures if name not in _ANYTIME]),
        "Classes": _classes(run.results),
        "Configuration": _configuration(run),
        "Repeat and resume": _repeat(run.results.get("commands") or {}),
        "Cite": code_of_citations([run.results]),
        "Model": code(run.model_summary) if run.model_summary else None,
    }
    return page(
        run.title,
        [(heading, content) for heading, content in sections.items() if content is not None],
        element("p", run.name, class_="soft") if run.title != run.name else None,
    )


def scores(results: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the numbers among the results by name, those of labeled metrics first; None is not finite.

    Example:
        >>> scores({"seconds": {"total": 3.5}, "nll": 0.25, "method": "SpikingBayes"})
        {'nll': 0.25, 'seconds/total': 3.5}
    """
    found = {name: results[name] for name in (*LABELS, *results) if name in results and name not in _NOT_SCORES}
    seconds = results.get("seconds")
    if isinstance(seconds, Mapping):
        found |= {f"seconds/{part}": value for part, value in seconds.items()}
    return {name: value for name, value in found.items() if value is None or _is_number(value)}


def score_as_text(name: str, value: float | None) -> str:
    """Return a score in the format of its metric; a dash if it is not finite or missing."""
    _, form = LABELS.get(name, ("", ".4g"))
    return "–" if value is None else format(value, form)


def label(name: str) -> str:
    """Return the label of a score."""
    return LABELS[name][0] if name in LABELS else _MORE_LABELS.get(name, name.replace("_", " "))


def as_text(value: object) -> str:
    """Return an option as in a configuration file."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def plain_data(value: object) -> Any:
    """Return hyperparameters as numbers, texts, lists and dicts; other objects become texts.

    Example:
        >>> plain_data({"sizes": (3, 5), "kind": int})
        {'sizes': [3, 5], 'kind': "<class 'int'>"}
    """
    if isinstance(value, Mapping):
        return {str(name): plain_data(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_data(part) for part in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def caption(name: str) -> str:
    """Return the caption of a figure; figures of later test loaders end with a number."""
    found = re.fullmatch(r"(.*?)(?:_(\d+))?", name)
    assert found is not None
    base, number = found.groups()
    text = _CAPTIONS.get(base)
    if text is None:
        return name.replace("_", " ")
    return text if number is None else f"{text} Test loader {number}."


def figures_of(run: RunContent, names: list[str]) -> Markup | None:
    """Return figures one after the other, or None without any."""
    if not names:
        return None
    return element("div", *(picture(name, run.figures[name], caption(name)) for name in names), class_="figures")


def code_of_citations(runs: Sequence[Mapping[str, Any]]) -> Markup:
    """Return the publications of the methods of runs in BibTeX, each once, from the results of the runs."""
    citations = dict.fromkeys(str(results["citation"]) for results in runs if results.get("citation"))
    if not citations:
        return element("p", "The module has no method that names its publication.")
    return joined([element("p", "The publication of the method, in BibTeX:"), code("\n\n".join(citations))])


def why_no_anytime(results: Mapping[str, Any]) -> str | None:
    """Return why a run has no anytime predictions; None if it has some."""
    anytime = results.get("anytime")
    if anytime is None:
        return "the run was tested without them"
    return str(anytime["missing"]) if "missing" in anytime else None


def _results(run: RunContent) -> Markup:
    rows = [[label(name), score_as_text(name, value)] for name, value in scores(run.results).items()]
    parts = [table(["quantity", "value"], rows, numbers=(1,))]
    layers = run.results.get("spikes_per_neuron_per_step_by_layer")
    if layers:
        listed = table(["layer", "spikes per neuron per step"], [list(item) for item in layers.items()])
        parts.append(folded("Spikes by layer", listed))
    uncounted = run.results.get("layers_without_counted_operations")
    if uncounted:
        parts.append(element("p", f"Synaptic operations are not counted in: {as_text(uncounted)}", class_="soft"))
    return joined(parts)


def _over_time(run: RunContent) -> Markup:
    reason = why_no_anytime(run.results)
    if reason is not None:
        return element("p", f"There are no anytime predictions: {reason}.")
    anytime = run.results["anytime"]
    rows = [list(row.values()) for row in anytime["steps"]]
    text = (
        f"Predictions of the first {anytime['samples']} test samples from the time steps so far. Noise is drawn anew, "
        "so the last step of a method with noise may differ from the results of the test."
    )
    drawn = figures_of(run, [name for name in _ANYTIME if name in run.figures])
    numbers = folded("Numbers", table(list(anytime["steps"][0]), rows))
    return joined([element("p", text), drawn or "", numbers])


def _classes(results: Mapping[str, Any]) -> Markup | None:
    names = [name for name in results if re.fullmatch(r"per_class(_\d+)?", name) and results[name]]
    if not names:
        return None
    parts: list[Markup] = []
    for name in names:
        if name != "per_class":
            parts.append(element("h3", f"Test loader {name.rpartition('_')[2]}"))
        parts.append(table(list(results[name][0]), [list(row.values()) for row in results[name]]))
    return joined(parts)


def _configuration(run: RunContent) -> Markup:
    options = run.options
    parts = [table(["option", "value"], [list(item) for item in options.items()])] if options else []
    versions = run.results.get("versions")
    if isinstance(versions, Mapping):
        parts += [element("h3", "Versions"), table(["package", "version"], [list(item) for item in versions.items()])]
    return joined(parts) if parts else element("p", "The module has no hyperparameters that were saved.")


def _repeat(commands: Mapping[str, str]) -> Markup:
    if not commands:
        return element(
            "p", "The run was started in an interactive interpreter, so there is no command that repeats it."
        )
    return joined(joined([element("p", purpose), code(command)]) for purpose, command in commands.items())


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
