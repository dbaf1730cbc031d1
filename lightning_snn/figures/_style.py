"""Style, canvas and conversion of numbers, shared by all figures."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np
import torch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Parameters = ParamSpec("Parameters")

# Okabe and Ito's palette, which is distinguishable with all common forms of color blindness.
BLUE, ORANGE, GREEN, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
INK, FAINT, GRID = "#333333", "#8A8A8A", "#E3E3E3"

_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "legend.fontsize": 8,
    "legend.frameon": False,
}
_TICKS: Any = {"color": FAINT, "labelcolor": INK, "labelsize": 8, "width": 0.8, "length": 3, "direction": "out"}


def styled(draw: Callable[Parameters, Figure]) -> Callable[Parameters, Figure]:
    """Draw a figure in the style of this package, independent of the current rcParams, which do not change."""

    @functools.wraps(draw)
    def draw_in_style(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Figure:
        import matplotlib

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_STYLE)
            figure = draw(*args, **kwargs)
        # Ticks are created when the figure is rendered, with the rcParams of that time unless they are set here.
        for axes in figure.axes:
            axes.tick_params(**_TICKS)
        return figure

    return draw_in_style


def new_figure(width: float, height: float) -> Figure:
    """Create an empty figure, in inches, that is not registered with pyplot."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")


def numbers(name: str, value: Any, expected: str, finite: bool = True) -> np.ndarray:
    """Convert a value to a float64 array on the host.

    Args:
        name: name of the argument, for error messages.
        value: array, tensor of any device and dtype, or nested sequence.
        expected: description of the argument, for error messages.
        finite: whether all numbers must be finite.

    Raises:
        ValueError: if `value` is empty, does not consist of numbers, or has a number that must be finite and is not.
    """
    try:
        if isinstance(value, torch.Tensor):
            value = value.detach().to("cpu", torch.float64)
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"Expected argument `{name}` to be {expected}, but got {type(value).__name__}") from error
    if array.size == 0:
        raise ValueError(f"Expected argument `{name}` to be {expected}, but got shape {array.shape}")
    if finite and not np.isfinite(array).all():
        raise ValueError(f"Expected argument `{name}` to be finite, but got {(~np.isfinite(array)).sum()} other values")
    return array


def evenly(number: int, most: int) -> np.ndarray:
    """Return at most `most` indices below `number`, evenly spaced from the first to the last."""
    indices: np.ndarray = np.linspace(0, number - 1, min(number, most)).round().astype(int)
    return indices


def plain(text: str) -> str:
    """Return a text that matplotlib draws as it is, although it may contain dollar signs."""
    return text.replace("$", r"\$")
