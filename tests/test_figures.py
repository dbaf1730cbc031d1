"""Figures: their content, their errors, and that they leave no state behind."""

from __future__ import annotations

import doctest
import gc
import sys
import weakref
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from matplotlib import pyplot
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torchmetrics.functional.classification import multiclass_calibration_error

from lightning_snn import figures
from lightning_snn.figures import _style
from lightning_snn.metrics.functional import area_under_risk_coverage, reliability_bins, risk_coverage

RANDOM = np.random.default_rng(0)
HISTORY = {"train/loss": [(0, 2.0), (10, 1.0), (20, 0.5)], "val/loss": [(10, 1.5), (20, 0.9)], "lr": [(0, 0.1)]}
BINS = ([0.1, 0.4, float("nan"), 0.9], [0.2, 0.3, float("nan"), 0.8], [5, 10, 0, 25])
CURVES = {"entropy": ([0.5, 1.0], [0.0, 0.2]), "information": ([0.25, 0.5, 1.0], [0.1, 0.2, 0.3])}
RULES = {f"rule {index}": [(10, 0.2), (20, 0.3 + index / 50)] for index in range(8)}
LEARNERS = {"EP": [(0.2, 20.0, 0.3), (1, 100.0, 0.15)], "Adam": [(1, 2.0, 0.3), (4, 8.0, 0.2), (8, 16.0, 0.16)]}
PLACES = np.linspace(0, 3, 31)
BANDS = {
    "places": PLACES,
    "mean": np.sin(PLACES) + 0.1,
    "deviation": 0.1 + (np.abs(PLACES - 1.5) < 0.5) * 0.3,
    "truth": np.sin(PLACES),
    "samples": (PLACES[::5], np.sin(PLACES[::5])),
    "others": {"maximum likelihood": np.cos(PLACES)},
    "gaps": [(1.0, 2.0)],
}
LATENCIES = {
    "largest / k": {"latency": [40, 10, 3], "predicted": [0.96, 0.93, 0.8], "measured": [0.96, 0.94, 0.7]},
    "$optimized$": {"latency": [40, 10, 3], "measured": [0.96, float("nan"), 0.8]},
}
MEMBRANES = {
    "membranes": {"hidden": np.array([[0.5, 1.5, 0.2], [1.2, 0.9, -0.4], [0.3, 1.1, 0.9]]), "output": [[0.1], [0.7]]},
    "spikes": {"hidden": [[0, 1, 0], [1, 0, 0], [0, 1, 0]], "output": [[0], [1]]},
    "thresholds": {"hidden": 1.0, "output": [0.5]},
}
ANYTIME = [[[0.2, 0.2, 0.2, 0.2, 0.2], [0.05, 0.1, 0.7, 0.15, 0.0]]]
RATES = {"lif1": [0.0, 0.0, 0.1, 0.4], "lif2": np.linspace(0.05, 0.2, 20)}
BUILDERS = {
    "anytime_scores": lambda: figures.anytime_scores({"accuracy": [0.5, 0.9], "nll": [float("inf"), 0.3]}),
    "anytime_samples": lambda: figures.anytime_samples(ANYTIME, [2], ["a", "$b$", "c", "d", "e"], [[1.3, 0.5]]),
    "training_curves": lambda: figures.training_curves(HISTORY),
    "confusion_matrix": lambda: figures.confusion_matrix([[8, 2], [1, 9]], ["clap", "wave"]),
    "reliability_diagram": lambda: figures.reliability_diagram(*BINS),
    "reliability_diagrams": lambda: figures.reliability_diagrams({"one": BINS, "other": BINS}),
    "accuracy_by_cost": lambda: figures.accuracy_by_cost(RULES, RULES, {"rule 0": (3.0, 0.4), "rule 7": (5.0, 0.5)}),
    "accuracy_by_latency": lambda: figures.accuracy_by_latency(LATENCIES),
    "spike_raster": lambda: figures.spike_raster({"hidden": np.eye(6, 4), "output": np.ones((6, 2))}, 2.0),
    "risk_coverage_curve": lambda: figures.risk_coverage_curve(CURVES),
    "prediction_sets_over_time": lambda: figures.prediction_sets_over_time([0.91, 0.9], [3, 1.4], 0.9, (0.87, 0.92)),
    "uncertainty_histograms": lambda: figures.uncertainty_histograms({"known": [0.1, 0.2], "unknown": [0.9]}),
    "spike_time_histograms": lambda: figures.spike_time_histograms(
        {"encoder": [0.1, 0.2], "1": [0.0, 0.3, 0.2]}, {"encoder": (0, 1), "1": (1, 4)}
    ),
    "jacobian_spectra": lambda: figures.jacobian_spectra({"naive": [0.5, 30j, -2], "unit": [0.1, -0.9, 1.2]}),
    "firing_rate_histograms": lambda: figures.firing_rate_histograms(RATES),
    "likelihood_curves": lambda: figures.likelihood_curves(LEARNERS),
    "regression_bands": lambda: figures.regression_bands(**BANDS),
    "membrane_traces": lambda: figures.membrane_traces(**MEMBRANES),
    "synaptic_operations": lambda: figures.synaptic_operations(
        {"0": {"effective_acs": 3, "effective_macs": 0, "dense": 60, "ann_macs": 10}}, "a note"
    ),
    "window_errors": lambda: figures.window_errors({"$0.8$": {"linked": [(1, 0.5, 0.4), (20, 0, float("nan"))]}}),
    "event_strip": lambda: figures.event_strip(np.arange(3 * 2 * 4 * 5).reshape(3, 2, 4, 5) % 3),
}


@pytest.mark.parametrize("name", figures.__all__)
def test_every_public_function_has_an_example_with_a_value(name):
    function = getattr(figures, name)
    home = vars(sys.modules[function.__module__])
    example = doctest.DocTestParser().get_doctest(function.__doc__, dict(home), name, function.__module__, 0)
    assert any(line.want for line in example.examples)
    assert doctest.DocTestRunner().run(example).failed == 0


