"""Pictures of the documentation, and what the scripts in `callbacks/` print.

Each script runs with its defaults and its seed. The traces of neurons are drawn here, and so are comparisons of rules,
from the results in `docs/measured` that `recipes/compare_methods.py` wrote. Nothing is downloaded.

Usage: python docs/pictures.py FOLDER
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import runpy
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_snn import SpikingModule, figures, run
from lightning_snn.callbacks import ConformalSets, UncertaintyLogger
from lightning_snn.cli.comparison import figures_of
from lightning_snn.data import FrameDataModule
from lightning_snn.nn import IF, LIF, AdaptiveLIF, DetachedLIF, LeakyIntegrator, Neuron, Recurrent, SynapticLIF

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = (
    "energy",
    "exact_resume",
    "firing_rates",
    "gradient_alignment",
    "hardware_fine_tuning",
    "initialization_check",
    "membrane_trace",
    "pass_scores",
    "report",
    "spike_raster",
    "spike_times",
    "state_guard",
    "uncertainty",
)
STEPS = 60


def make_all(folder: Path) -> None:
    """Make every picture, unless those in the folder are newer than the code."""
    stamp = folder / "complete"
    sources = [
        *ROOT.glob("lightning_snn/**/*.py"),
        *ROOT.glob("callbacks/*.py"),
        *ROOT.glob("docs/measured/*.json"),
        Path(__file__),
    ]
    if stamp.is_file() and stamp.stat().st_mtime > max(source.stat().st_mtime for source in sources):
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name in SCRIPTS:
        run_script(name, folder)
    run_script("rate_windows", folder, "benchmarks")
    draw_neurons(folder)
    draw_prediction_sets(folder / "uncertainty")
    draw_comparisons(folder)
    stamp.touch()


def run_script(name: str, folder: Path, scripts: str = "callbacks") -> None:
    """Run a script, which writes its pictures, and keep what it prints as `NAME.txt`."""
    printed = io.StringIO()
    arguments, sys.argv = sys.argv, [f"{scripts}/{name}.py", str(folder / name)]
    logging.disable(logging.ERROR)
    try:
        with (
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
    except ModuleNotFoundError as error:
        raise SystemExit(f"{scripts}/{name}.py needs {error.name}, see CONTRIBUTING.md") from error
    finally:
        sys.argv = arguments
        logging.disable(logging.NOTSET)
    # a progress bar returns to the start of its line
    lines = [line for line in printed.getvalue().split("\n") if "\r" not in line and "\x1b" not in line]
    (folder / f"{name}.txt").write_text("\n".join(lines).strip() + "\n", encoding="utf-8")


def draw_prediction_sets(folder: Path) -> None:
    """Train a spiking network on four classes of random spikes and draw its prediction sets after each time step."""
    pl.seed_everything(0)
    rates = 0.2 + 0.15 * torch.rand(4, 24)
    y = torch.arange(5000) % 4
    x = (torch.rand(5000, 16, 24) < rates[y].unsqueeze(1)).float()  # [N, T, C]
    data = FrameDataModule.from_arrays(
        x[:1000], y[:1000], val=(x[1000:3000], y[1000:3000]), test=(x[3000:], y[3000:]), batch_size=50
    )
    module = SpikingModule(nn.Sequential(nn.Linear(24, 64), LIF(), nn.Linear(64, 4)), num_classes=4)
    logger = UncertaintyLogger(folder=folder, conformal=ConformalSets(over_time=True), name="sets")
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=5, callbacks=[logger], enable_model_summary=False, accelerator="cpu", **options)
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)


def current() -> Tensor:
    """Return the input current of the traces `[T]`: constant for 25 steps, then three pulses."""
    x = torch.zeros(STEPS)
    x[5:30] = 0.3
    x[[40, 42, 44]] = 0.9
    return x


def draw_neurons(folder: Path) -> None:
    """Draw the membrane potential, threshold and spikes of each neuron for the same current."""
    once = Recurrent(LIF(), 1)
    nn.init.constant_(once.weight, 0.6)
    neurons: dict[str, Neuron] = {
        "lif": LIF(),
        "if": IF(),
        "detached_lif": DetachedLIF(),
        "synaptic_lif": SynapticLIF(alpha=0.6),
        "adaptive_lif": AdaptiveLIF(strength=0.5),
        "recurrent": once,
    }
    x = current().view(STEPS, 1, 1)
    with torch.no_grad():
        for name, neuron in neurons.items():
            spikes = run(neuron, x)
            potentials, threshold = neuron.potentials(x, spikes)
            thresholds = torch.as_tensor(threshold).expand_as(potentials)
            draw_trace(potentials.flatten(), thresholds.flatten(), spikes.flatten(), folder / f"neuron_{name}.png")
        draw_trace(run(LeakyIntegrator(), x).flatten(), None, None, folder / "neuron_leaky_integrator.png")


def draw_trace(potential: Tensor, threshold: Tensor | None, spikes: Tensor | None, path: Path) -> None:
    """Draw a membrane potential `[T]` above the current that causes it."""
    from matplotlib.figure import Figure

    figure = Figure((8, 3.6), layout="constrained", dpi=110)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot(potential, color="#0072B2", label="membrane potential")
    if threshold is not None and spikes is not None:
        upper.plot(threshold, color="#333333", linestyle="--", linewidth=0.9, label="threshold")
        times = spikes.nonzero().flatten().tolist()
        upper.plot(times, [1.05 * float(potential.max())] * len(times), "|", color="#D55E00", label="spike")
    upper.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False)
    upper.set_ylabel("potential")
    lower.plot(current(), color="#009E73", drawstyle="steps-mid")
    lower.set(xlabel="time step", ylabel="current", xlim=(0, STEPS - 1))
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    figures.save(figure, path)


def draw_comparisons(folder: Path) -> None:
    """Draw the figures of every comparison of learning rules in `docs/measured`."""
    for path in sorted(ROOT.glob("docs/measured/compare_*.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        for name, figure in figures_of(results).items():
            figures.save(figure, folder / f"{path.stem}_{name}.png")


if __name__ == "__main__":
    make_all(Path(sys.argv[1]))
