"""Event camera, which turns brightness into ON and OFF events.

A pixel follows the logarithm of its brightness I through a first-order photoreceptor,

    dL/dt = 2 pi f (log(I + dark) - L),

and emits an ON event each time L exceeds its value R at the last event by the ON threshold, and an OFF event each time
L falls below R by the OFF threshold; R then moves by that threshold. Events within the refractory period are lost: a
time step holds as many events as refractory periods fit into it, but at least one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.uint8]


@dataclass(frozen=True)
class Sensor:
    """Properties of one camera.

    Args:
        on_threshold: increase of log brightness that causes an ON event, shape ``(H, W)``.
        off_threshold: decrease of log brightness that causes an OFF event, shape ``(H, W)``.
        hot_rate: additional noise events per second and polarity of each pixel, shape ``(H, W)``; zero except for a few
            hot pixels.
        background_rate: noise events per second and polarity of every pixel.
        dark: brightness that a pixel reports in darkness, on the scale of ``Light.gain``.
        refractory: dead time after an event in seconds.
    """

    on_threshold: NDArray[np.float32]
    off_threshold: NDArray[np.float32]
    hot_rate: NDArray[np.float32]
    background_rate: float = 0.05
    dark: float = 0.03
    refractory: float = 2e-3


def make_sensor(size: int, threshold: float | None = None, mismatch: float = 0.1) -> Sensor:
    """Return the camera that all recordings of one size share.

    Args:
        size: height and width in pixels.
        threshold: median threshold in units of log brightness; None is ``0.05 * (size / 32) ** 1.5``. It is below that
            of a real pixel, about 0.2, because a pixel here covers several of a 128x128 camera, whose events add up.
        mismatch: standard deviation of the logarithm of the thresholds over pixels and polarities.
    """
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(size)))
    threshold = 0.05 * (size / 32) ** 1.5 if threshold is None else threshold
    thresholds = threshold * np.exp(rng.normal(0.0, mismatch, (2, size, size)))
    hot_rate = np.zeros(size * size)
    hot_pixels = rng.choice(size * size, size=max(1, size * size // 300), replace=False)
    hot_rate[hot_pixels] = rng.uniform(5.0, 25.0, len(hot_pixels))
    on_threshold, off_threshold = thresholds.astype(np.float32)
    return Sensor(on_threshold, off_threshold, hot_rate.reshape(size, size).astype(np.float32))


def simulate_sensor(
    brightness: NDArray[np.float32],
    sensor: Sensor,
    step: float,
    bandwidth: float,
    noise: float,
    rng: np.random.Generator,
) -> Counts:
    """Count the events of each pixel in each time step.

    Args:
        brightness: shape ``(S, H, W)``, positive, constant within a time step.
        sensor: the camera.
        step: seconds between two images.
        bandwidth: cut-off frequency of the photoreceptor in hertz.
        noise: standard deviation of the relative shot noise of brightness 1 within 10 ms.
        rng: draws shot noise, background activity and the initial level of each pixel.

    Returns:
        Events in each time step, shape ``(S, 2, H, W)``; the channel is the polarity, 0 OFF and 1 ON.
    """
    steps, *shape = brightness.shape
    light = brightness + np.float32(sensor.dark)
    level = np.log(light)
    # photons arrive as a Poisson process: relative noise falls with the square roots of brightness and of time
    level += (
        rng.standard_normal(level.shape, dtype=np.float32) * np.float32(noise * np.sqrt(0.01 / step)) / np.sqrt(light)
    )

    follow = np.float32(1 - np.exp(-2 * np.pi * bandwidth * step))
    state = level[0].copy()
    reference = state + rng.uniform(-0.5, 0.5, shape).astype(np.float32) * sensor.on_threshold
    crossings = np.empty_like(level)
    for current, crossed in zip(level, crossings, strict=True):
        state += follow * (current - state)
        change = state - reference
        threshold = np.where(change > 0, sensor.on_threshold, sensor.off_threshold)
        np.trunc(change / threshold, out=crossed)
        reference += crossed * threshold

    most = max(1, int(step / sensor.refractory))
    counts = np.empty((steps, 2, *shape), dtype=np.uint8)
    np.clip(crossings, 0, most, out=counts[:, 1], casting="unsafe")
    np.clip(-crossings, 0, most, out=counts[:, 0], casting="unsafe")
    _add_spontaneous_events(counts, sensor, step, rng)
    return counts


def _add_spontaneous_events(counts: Counts, sensor: Sensor, step: float, rng: np.random.Generator) -> None:
    """Add background activity and hot pixels: independent Poisson processes, drawn as one process and distributed."""
    steps = len(counts)
    rate = np.broadcast_to(sensor.background_rate + sensor.hot_rate, counts.shape[1:])
    cumulative = np.cumsum(rate)
    events = rng.poisson(cumulative[-1] * step * steps)
    cell = np.searchsorted(cumulative, rng.uniform(0, cumulative[-1], events))
    when = rng.integers(steps, size=events)
    np.add.at(counts.reshape(steps, -1), (when, np.minimum(cell, cumulative.size - 1)), 1)