def pixels(figure: Figure, folder: Path) -> np.ndarray:
    return pyplot.imread(figures.save(figure, folder / "figure.png"))


@pytest.mark.parametrize("name", BUILDERS)
def test_a_figure_is_a_png_file_with_something_on_it_and_leaves_pyplot_as_it_is(name, tmp_path):
    before = dict(matplotlib.rcParams)
    picture = pixels(BUILDERS[name](), tmp_path)
    assert pyplot.get_fignums() == []
    assert dict(matplotlib.rcParams) == before
    assert min(picture.shape[:2]) > 200
    assert picture[..., :3].std() > 0.02
    with pyplot.style.context(["dark_background", {"font.size": 20, "axes.grid": True, "figure.dpi": 40}]):
        assert matplotlib.rcParams["text.color"] == "white"
        np.testing.assert_array_equal(
            pixels(BUILDERS[name](), tmp_path), picture, "it depends on the style of the calling program"
        )


def test_figures_are_freed_when_they_are_dropped(tmp_path):
    def dropped(build):
        figure = build()
        figures.save(figure, tmp_path / "figure.png")
        return weakref.ref(figure)

    references = {name: dropped(build) for name, build in BUILDERS.items()}
    gc.collect()
    assert [name for name, reference in references.items() if reference() is not None] == []


def test_matplotlib_is_imported_only_when_a_figure_is_drawn():
    for module in Path(figures.__file__).parent.glob("*.py"):
        lines = module.read_text(encoding="utf-8").splitlines()
        assert not [line for line in lines if line.startswith(("import matplotlib", "from matplotlib"))]


def test_arrays_tensors_of_any_dtype_and_lists_draw_the_same_figure(tmp_path):
    frames = (RANDOM.random((3, 2, 4, 5)) < 0.3).astype(np.uint8)
    frames.setflags(write=False)
    expected = pixels(figures.event_strip(frames), tmp_path)
    tensor = torch.tensor(frames)
    for same in (frames.tolist(), tensor, tensor.to(torch.bfloat16), tensor.float().requires_grad_()):
        np.testing.assert_array_equal(pixels(figures.event_strip(same), tmp_path), expected)
    assert not np.array_equal(pixels(figures.event_strip(1 - frames), tmp_path), expected)


# training_curves and read_history


def test_the_stages_of_a_quantity_share_a_panel():
    figure = figures.training_curves(HISTORY)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["loss", "lr"]
    train, val = figure.axes[0].lines
    assert (train.get_label(), val.get_label()) == ("train", "val")
    assert train.get_color() != val.get_color()
    np.testing.assert_array_equal(train.get_xydata(), HISTORY["train/loss"])
    np.testing.assert_array_equal(val.get_xydata(), HISTORY["val/loss"])
    assert figure.axes[0].get_legend() is not None
    assert figure.axes[1].get_legend() is None


def test_values_are_drawn_in_the_order_of_their_steps():
    figure = figures.training_curves({"loss": [(20, 1.0), (0, 3.0), (10, 2.0)]})
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_xydata(), [(0, 3.0), (10, 2.0), (20, 1.0)])


def test_more_stages_than_named_colors_still_differ_where_there_are_few():
    figure = figures.training_curves({f"{stage}/loss": [(0, 1.0)] for stage in ("train", "val", "test", "a", "b", "c")})
    assert len({line.get_color() for line in figure.axes[0].lines}) == 6


def test_a_history_with_a_diverged_loss_is_drawn(tmp_path):
    assert pixels(figures.training_curves({"loss": [(0, 1.0), (1, float("nan")), (2, float("inf"))]}), tmp_path).any()


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ({}, "`history` to hold at least one series, but got none"),
        ({"loss": []}, r"`history\['loss'\]` to be \(step, value\) pairs, but got shape \(0,\)"),
        ({"loss": [1.0, 2.0]}, r"`history\['loss'\]` to be \(step, value\) pairs, but got shape \(2,\)"),
        ({"loss": "none"}, r"`history\['loss'\]` to be \(step, value\) pairs, but got str"),
    ],
)
def test_what_is_no_history_is_refused(history, message):
    with pytest.raises(ValueError, match="Expected argument " + message):
        figures.training_curves(history)


def test_the_file_of_lightnings_csv_logger_is_read_back(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"train/loss": 2.5, "epoch": 0}, step=4)
    logger.save()
    logger.log_metrics({"val/loss": torch.tensor(0.25), "epoch": 0}, step=9)
    logger.log_metrics({"train/loss": float("nan"), "epoch": 1}, step=9)
    logger.save()
    history = figures.read_history(Path(logger.log_dir) / "metrics.csv")
    assert history.keys() == {"train/loss", "val/loss"}
    assert history["val/loss"] == [(9.0, 0.25)]
    assert history["train/loss"][0] == (4.0, 2.5)
    assert np.isnan(history["train/loss"][1][1])


def test_a_file_that_is_no_log_is_refused_by_name(tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_text("epoch,loss\n0,1\n")
    with pytest.raises(
        ValueError, match=r"Expected file .*metrics.csv to have a column `step`, but got \['epoch', 'loss'\]"
    ):
        figures.read_history(file)
    file.write_text("step,loss\n0,1\n1,high\n")
    with pytest.raises(
        ValueError, match=r"metrics.csv, line 3, to hold numbers, but got 'high' for `loss` at step '1'"
    ):
        figures.read_history(file)
    with pytest.raises(FileNotFoundError, match=r"absent\.csv"):
        figures.read_history(tmp_path / "absent.csv")


# confusion_matrix


def test_rows_of_the_confusion_matrix_are_true_classes_and_its_title_is_the_accuracy():
    figure = figures.confusion_matrix(torch.tensor([[7, 3, 0], [0, 5, 0], [0, 0, 0]]), ["a", "b", "c"])
    axes = figure.axes[0]
    assert {text.get_position(): text.get_text() for text in axes.texts} == {(0, 0): "7", (1, 0): "3", (1, 1): "5"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert axes.get_title(loc="left") == "accuracy 0.800 on 15 samples"
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.7, 0.3, 0], [0, 1, 0], [0, 0, 0]])


