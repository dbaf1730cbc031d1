"""Everything to measure on a machine with a GPU, in at most four minutes: parity, times, memory and waits.

    python benchmarks/gpu.py [--minutes 4] [--output FOLDER]
    python benchmarks/gpu.py --device cpu --small

Sections, in the order of their worth; each has a share of the time, and what did not fit is named:

parity: `benchmarks/parity.py` on the GPU: spikes and states of loops and Triton kernels have to be equal to those of
    single operations on a CPU, and gradients within their tolerance.
LIF: the scan alone, forward and backward.
Linear and LIF: the setting of Open Neuromorphic's benchmark (one Linear and one LIF layer, 16k neurons, batch 16,
    T = 500, the sum of all spikes as loss), and the largest gradient difference to backpropagation through time.
training step: a VGG-11 and a SEW-ResNet-18 on 32x32 images.
methods: a step of every learning rule, against that of SurrogateGradient, and how often it waits for the GPU.
compiled training step: the same networks under `torch.compile`.

SpikingJelly (with its Triton kernels) and snntorch are compared if they are installed. Times are medians of interleaved
calls after a warm-up, measured by events on the GPU. "spread" is the range between the first and the third quartile.
Peak memory is what a call allocates at most, beyond that allocated before it. Gradients are compared with the same
equations in single operations under autograd, in the same dtype with a state in float32, relative to the largest entry.

FOLDER receives `results.json` and `results.md`, rewritten after every section. Without a GPU nothing is measured and
the command ends with 0, unless `--device cpu` asks for a try on a CPU; `--small` uses tiny sizes. It ends with 1 if a
case of the parity table or a contender of this library fails.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import parity
import torch
from _device import Case, Deadline, Found, described, facts, release
from _gpu_networks import METHOD_HEADING, STEP_HEADING, method_cases, step_cases
from _gpu_scans import LIF_HEADING, LINEAR_HEADING, choosing_kernels, lif_cases, linear_cases, spikingjelly_neurons
from tqdm import tqdm

from lightning_snn import kernels

CASE_SECONDS = 4.0  # for the rounds of a case, at most


def parity_cases(device: torch.device, small: bool) -> Iterator[Case]:
    """Compare the scans with single operations, one table per backend, dtype and layout, the most different first."""
    layouts, dtypes = ("contiguous", "channels last", "batch first"), ("float32", "bfloat16", "float16")
    each = list(zip(dtypes, layouts, strict=True))
    others = [pair for pair in product(dtypes, layouts) if pair not in each]
    if kernels(device)["lif"].implementation == "triton":
        tables = [*(("triton", *pair) for pair in each), *(("loop", *pair) for pair in each)]
        tables += [(backend, *pair) for backend in ("triton", "loop") for pair in others]
    else:
        tables = [("loop", *pair) for pair in (each + others)]
    for backend, dtype, layout in tables[: 1 if small else None]:
        table = partial(parity_table, backend, dtype, layout, device)
        yield Case(f"{backend}, {dtype}, {layout}", table, 1.0 if small else 15.0)


def parity_table(backend: str, dtype: str, layout: str, device: torch.device, seconds: float) -> Found:
    with choosing_kernels(None):  # the table sets it for every backend
        rows = parity.table([backend], [dtype], [layout], device.type)
    failing = sum(not row.passes for row in rows)
    found = {
        "backend": backend,
        "dtype": dtype,
        "layout": layout,
        "cases": len(rows),
        "failing": failing,
        "spikes that differ": sum(row.spikes for row in rows),
        "state": max(row.state for row in rows),
        "gradient": max(row.gradient for row in rows),
        "tolerance": max(row.tolerance for row in rows),
    }
    return Found([found], {"ours": f"{failing} of {len(rows)} cases fail"} if failing else {})


PARITY_HEADING = (
    "backend",
    "dtype",
    "layout",
    "cases",
    "failing",
    "spikes that differ",
    "state",
    "gradient",
    "tolerance",
)


class Section(NamedTuple):
    """Table of results.

    Attributes:
        name: of the table.
        cases: returns the cases for a device, in tiny sizes or not.
        until: share of the whole time after which no case of it is started.
        heading: columns, which are keys of the rows.
    """

    name: str
    cases: Callable[[torch.device, bool], Iterator[Case]]
    until: float
    heading: tuple[str, ...]


SECTIONS = (
    Section("parity", parity_cases, 0.3, PARITY_HEADING),
    Section("LIF", lif_cases, 0.42, LIF_HEADING),
    Section("Linear and LIF", linear_cases, 0.54, LINEAR_HEADING),
    Section("training step", step_cases, 0.68, STEP_HEADING),
    Section("methods", method_cases, 0.78, METHOD_HEADING),
    Section("compiled training step", partial(step_cases, compiled=True), 1.0, STEP_HEADING),
)


class Report:
    """Results so far, and what has none.

    Args:
        settings: what the results depend on.
        folder: receives the files; None writes none.
    """

    def __init__(self, settings: dict[str, Any], folder: Path | None) -> None:
        self.settings, self.folder = settings, folder
        self.tables: dict[str, list[dict[str, Any]]] = {section.name: [] for section in SECTIONS}
        self.left_out: list[str] = []
        self.reasons: list[str] = []
        self.failed = False

    def add(self, section: Section, case: Case, found: Found) -> None:
        self.tables[section.name] += found.rows
        self.reasons += [f"{section.name}, {case.name}, {name}: {why}" for name, why in found.reasons.items()]
        self.failed |= any(name not in PEERS for name in found.reasons)

    def write(self) -> None:
        """Write all that is known to the folder, so that a run that is stopped loses little."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        whole = {
            "settings": self.settings,
            "tables": self.tables,
            "left out": self.left_out,
            "without a result": self.reasons,
        }
        (self.folder / "results.json").write_text(json.dumps(whole, indent=2), encoding="utf-8")
        (self.folder / "results.md").write_text(self.markdown(), encoding="utf-8")

    def markdown(self) -> str:
        """Return settings, tables and what is missing in Markdown."""
        lines = [f"{', '.join(f'{name} {value}' for name, value in self.settings.items())}."]
        for section in SECTIONS:
            rows = self.tables[section.name]
            lines += ["", f"**{section.name}**", ""]
            if not rows:
                lines.append("No results.")
                continue
            lines += [f"| {' | '.join(section.heading)} |", "|" + "---|" * len(section.heading)]
            lines += [f"| {' | '.join(cell(name, row[name]) for name in section.heading)} |" for row in rows]
        for title, entries in (("Left out for want of time", self.left_out), ("Without a result", self.reasons)):
            if entries:
                lines += ["", f"{title}:", "", *(f"- {entry}" for entry in entries)]
        return "\n".join(lines) + "\n"


