"""An event camera: brightness in, ON and OFF events out.

A pixel follows the logarithm of its brightness I through a first-order photoreceptor,

    dL/dt = 2 pi f (log(I + dark) - L),

and fires an ON event each time L has risen by its ON threshold above the level R at its last event, an OFF event each
time it has fallen by its OFF threshold below; R then moves to that level. What happens within the refractory period is
lost: a step holds as many events as periods fit into it, and a step shorter than one period a single event.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.uint8]


@dataclass(frozen=True)
class Sensor:
    """The properties of one camera.

    Args:
        on_threshold, off_threshold: change of log brightness that makes an event, shape ``(H, W)``.
        hot_rate: events per second and polarity that a pixel fires by itself, shape ``(H, W)``; zero except for a few.
        background_rate: events per second and polarity of every pixel.
        dark: brightness that a pixel reports in darkness, on the scale of ``Light.gain``.
        refractory: dead time after an event in seconds.
    """

    on_threshold: NDArray[np.float32]
    off_threshold: NDArray[np.float32]
    hot_rate: NDArray[np.float32]
    background_rate: float = 0.12
    dark: float = 0.03
    refractory: float = 2e-3


def make_sensor(size: int, threshold: float = 0.2, mismatch: float = 0.1) -> Sensor:
    """The one camera of each size that all recordings share.

    Args:
        size: height and width in pixels.
        threshold: median threshold in units of log brightness.
        mismatch: standard deviation of the logarithm of the thresholds over pixels and polarities.
    """
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(size)))
    thresholds = threshold * np.exp(rng.normal(0.0, mismatch, (2, size, size)))
    hot_rate = np.zeros(size * size)
    hot_pixels = rng.choice(size * size, size=max(1, size * size // 300), replace=False)
    hot_rate[hot_pixels] = rng.uniform(5.0, 25.0, len(hot_pixels))
    on_threshold, off_threshold = thresholds.astype(np.float32)
    return Sensor(on_threshold, off_threshold, hot_rate.reshape(size, size).astype(np.float32))


def count_events(
    brightness: NDArray[np.float32],
    sensor: Sensor,
    step: float,
    bandwidth: float,
    noise: float,
    rng: np.random.Generator,
) -> Counts:
    """Count the events of each pixel in each step of time.

    Args:
        brightness: shape ``(S, H, W)``, positive, constant within a step.
        sensor: the camera.
        step: seconds between two images.
        bandwidth: cut-off frequency of the photoreceptor in hertz.
        noise: standard deviation of the relative shot noise of brightness 1 within 10 ms.
        rng: draws shot noise, background activity and the level from which each pixel starts.

    Returns:
        Events in each step, shape ``(S, 2, H, W)``; the channel is the polarity, 0 OFF and 1 ON.
    """
    steps, *shape = brightness.shape
    light = brightness + np.float32(sensor.dark)
    level = np.log(light)
    # Photons arrive as a Poisson process: relative noise falls with the root of brightness and of time.
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
    """Add background activity and hot pixels: independent Poisson processes, drawn as one process and shared out."""
    steps = len(counts)
    rate = np.broadcast_to(sensor.background_rate + sensor.hot_rate, counts.shape[1:])
    cumulative = np.cumsum(rate)
    events = rng.poisson(cumulative[-1] * step * steps)
    cell = np.searchsorted(cumulative, rng.uniform(0, cumulative[-1], events))
    when = rng.integers(steps, size=events)
    np.add.at(counts.reshape(steps, -1), (when, np.minimum(cell, cumulative.size - 1)), 1)