def test_numbers_stay_readable_on_their_cells():
    def luminance(color: tuple[float, ...]) -> float:
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in color[:3]]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    for part in (1, 20, 34, 36, 50, 99):
        axes = figures.confusion_matrix([[part, 100 - part], [0, 1]], ["a", "b"]).axes[0]
        text = next(text for text in axes.texts if text.get_position() == (0, 0))
        cell = axes.images[0].to_rgba(np.array([[part / 100]]))[0, 0]
        dark, light = sorted([luminance(to_rgb(text.get_color())), luminance(cell)])
        assert (light + 0.05) / (dark + 0.05) > 3, part


def test_a_large_confusion_matrix_has_no_numbers_and_not_every_name():
    axes = figures.confusion_matrix(np.eye(100), [f"class {label}" for label in range(100)]).axes[0]
    assert not axes.texts
    assert [label.get_text() for label in axes.get_yticklabels()][:3] == ["class 0", "class 2", "class 4"]


@pytest.mark.parametrize(
    ("matrix", "names", "message"),
    [
        ([[1, 2, 3], [4, 5, 6]], ["a", "b"], r"`matrix` to be a square .* but got shape \(2, 3\)"),
        ([[1, -2], [4, 5]], ["a", "b"], "`matrix` to be a square .* smallest entry -2"),
        ([[1, float("nan")], [4, 5]], ["a", "b"], "`matrix` to be finite"),
        ([[1, 2], [4, 5]], ["a"], "`class_names` to hold 2 names, but got 1"),
    ],
)
def test_what_is_no_confusion_matrix_is_refused(matrix, names, message):
    with pytest.raises(ValueError, match="Expected argument " + message):
        figures.confusion_matrix(matrix, names)


# reliability_diagram


def test_the_title_of_the_reliability_diagram_is_the_calibration_error_of_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.randn(500, 5, generator=generator).mul(2).softmax(dim=1)
    targets = torch.randint(5, (500,), generator=generator)
    error = multiclass_calibration_error(probabilities, targets, num_classes=5, n_bins=15, norm="l1").item()
    figure = figures.reliability_diagram(*reliability_bins(probabilities, targets))
    assert figure.axes[0].get_title(loc="left") == f"ECE {error:.3f}"
    assert error > 0.1


@pytest.mark.parametrize("place", [0, 5, 9])
def test_no_legend_of_the_reliability_diagram_lies_on_its_bars(place: int):
    filled = np.arange(10) == place
    figure = figures.reliability_diagram(
        np.where(filled, place / 10 + 0.05, np.nan), np.where(filled, 1, np.nan), filled
    )
    figure.draw_without_rendering()
    names = [{text.get_text() for text in legend.get_texts()} for legend in figure.legends]
    assert names == [
        {"accuracy", "gap to the confidence", "perfect calibration"},
        {"mean confidence", "accuracy"},
    ]
    for axes in figure.axes:
        assert axes.get_legend() is None
        assert not any(axes.get_tightbbox().overlaps(legend.get_window_extent()) for legend in figure.legends)


def test_bars_of_the_reliability_diagram_are_accuracies_gaps_and_counts_of_the_bins_with_samples():
    top, bottom = figures.reliability_diagram(*BINS).axes
    accuracy, gap = top.containers
    assert [bar.get_height() for bar in accuracy] == [0.2, 0.3, 0.8]
    np.testing.assert_allclose([bar.get_x() for bar in accuracy], [0, 0.25, 0.75])
    np.testing.assert_allclose([bar.get_y() for bar in gap], [0.1, 0.3, 0.8])
    np.testing.assert_allclose([bar.get_height() for bar in gap], [0.1, 0.1, 0.1])
    assert [bar.get_height() for bar in bottom.containers[0]] == [5, 10, 25]
    assert top.get_title(loc="left") == "ECE 0.100"


@pytest.mark.parametrize(
    ("bins", "message"),
    [
        (
            ([0.1], [0.1, 0.2], [1, 2]),
            r"`confidence`, `accuracy` and `count` to be one number for each bin, but got shapes",
        ),
        (([0.1, 0.2], [0.1, 0.2], [0, 0]), r"`count` to be bin sizes with a positive sum, but got \[0.0, 0.0\]"),
        (([0.1, 0.2], [0.1, 0.2], [2, -1]), "`count` to be bin sizes with a positive sum"),
        (([0.1, 1.2], [0.1, 0.2], [1, 1]), r"`confidence` to be within \[0, 1\] where `count` > 0"),
        (([0.1, 0.2], [0.1, float("nan")], [1, 1]), r"`accuracy` to be within \[0, 1\] where `count` > 0"),
    ],
)
def test_what_are_no_bins_is_refused(bins, message):
    with pytest.raises(ValueError, match="Expected arguments? " + message):
        figures.reliability_diagram(*bins)


# spike_raster


def boxes(axes) -> np.ndarray:
    """Left, right and middle row of each drawn spike."""
    corners = np.array([path.vertices[:4] for path in axes.collections[0].get_paths()])
    return np.stack([corners[:, :, 0].min(1), corners[:, :, 0].max(1), corners[:, :, 1].mean(1)], axis=1)


