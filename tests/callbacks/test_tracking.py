from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import wandb
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from matplotlib.figure import Figure

from lightning_snn.callbacks.tracking import (
    log_figure,
    log_histogram,
    log_page,
    log_table,
    log_text,
    logged_figures,
    may_write,
    output_folder,
)
from tests.support import training
from tests.support.wandb_runs import WandbRun

COLUMNS, ROWS = ["class", "accuracy"], [["a|b", 0.5], ['c, "d"', None]]
COUNTS, EDGES = [2.0, 0.0, 6.0], [0.0, 1.0, 2.0, 4.0]


class Calls:
    """Experiment that records its calls."""

    def __init__(self) -> None:
        self.made: list[tuple[str, tuple, dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **options: self.made.append((name, arguments, options))


class StubTensorBoard(TensorBoardLogger):
    """TensorBoard's logger without its package."""

    def __init__(self) -> None:
        self.calls = Calls()

    @property
    def experiment(self) -> Any:
        return self.calls


class StubWandb(WandbLogger):
    def __init__(self) -> None:
        self.logged: list[tuple[dict[str, Any], int | None]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.logged.append((dict(metrics), step))


def trainer(*loggers: Logger, **options: Any) -> pl.Trainer:
    made = training.trainer(*options.pop("callbacks", ()), logger=list(loggers) or False, **options)
    made.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = 7
    assert made.global_step == 7
    return made


def on_another_process(monkeypatch: pytest.MonkeyPatch, *loggers: Logger) -> pl.Trainer:
    made = trainer(*loggers)
    monkeypatch.setattr(type(made.strategy), "is_global_zero", property(lambda self: False))
    assert not made.is_global_zero
    return made


def figure() -> Figure:
    drawn = Figure(figsize=(1, 1))
    drawn.subplots().plot([0, 1])
    return drawn


def log_everything(trainer: pl.Trainer, folder: Path) -> tuple[Path | None, Path | None]:
    picture = log_figure(trainer, "picture", figure(), folder)
    log_histogram(trainer, "rates/layer", COUNTS, EDGES)
    table = log_table(trainer, "table", COLUMNS, ROWS, folder)
    log_text(trainer, "text", "a < b\n  c")
    return picture, table


@pytest.mark.parametrize("loggers", [[], ["csv"], ["tensorboard", "csv", "wandb", "tensorboard"]])
def test_files_are_the_same_with_any_loggers(tmp_path: Path, loggers: list[str]) -> None:
    kinds = {"csv": lambda: CSVLogger(tmp_path / "logs"), "tensorboard": StubTensorBoard, "wandb": StubWandb}
    folder = tmp_path / "new" / "folder"
    picture, table = log_everything(trainer(*(kinds[name]() for name in loggers)), folder)
    assert (picture, table) == (folder / "picture.png", folder / "table.csv")
    assert sorted(path.name for path in folder.iterdir()) == ["picture.png", "table.csv"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    with table.open(newline="") as lines:
        assert list(csv.reader(lines)) == [COLUMNS, ["a|b", "0.5"], ['c, "d"', ""]]
    assert not (tmp_path / "logs").exists()


def test_a_process_that_does_not_write_returns_no_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loggers = StubTensorBoard(), StubWandb()
    elsewhere = on_another_process(monkeypatch, *loggers)
    assert not may_write(elsewhere)
    assert log_everything(elsewhere, tmp_path) == (None, None)
    assert not list(tmp_path.iterdir())
    assert not loggers[0].calls.made
    assert not loggers[1].logged


def test_a_fast_dev_run_writes_nothing(tmp_path: Path) -> None:
    made = pl.Trainer(accelerator="cpu", logger=StubWandb(), fast_dev_run=True, default_root_dir=tmp_path)
    assert isinstance(made.logger, DummyLogger)
    assert not may_write(made)
    log_everything(made, tmp_path / "folder")
    assert not list(tmp_path.iterdir())
    assert may_write(trainer())


def test_the_folder_of_a_run_is_that_of_its_logger_or_else_the_trainer_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    assert output_folder(trainer(default_root_dir=root)) == root
    csv_logger, named = CSVLogger(tmp_path / "logs"), CSVLogger(tmp_path, name="", version="of a day")
    assert output_folder(trainer(csv_logger, default_root_dir=root)) == Path(csv_logger.log_dir)
    assert output_folder(trainer(named, csv_logger)) == tmp_path / "of a day"
    wandb_logger = WandbLogger(save_dir=tmp_path, project="project", id="1a2b")
    checkpoints = ModelCheckpoint()
    made = trainer(wandb_logger, callbacks=[checkpoints], enable_checkpointing=True)
    checkpoints.setup(made, pl.LightningModule(), "fit")
    assert output_folder(made) == Path(checkpoints.dirpath).parent == tmp_path / "project" / "1a2b"
    remote = CSVLogger(tmp_path, version=0)
    monkeypatch.setattr(type(remote), "save_dir", "s3://bucket")
    assert output_folder(trainer(remote, default_root_dir=root)) == root
    assert not list(tmp_path.iterdir())


def test_files_of_another_run_are_kept_in_the_folder_of_the_run(tmp_path: Path) -> None:
    first, second = (trainer(default_root_dir=tmp_path) for _ in range(2))
    paths = [log_table(made, "table", COLUMNS, ROWS) for made in (first, second, first, second)]
    assert paths == [tmp_path / name for name in ("table.csv", "table-1.csv", "table.csv", "table-1.csv")]
    assert log_figure(second, "picture", figure()) == tmp_path / "picture.png"
    assert log_table(trainer(), "table", COLUMNS, ROWS, tmp_path) == tmp_path / "table.csv"  # a folder of the user's
    assert {path.name for path in tmp_path.iterdir()} == {"table.csv", "table-1.csv", "picture.png"}


def test_tensorboard_gets_each_kind_at_the_trainer_s_step(tmp_path: Path) -> None:
    loggers = [StubTensorBoard(), StubTensorBoard()]
    log_everything(trainer(*loggers), tmp_path)
    for logger in loggers:
        picture, histogram, table, text = logger.calls.made
        assert picture[0] == "add_figure"
        assert (picture[1][0], picture[1][2]) == ("report/picture", 7)
        assert isinstance(picture[1][1], Figure)
        assert table == ("add_text", ("report/table", MARKDOWN, 7), {})
        assert text == ("add_text", ("report/text", "    a < b\n      c", 7), {})
        assert histogram[:2] == ("add_histogram_raw", ("report/rates/layer",))
        # centers .5, 1.5 and 3: 2 * .5 + 6 * 3 and 2 * .25 + 6 * 9
        sums = {"num": 8, "sum": 19, "sum_squares": 54.5, "min": 0, "max": 4}
        right_edges = {"bucket_limits": EDGES, "bucket_counts": [0, *COUNTS]}
        assert histogram[2] == {**sums, **right_edges, "global_step": 7}


MARKDOWN = """\
| class | accuracy |
| --- | --- |
| a\\|b | 0.5 |
| c, "d" |  |"""


def test_wandb_gets_each_kind_with_lightning_s_step(tmp_path: Path) -> None:
    logger = StubWandb()
    log_everything(trainer(logger), tmp_path)
    found = {key: value for metrics, step in logger.logged for key, value in metrics.items()}
    assert [step for _, step in logger.logged] == [7] * 4
    assert list(found) == ["report/picture", "report/rates/layer", "report/table", "report/text"]
    (picture,) = found["report/picture"]
    assert isinstance(picture, wandb.Image)
    histogram = found["report/rates/layer"]
    assert (list(histogram.histogram), list(histogram.bins)) == (COUNTS, EDGES)
    assert (found["report/table"].columns, found["report/table"].data) == (COLUMNS, ROWS)
    assert isinstance(found["report/text"], wandb.Html)


def test_pages_are_files_and_go_to_wandb_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = "<!DOCTYPE html>\n<html><body>ü</body></html>\n"
    board, logger = StubTensorBoard(), StubWandb()
    path = log_page(trainer(board, logger), "report", page, tmp_path / "new")
    assert path == tmp_path / "new" / "report.html"
    assert path.read_text(encoding="utf-8") == page
    assert not board.calls.made
    ((metrics, step),) = logger.logged
    assert (list(metrics), step) == (["report/report"], 7)
    assert isinstance(metrics["report/report"], wandb.Html)
    assert metrics["report/report"].html == page
    assert log_page(on_another_process(monkeypatch, logger), "other", page, tmp_path) is None
    assert len(logger.logged) == 1
    assert not (tmp_path / "other.html").exists()


def test_the_figures_of_a_trainer_are_known(tmp_path: Path) -> None:
    made, other = trainer(), trainer()
    paths = [log_figure(made, name, figure(), tmp_path) for name in ("b", "a", "b")]
    assert logged_figures(made) == paths[:2]
    assert logged_figures(other) == []


def test_a_run_of_wandb_holds_each_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = WandbLogger(save_dir=tmp_path, mode="offline", settings=wandb.Settings(silent=True))
    log_everything(trainer(logger), tmp_path)
    logger.experiment.finish()
    kept = WandbRun(tmp_path)
    assert kept.values["trainer/global_step"] == 7
    assert kept.values["report/rates/layer/_type"] == "histogram"
    assert (kept.values["report/rates/layer/values"], kept.values["report/rates/layer/bins"]) == (COUNTS, EDGES)
    (picture,) = kept.values["report/picture/filenames"]
    assert (kept.files / picture).read_bytes() == (tmp_path / "picture.png").read_bytes()
    assert "a &lt; b\n  c" in (kept.files / kept.values["report/text/path"]).read_text()
    assert kept.values["report/table/nrows"] == 2


@pytest.mark.parametrize(
    "convert", [np.asarray, torch.tensor, lambda values: torch.tensor(values, dtype=torch.bfloat16), tuple]
)
def test_numbers_of_any_kind_make_a_histogram(convert: Callable[[list[float]], Any]) -> None:
    logger = StubWandb()
    log_histogram(trainer(logger), "name", convert(COUNTS), convert(EDGES))
    ((metrics, _),) = logger.logged
    assert list(metrics["report/name"].histogram) == COUNTS


@pytest.mark.parametrize(
    ("counts", "edges", "complaint"),
    [
        ([], [0.0], r"`counts` to be numbers \[N\], but got shape \(0,\)"),
        ([1.0, -1.0], [0.0, 1.0, 2.0], r"`counts` to be at most 512 numbers of at least 0, .* and minimum -1"),
        ([[1.0]], [0.0, 1.0], r"`counts` to be at most 512 numbers of at least 0, but got shape \(1, 1\)"),
        ([1.0] * 513, range(514), r"`counts` to be at most 512 numbers"),
        ([float("nan")], [0.0, 1.0], "`counts` to be finite"),
        ([1.0], [0.0, float("inf")], "`edges` to be finite"),
        ([1.0], [0.0, 1.0, 2.0], r"`edges` to be 2 increasing numbers, .* got shape \(3,\), from 0 to 2"),
        ([1.0, 1.0], [0.0, 1.0, 1.0], "`edges` to be 3 increasing numbers"),
    ],
)
def test_bad_histograms_are_refused_with_any_logger(counts: Any, edges: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        log_histogram(trainer(), "name", counts, edges)


def test_a_row_of_another_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`rows` to have 2 cells per row, one per column, but got 1 in row 1"):
        log_table(trainer(), "table", COLUMNS, [["a", 1], ["b"]], tmp_path)
    assert not list(tmp_path.iterdir())


def test_cells_may_be_tensors_and_arrays_of_one_number(tmp_path: Path) -> None:
    path = log_table(trainer(), "table", COLUMNS, [[np.int64(3), torch.tensor(0.25)]], tmp_path)
    assert path.read_text() == "class,accuracy\n3,0.25\n"