PEERS = ("SpikingJelly", "snntorch")
DIGITS = {"ms": ".2f", "/ ours": ".2f", "peak MB": ".1f", "GB/s": ".0f", "firing": ".3f"}


def cell(name: str, value: Any) -> str:
    """Return a value as people read it."""
    if value is None:
        return ""
    if name == "spread":
        return "-".join(f"{each:.2f}" for each in value)
    if isinstance(value, float):
        return format(value, DIGITS.get(name, ".1e"))
    return str(value)


def settings_of(device: torch.device) -> dict[str, Any]:
    """Return device, versions and implementations."""
    found = facts(device)
    for package in ("triton", "snntorch", "spikingjelly"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    found["our LIF"] = kernels(device)["lif"].implementation
    found["SpikingJelly's LIF"] = spikingjelly_neurons(device, torch.float32)[1]
    return found


def measure_sections(report: Report, device: torch.device, small: bool, deadline: Deadline) -> None:
    """Measure section after section; each case that has no time left, or fails, is named in the report."""
    cases = [(section, case) for section in SECTIONS for case in section.cases(device, small)]
    bar = tqdm(cases, desc="cases", unit="case")
    for section, case in bar:
        bar.set_postfix_str(f"{section.name}: {case.name}")
        left = deadline.left(section.until)
        if left < case.needs:
            report.left_out.append(f"{section.name}: {case.name}")
            continue
        try:
            report.add(section, case, case.run(0.0 if small else min(CASE_SECONDS, left / 2)))
        except Exception as error:  # the other cases are worth their time on a rented machine
            report.add(section, case, Found([], {"ours": described(error)}))
        release(device)
        report.write()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0, help="time for everything, approximately")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write results.json and results.md there")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the command")
    options = parser.parse_args(arguments)
    deadline = Deadline(options.minutes)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("PyTorch finds no CUDA device, so nothing is measured; `--device cpu --small` tries the command without.")
        return 0
    device = torch.device(options.device)
    benchmark = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        report = Report(settings_of(device), options.output)
        measure_sections(report, device, options.small, deadline)
    finally:
        torch.backends.cudnn.benchmark = benchmark
    report.write()
    print(report.markdown())
    return 1 if report.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