def test_every_spike_is_drawn_within_its_time_step_and_on_its_neuron():
    spikes = RANDOM.random((7, 5)) < 0.4
    axes = figures.spike_raster({"hidden": spikes}, time_step_ms=2.0).axes[0]
    drawn = boxes(axes)
    assert {(int(left // 2), round(row)) for left, _, row in drawn} == set(zip(*spikes.nonzero(), strict=True))
    assert len(drawn) == spikes.sum()
    assert all(left // 2 == right // 2 for left, right, _ in drawn)
    assert axes.get_xlim() == (0, 14)
    assert axes.get_xlabel() == "time (ms)"


def test_a_large_layer_is_subsampled_evenly_and_its_title_says_so_and_gives_the_rate_of_all():
    spikes = np.zeros((4, 991))
    spikes[1, ::10] = 1
    spikes[2, 5] = 0.5
    axes = figures.spike_raster({"conv": spikes}).axes[0]
    assert axes.get_title(loc="left") == "conv (neurons: 100 of 991), 0.025 spikes per neuron and step"
    assert len(boxes(axes)) == 100
    assert axes.get_yticklabels()[0].get_text() == "0"
    assert axes.get_yticklabels()[-1].get_text() == "990"
    assert axes.get_xlabel() == "time step"


def test_a_silent_layer_is_an_empty_panel(tmp_path):
    figure = figures.spike_raster({"silent": torch.zeros(3, 4, dtype=torch.bool), "one": torch.ones(3, 1)})
    assert len(figure.axes[0].collections[0].get_paths()) == 0
    assert len(figure.axes[1].collections[0].get_paths()) == 3
    assert pixels(figure, tmp_path).any()


@pytest.mark.parametrize(
    ("spikes", "time_step_ms", "message"),
    [
        ({}, None, "`spikes` to hold at least one layer"),
        (
            {"a": np.zeros((3, 2, 2))},
            None,
            r"`spikes\['a'\]` to be spikes of shape \(T, N\), but got shape \(3, 2, 2\)",
        ),
        ({"a": np.zeros((3, 0))}, None, r"`spikes\['a'\]` to be spikes of shape \(T, N\), but got shape \(3, 0\)"),
        ({"a": np.full((3, 2), np.nan)}, None, r"`spikes\['a'\]` to be finite, but got 6 other values"),
        ({"a": np.zeros((3, 2)), "b": np.zeros((4, 2))}, None, r"`spikes` to have the same T .* but got \[3, 4\]"),
        ({"a": np.zeros((3, 2))}, 0.0, "`time_step_ms` to be a finite number larger than 0, but got 0.0"),
    ],
)
def test_what_is_no_spike_raster_is_refused(spikes, time_step_ms, message):
    with pytest.raises(ValueError, match="Expected argument " + message):
        figures.spike_raster(spikes, time_step_ms)


# event_strip


def test_on_events_are_red_off_events_blue_and_no_events_light():
    frames = np.zeros((1, 2, 1, 4))
    frames[0, 1, 0, 0] = frames[0, 0, 0, 1] = 3
    frames[0, :, 0, 2] = 2
    on, off, both, none = figures.event_strip(frames).axes[0].images[0].get_array()[0]
    assert on[0] > on[2] + 0.4
    assert off[2] > off[0] + 0.4
    assert abs(both[0] - both[2]) < 0.1
    assert none.min() > 0.9


def test_a_single_event_is_visible_and_more_events_are_stronger_on_one_scale_for_all_frames():
    frames = np.zeros((2, 2, 8, 8))
    frames[0, 1, 0, 0] = 1
    frames[1, 1, :4] = 10
    first, second = (axes.images[0].get_array() for axes in figures.event_strip(frames).axes)
    paper, faint, full = first[7, 7, 1], first[0, 0, 1], second[0, 0, 1]
    assert paper - faint > 0.15
    assert faint - full > 0.3


def test_frames_are_labeled_with_their_time():
    axes = figures.event_strip(np.zeros((3, 2, 4, 4)), time_step_ms=62.5).axes
    assert [panel.get_title() for panel in axes] == ["0 to 62.5 ms", "62.5 to 125 ms", "125 to 187.5 ms"]
    axes = figures.event_strip(np.zeros((3, 2, 4, 4))).axes
    assert [panel.get_title() for panel in axes] == ["frame 0", "frame 1", "frame 2"]


def test_a_long_recording_is_subsampled_evenly_and_the_title_says_so():
    figure = figures.event_strip(np.ones((46, 2, 4, 4)))
    assert figure.get_suptitle() == "frames: 16 of 46, events: 1472"
    assert [panel.get_title() for panel in figure.axes] == [f"frame {3 * index}" for index in range(16)]


@pytest.mark.parametrize(
    ("frames", "time_step_ms", "message"),
    [
        (
            np.zeros((3, 1, 4, 4)),
            None,
            r"`frames` to be event counts of shape \(T, 2, H, W\), but got shape \(3, 1, 4, 4\)",
        ),
        (np.zeros((2, 4, 4)), None, r"`frames` to be event counts of shape \(T, 2, H, W\), but got shape \(2, 4, 4\)"),
        (np.full((3, 2, 4, 4), -1.0), None, "`frames` to be event counts .* smallest entry -1"),
        (np.zeros((0, 2, 4, 4)), None, r"`frames` to be event counts .* but got shape \(0, 2, 4, 4\)"),
        (np.zeros((3, 2, 4, 4)), float("inf"), "`time_step_ms` to be a finite number larger than 0"),
    ],
)
def test_what_are_no_event_frames_is_refused(frames, time_step_ms, message):
    with pytest.raises(ValueError, match="Expected argument " + message):
        figures.event_strip(frames, time_step_ms)


# save


def test_saving_makes_folders_replaces_the_older_file_and_returns_the_path(tmp_path):
    path = tmp_path / "report" / "new" / "figure.png"
    assert figures.save(_style.new_figure(1, 1), str(path)) == path
    assert pyplot.imread(path).shape[:2] == (150, 150)
    figures.save(_style.new_figure(2, 1), path)
    assert pyplot.imread(path).shape[:2] == (150, 300)
    assert [file.name for file in path.parent.iterdir()] == ["figure.png"]


def test_a_failure_while_saving_leaves_the_older_file_and_nothing_else(tmp_path):
    path = figures.save(_style.new_figure(1, 1), tmp_path / "figure.png")
    before = path.read_bytes()

    class Broken(Figure):
        def savefig(self, fname, **kwargs):
            Path(fname).write_bytes(b"half a fig")
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        figures.save(Broken(), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["figure.png"]


@pytest.mark.parametrize("name", ["figure", "figure.pdf", "figure.PNG"])
def test_a_path_that_does_not_end_in_png_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match=f"Expected argument `path` to end in .png, but got .*{name}"):
        figures.save(_style.new_figure(1, 1), tmp_path / name)


# risk_coverage_curve and uncertainty_histograms


def test_a_curve_is_drawn_as_given_with_its_area_in_the_legend():
    axes = figures.risk_coverage_curve(CURVES).axes[0]
    for line, (coverage, risk) in zip(axes.lines, CURVES.values(), strict=True):
        np.testing.assert_array_equal(line.get_xydata(), np.column_stack([coverage, risk]))
    assert [line.get_label() for line in axes.lines] == ["entropy, area 0.1", "information, area 0.23"]
    assert axes.get_xlim() == (0, 1)
    assert axes.get_ylim()[0] == 0


def test_the_area_of_a_curve_is_the_metrics():
    uncertainty, errors = torch.rand(500), torch.rand(500) < 0.3
    figure = figures.risk_coverage_curve({"entropy": risk_coverage(uncertainty, errors)})
    area = area_under_risk_coverage(uncertainty, errors)
    assert figure.axes[0].lines[0].get_label() == f"entropy, area {area:.2g}"


def test_many_curves_are_distinguishable():
    axes = figures.risk_coverage_curve({str(index): CURVES["entropy"] for index in range(24)}).axes[0]
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 24


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({}, "`curves` to hold 1 to 24 names, but got 0"),
        ({str(index): CURVES["entropy"] for index in range(25)}, "`curves` to hold 1 to 24 names, but got 25"),
        ({"a": [0.5]}, r"`curves\['a'\]` to be coverage and risk, but got \[0.5\]"),
        ({"a": ([0.5, 1.0], [0.1])}, r"`curves\['a'\]` .* shapes \(2,\) and \(1,\)"),
        ({"a": ([1.0, 0.5], [0.1, 0.1])}, r"`curves\['a'\]` to be coverages, ascending within \(0, 1\]"),
        ({"a": ([0.5, 1.5], [0.1, 0.1])}, r"`curves\['a'\]` .* coverages from 0.5 to 1.5"),
        ({"a": ([0.5, 1.0], [-0.1, 0.1])}, r"`curves\['a'\]` .* risks from -0.1"),
        ({"a": ([0.5, 1.0], [float("nan"), 0.1])}, r"`curves\['a'\]\[1\]` to be finite"),
    ],
)
def test_what_is_no_risk_coverage_curve_is_refused(curves, message):
    with pytest.raises(ValueError, match="Expected argument " + message):
        figures.risk_coverage_curve(curves)


def test_histograms_show_shares_of_each_group_on_one_axis():
    groups = {"known": RANDOM.random(200), "unknown": 1 + RANDOM.random(50)}
    panels = figures.uncertainty_histograms(groups, "entropy [nats]").axes
    for axes, (name, values) in zip(panels, groups.items(), strict=True):
        bars = axes.patches
        assert sum(bar.get_height() for bar in bars) == pytest.approx(1)
        edges = [bar.get_x() for bar in bars] + [bars[-1].get_x() + bars[-1].get_width()]
        expected = np.histogram(values, edges)[0] / len(values)
        np.testing.assert_allclose([bar.get_height() for bar in bars], expected, atol=1e-12)
        assert axes.get_title(loc="left") == f"{name}: {len(values)} samples, median {np.median(values):.2g}"
        assert axes.lines[0].get_xdata()[0] == np.median(groups["known"])
    assert panels[0].get_xlim() == panels[1].get_xlim() == (0, groups["unknown"].max())
    assert panels[1].get_xlabel() == "entropy [nats]"


def test_histograms_of_equal_values_are_drawn(tmp_path):
    assert pixels(figures.uncertainty_histograms({"known": [0.0, 0.0]}), tmp_path).any()


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({}, "`groups` to hold 1 to 6 names, but got 0"),
        ({str(index): [0.1] for index in range(7)}, "`groups` to hold 1 to 6 names, but got 7"),
        ({"a": []}, r"`groups\['a'\]` to be one number per sample, but got shape \(0,\)"),
        ({"a": [[0.1], [0.2]]}, r"`groups\['a'\]` to be one number per sample, but got shape \(2, 1\)"),
        ({"a": [float("inf")]}, r"`groups\['a'\]` to be finite"),
    ],
)
def test_what_is_no_group_of_uncertainties_is_refused(groups, message):
    with pytest.raises(ValueError, match="Expected argument " + message):
        figures.uncertainty_histograms(groups)


def test_coverage_and_size_of_sets_are_drawn_over_time_with_what_chance_gives():
    above, below = figures.prediction_sets_over_time([0.95, 0.8, 0.9], [3, 2.5, 1.4], 0.9, (0.87, 0.92)).axes
    (target, coverage), (size,) = above.lines, below.lines
    np.testing.assert_array_equal(coverage.get_xydata(), [[1, 0.95], [2, 0.8], [3, 0.9]])
    np.testing.assert_array_equal(size.get_xydata(), [[1, 3], [2, 2.5], [3, 1.4]])
    assert target.get_ydata() == [0.9, 0.9]
    (band,) = above.patches
    np.testing.assert_allclose([band.get_y(), band.get_y() + band.get_height()], [0.87, 0.92])
    low, high = above.get_ylim()
    assert low < 0.8 < 0.95 < high


@pytest.mark.parametrize(
    ("coverage", "size", "message"),
    [
        ([0.9, 1.1], [1, 2], r"`coverage` to be one number within \[0, 1\] .* values from 0.9 to 1.1"),
        ([], [], r"`coverage` .* but got shape \(0,\)"),
        ([[0.9]], [[1]], r"`coverage` .* but got shape \(1, 1\)"),
        ([0.9, float("nan")], [1, 2], "`coverage` to be finite"),
        ([0.9, 0.8], [1], r"`size` .* for each of the 2 time steps, but got shape \(1,\)"),
        ([0.9, 0.8], [1, -1], "`size` to be one number of at least 0 .* values from -1 to 1"),
    ],
)
def test_what_is_no_coverage_or_size_of_sets_is_refused(coverage, size, message):
    with pytest.raises(ValueError, match="Expected argument " + message):
        figures.prediction_sets_over_time(coverage, size, 0.9, (0.87, 0.92))


def test_a_spike_time_histogram_lies_in_its_window():
    rates = {"encoder": [0.1, 0.2], "1": torch.tensor([0.0, 0.3, 0.2])}
    figure = figures.spike_time_histograms(rates, {"encoder": (0.0, 1.0), "1": (1.0, 4.0)})
    first, second = figure.axes
    assert first.get_title("left") == "encoder, 0.300 spikes per neuron"
    assert second.get_title("left") == "1, 0.500 spikes per neuron"
    (stairs,) = (patch for patch in second.patches if hasattr(patch, "get_data"))
    np.testing.assert_allclose(stairs.get_data().edges, [1, 2, 3, 4])
    np.testing.assert_allclose(stairs.get_data().values, [0, 30, 20], rtol=1e-6)
    assert first.get_xlim() == second.get_xlim() == (0, 4)


def test_accuracies_of_windows_are_drawn_in_percent_by_latency():
    (axes,) = figures.accuracy_by_latency(LATENCIES).axes
    assert [line.get_label() for line in axes.lines] == [
        "largest / k, predicted",
        "largest / k, measured",
        r"\$optimized\$, measured",
    ]
    for line, expected in zip(axes.lines, ([96, 93, 80], [96, 94, 70], [96, 80]), strict=True):
        np.testing.assert_allclose(line.get_xdata(), [40, 10, 3] if len(expected) == 3 else [40, 3])
        np.testing.assert_allclose(line.get_ydata(), expected)
    assert axes.get_xscale() == "log"
    # a kind of accuracy has one line style, a choice of windows one color
    styles, colors = ([getattr(line, f"get_{name}")() for line in axes.lines] for name in ("linestyle", "color"))
    assert styles[1] == styles[2] != styles[0]
    assert colors[0] == colors[1] != colors[2]


def test_eigenvalues_keep_their_phase_and_get_logarithmic_outside_the_unit_circle():
    values = torch.tensor([0.5 + 0j, 100j, -10 + 0j])
    (axes,) = figures.jacobian_spectra({"naive": values}).axes
    inside, outside = (points.get_offsets() for points in axes.collections)
    np.testing.assert_allclose(inside, [[0.5, 0]])
    np.testing.assert_allclose(outside, [[0, 3], [-2, 0]], atol=1e-12)
    assert axes.get_title("left") == "naive\nlargest 100, 66.7 % outside"


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: figures.spike_time_histograms({}, {}), "`spikes` to hold at least one layer"),
        (lambda: figures.spike_time_histograms({"a": [[1.0]]}, {"a": (0, 1)}), r"shape .bins,., at least 0, but got"),
        (lambda: figures.spike_time_histograms({"a": [-1.0]}, {"a": (0, 1)}), "smallest entry -1"),
        (lambda: figures.spike_time_histograms({"a": [1.0]}, {}), "`windows` to hold the start and the end of 'a'"),
        (lambda: figures.spike_time_histograms({"a": [1.0]}, {"a": (1, 1)}), "the end of 'a', but got .1, 1."),
        (lambda: figures.accuracy_by_latency({}), "`curves` to hold at least one choice of windows"),
        (lambda: figures.accuracy_by_latency({"a": {"latency": [1, 2]}}), r"`curves\['a'\]` to be latencies and acc"),
        (lambda: figures.accuracy_by_latency({"a": {"measured": [1, 2], "predicted": [1, 2]}}), "to be latencies"),
        (lambda: figures.accuracy_by_latency({"a": {"latency": [1, 2], "measured": [0.5]}}), r"measured.* \(1,\)"),
        (lambda: figures.jacobian_spectra({}), "`panels` to hold at least one network"),
        (lambda: figures.jacobian_spectra({"a": []}), "to be eigenvalues, but got shape .0,."),
        (lambda: figures.jacobian_spectra({"a": [float("nan")]}), "to be finite"),
    ],
)
def test_spike_times_and_spectra_that_cannot_be_drawn_are_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_likelihood_is_drawn_against_epochs_and_against_seconds():
    figure = figures.likelihood_curves(LEARNERS, held_out="validation")
    for column, axes in enumerate(figure.axes):
        assert [line.get_label() for line in axes.lines] == list(LEARNERS)
        for line, rows in zip(axes.lines, LEARNERS.values(), strict=True):
            np.testing.assert_allclose(line.get_xydata(), np.array(rows)[:, [column, 2]])
        assert axes.get_xscale() == axes.get_yscale() == "log"
    assert "epochs" in figure.axes[0].get_xlabel()
    assert figure.axes[1].get_xlabel() == "seconds"
    assert figure.axes[0].get_ylabel().startswith("validation")


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({}, "1 to 5 learners, but got 0"),
        ({str(name): LEARNERS["EP"] for name in range(6)}, "1 to 5 learners, but got 6"),
        ({"EP": [(0, 1.0, 0.3)]}, r"`curves\['EP'\]` to be rows .* smallest entry 0"),
        ({"EP": [1.0, 2.0, 3.0]}, r"`curves\['EP'\]` to be rows .* got shape \(3,\)"),
    ],
)
def test_likelihood_curves_refuse_what_they_cannot_draw(curves, message):
    with pytest.raises(ValueError, match=message):
        figures.likelihood_curves(curves)


def test_the_band_is_two_standard_deviations_wide_and_the_gap_is_shaded():
    axes = figures.regression_bands(**BANDS).axes[0]
    corners = axes.collections[0].get_paths()[0].vertices
    for place, mean, deviation in zip(PLACES, BANDS["mean"], BANDS["deviation"], strict=True):
        heights = corners[np.isclose(corners[:, 0], place), 1]
        assert heights.max() == pytest.approx(mean + 2 * deviation)
        assert heights.min() == pytest.approx(mean - 2 * deviation)
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    np.testing.assert_array_equal(lines["truth"], BANDS["truth"])
    np.testing.assert_array_equal(lines["maximum likelihood"], BANDS["others"]["maximum likelihood"])
    (shade,) = (patch for patch in axes.patches if patch.get_label() == "no data")
    assert (shade.get_x(), shade.get_width()) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": [1.0]}, r"`mean` to have the same shape \(N,\) as `places`, \(31,\), but got \(1,\)"),
        ({"deviation": -PLACES}, "`deviation` to be at least 0, but got -3"),
        ({"others": {str(name): PLACES for name in range(4)}}, "`others` to hold at most 3 predictions, but got 4"),
        (
            {"samples": ([0.0, 1.0], [0.0])},
            r"`samples` to hold two arrays of the same shape, but got \(2,\) and \(1,\)",
        ),
    ],
)
def test_regression_bands_refuse_what_they_cannot_draw(change, message):
    with pytest.raises(ValueError, match=message):
        figures.regression_bands(**{**BANDS, **change})


# membrane_traces


def lines_of(axes):
    return {line.get_label(): line for line in axes.lines}


def test_membranes_are_drawn_in_the_middle_of_their_steps_with_threshold_and_spikes():
    hidden, output = figures.membrane_traces(**MEMBRANES, time_step_ms=2.0).axes
    lines = lines_of(hidden)
    assert list(lines) == ["threshold", "neuron 1", "neuron 0", "neuron 2"]  # by activity, then by nearness
    for neuron in range(3):
        time, membrane = lines[f"neuron {neuron}"].get_data()
        np.testing.assert_array_equal(time, [1, 3, 5])
        np.testing.assert_array_equal(membrane, MEMBRANES["membranes"]["hidden"][:, neuron])
    assert set(lines["threshold"].get_ydata()) == {1.0}
    ticks = [[segment[0, 0] for segment in each.get_segments()] for each in hidden.collections]
    assert ticks == [[1, 5], [3], []]
    heights = [segment[:, 1].min() for each in hidden.collections for segment in each.get_segments()]
    assert min(heights) > 1.5  # above all membranes
    assert hidden.get_title("left") == "hidden: 2 of 3 neurons spiked"
    assert output.get_title("left") == "output: 1 of 1 neurons spiked"
    assert (hidden.get_xlim(), output.get_xlim()) == ((0, 6), (0, 4))
    assert output.get_xlabel() == "time (ms)"


def test_neurons_are_drawn_from_the_most_to_the_least_active():
    spikes = np.tril(np.ones((8, 9)))[:, ::-1]  # neuron n spikes n times, but the first never
    drawn = figures.membrane_traces({"a": spikes - 1}, {"a": spikes}, {"a": None}, neurons=3).axes[0]
    assert list(lines_of(drawn)) == ["neuron 8", "neuron 4", "neuron 1"]
    few = spikes * (np.arange(9) == 4)
    membranes = few + 0.1 * np.arange(9)
    drawn = figures.membrane_traces({"a": membranes}, {"a": few}, {"a": 2.0}, neurons=3).axes[0]
    assert list(lines_of(drawn)) == ["threshold", "neuron 4", "neuron 8", "neuron 7"]


def test_thresholds_that_differ_are_drawn_in_the_colors_of_their_neurons():
    axes = figures.membrane_traces({"a": np.zeros((3, 2))}, {"a": np.zeros((3, 2))}, {"a": [1.0, 2.0]}).axes[0]
    solid = {line.get_color(): line.get_label() for line in axes.lines if line.get_linestyle() == "-"}
    dashed = {solid[line.get_color()]: line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"}
    assert dashed == {"neuron 0": 1.0, "neuron 1": 2.0}


def test_membranes_that_are_not_finite_are_left_out(tmp_path):
    values = np.full((4, 2), np.nan)
    assert pixels(figures.membrane_traces({"a": values}, {"a": np.zeros((4, 2))}, {"a": 1.0}), tmp_path).any()
    values[0, 0] = np.inf
    values[1:, 0] = 0.5
    axes = figures.membrane_traces({"a": values}, {"a": np.zeros((4, 2))}, {"a": 1.0}).axes[0]
    assert np.isfinite(axes.get_ylim()).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"membranes": {}}, "`membranes` to hold at least one layer, but got none"),
        ({"neurons": 6}, "`neurons` to be at most 5, but got 6"),
        ({"neurons": 0}, "`neurons` to be an integer of at least 1, but got 0"),
        ({"time_step_ms": -1.0}, "`time_step_ms` to be a finite number larger than 0"),
        ({"membranes": {"other": [[1.0]]}}, "`spikes` to hold the layer 'other', but got .'hidden', 'output'."),
        (
            {"membranes": {"hidden": np.zeros(3)}},
            r"`membranes\['hidden'\]` to be membrane potentials of shape \(T, N\)",
        ),
        ({"spikes": {"hidden": np.zeros((3, 2)), "output": [[0], [1]]}}, r"of shape \(3, 3\), but got shape \(3, 2\)"),
        (
            {"thresholds": {"hidden": [1.0, 2.0], "output": 1.0}},
            r"a number or of shape \(3,\) or \(3, 3\), but got shape \(2,\)",
        ),
    ],
)
def test_what_are_no_membranes_is_refused(change, message):
    with pytest.raises(ValueError, match="Expected argument .*" + message):
        figures.membrane_traces(**{**MEMBRANES, **change})


def test_neurons_that_never_fire_have_a_separate_bar_next_to_the_histogram():
    figure = figures.firing_rate_histograms(RATES, bins=4)
    for axes, rates in zip(figure.axes, RATES.values(), strict=True):
        (stairs,), rates = axes.patches[:1], np.asarray(rates)
        (dead,) = (patch for patch in axes.patches if patch is not stairs)
        np.testing.assert_allclose(stairs.get_data().edges, [0, 0.1, 0.2, 0.3, 0.4])
        assert dead.get_height() == pytest.approx(100 * np.mean(rates == 0))
        assert dead.get_x() + dead.get_width() < 0
        assert stairs.get_data().values.sum() + dead.get_height() == pytest.approx(100)
    assert figure.axes[0].get_title(loc="left") == "lif1 (neurons: 4), mean rate 0.125, 50 % never fire"
    assert figure.axes[1].get_title(loc="left") == "lif2 (neurons: 20), mean rate 0.125, 0 % never fire"


def test_a_silent_network_can_be_drawn():
    figure = figures.firing_rate_histograms({"lif": torch.zeros(3, 4)})
    assert figure.axes[0].get_title(loc="left") == "lif (neurons: 12), mean rate 0.000, 100 % never fire"


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({}, "`rates` to hold at least one layer, but got none"),
        ({"lif": [0.5, 1.5]}, r"`rates\['lif'\]` to be within \[0, 1\], but got 0.5 to 1.5"),
        ({"lif": []}, r"`rates\['lif'\]` to be firing rates, but got shape \(0,\)"),
    ],
)
def test_what_are_no_firing_rates_is_refused(rates, message):
    with pytest.raises(ValueError, match=message):
        figures.firing_rate_histograms(rates)


def test_anytime_scores_are_drawn_against_the_steps_that_were_seen():
    figure = figures.anytime_scores({"accuracy": [0.25, 0.5, 0.75], "ece": [0.5, np.nan, 0.1]})
    top, bottom = figure.axes
    np.testing.assert_array_equal(top.lines[0].get_xydata(), [[1, 0.25], [2, 0.5], [3, 0.75]])
    np.testing.assert_array_equal(bottom.lines[0].get_ydata(), [0.5, np.nan, 0.1])
    assert bottom.get_xlabel() == "time steps seen"


def test_anytime_samples_show_probabilities_above_entropies():
    first, second = np.array(ANYTIME[0]), np.array([[0.5, 0.5, 0, 0, 0], [0.0, 1.0, 0.0, 0.0, 0.0]])
    information = [[1.5, 0.5], [0.25, 0.0]]
    figure = figures.anytime_samples([first, second], [2, 0], list("abcde"), information)
    top, other, bottom, other_bottom = figure.axes
    titles = [axes.get_title(loc="left") for axes in (top, other)]
    assert titles == ["sample 1: c", "sample 2: a (missed)"]
    lines = {line.get_label(): line for line in top.lines}
    assert to_rgb(lines["c"].get_color()) == to_rgb(_style.GREEN)
    np.testing.assert_array_equal(lines["c"].get_ydata(), first[:, 2])
    # the three most probable others, by their peak, are named; the fourth is gray
    assert {name for name in lines if not name.startswith("_")} == {"c", "a", "b", "d"}
    gray = [line for line in top.lines if to_rgb(line.get_color()) == to_rgb(_style.FAINT)]
    np.testing.assert_array_equal(gray[0].get_ydata(), first[:, 4])
    entropy = [-sum(p * np.log(p) for p in row if p) for row in first]
    np.testing.assert_allclose(bottom.lines[0].get_ydata(), entropy, atol=1e-12)
    np.testing.assert_allclose(other_bottom.lines[0].get_ydata(), [np.log(2), 0], atol=1e-12)
    np.testing.assert_array_equal(bottom.lines[1].get_ydata(), information[0])


def test_anytime_samples_without_several_predictions_have_one_entropy():
    _, bottom = figures.anytime_samples(ANYTIME, [2], list("abcde")).axes
    assert [line.get_label() for line in bottom.lines] == ["entropy"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((ANYTIME, [2, 1], list("abcde")), "of 2 targets and 5 class names, but got shape"),
        ((ANYTIME, [2], list("abc")), "of 1 targets and 3 class names"),
        ((2 * np.array(ANYTIME), [2], list("abcde")), "sum to 1 over the classes, but got .* sums from 2 to 2"),
        ((ANYTIME, [5], list("abcde")), "argument `targets` to be classes from 0 to 4"),
        ((ANYTIME, [2], list("abcde"), [[1.0]]), r"argument `expected_entropy` to be of shape \(1, 2\)"),
    ],
)
def test_bad_samples_of_an_anytime_figure_are_refused(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        figures.anytime_samples(*arguments)


@pytest.mark.parametrize("scores", [{}, {"a": [1.0], "b": [1.0, 2.0]}, {"a": [[1.0]]}])
def test_scores_of_no_common_length_are_refused(scores):
    with pytest.raises(ValueError, match="Expected argument `scores`"):
        figures.anytime_scores(scores)


def test_names_with_dollar_signs_are_drawn_as_they_are(tmp_path):
    names = ["$\\frac$", "$"]
    figures.save(figures.confusion_matrix([[1, 0], [0, 1]], names), tmp_path / "matrix.png")
    figures.save(figures.training_curves({"$\\no$/$\\such$": [(0, 1.0)]}), tmp_path / "curves.png")
    figure = figures.anytime_samples([[[0.5, 0.5], [1.0, 0.0]]], [0], names)
    figures.save(figure, tmp_path / "samples.png")
    assert _style.plain("$") == "\\$"


# window_errors


def test_predicted_errors_are_lines_and_measured_ones_circles_of_the_same_color():
    rows = [(1, 0.5, 0.45), (10, 0.2, 0.25)]
    figure = figures.window_errors({"a": {"linked": rows, "detached": [(1, 0.5, 0.4)]}, "b": {"detached": rows}})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a", "b"]
    line, circles = figure.axes[0].lines[:2]
    np.testing.assert_array_equal(line.get_xydata(), [(1, 0.5), (10, 0.2)])
    np.testing.assert_array_equal(circles.get_xydata(), [(1, 0.45), (10, 0.25)])
    assert line.get_color() == circles.get_color() != figure.axes[1].lines[0].get_color()
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["1", "10"]


@pytest.mark.parametrize(
    ("panels", "message"),
    [
        ({}, "`panels` to hold at least one series each, but got none"),
        ({"a": {"linked": [(1, 0.5)]}}, r"`panels\['a'\]\['linked'\]` to be triples of K"),
        ({"a": {"linked": [(0, 0.5, 0.5)]}}, r"`panels\['a'\]\['linked'\]` to be triples of K"),
        ({"a": {"linked": [(1, -0.5, 0.5)]}}, r"`panels\['a'\]\['linked'\]` to be triples of K"),
    ],
)
def test_what_are_no_errors_by_windows_is_refused(panels, message):
    with pytest.raises(ValueError, match="Expected argument " + message):
        figures.window_errors(panels)
