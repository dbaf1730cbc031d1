r"""Model cochlea: sound to spikes of 700 channels, in the steps by which the Spiking Heidelberg Digits were made.

1. Middle ear: a high-pass of first order at 800 Hz.
2. Basilar membrane: gammatone filters of fourth order, equally spaced on the scale of equivalent rectangular
   bandwidths, :math:`G_c(f) = (1 + i (f - f_c) / b_c)^{-4}`, with :math:`b_c = 1.019\, (24.7 + 0.108 f_c)` Hz.
3. Hair cells: the envelope a of a channel is compressed to :math:`d = \log(1 + a / a_0)`, and releases a transmitter q,
   which is depleted and recovers, so that responses adapt: :math:`r = q d`,
   :math:`\dot q = (1 - q) / \tau_q - k\, q\, d`.
4. Bushy cells: one leaky integrate-and-fire neuron per channel collects the release of 40 noisy fibers,
   :math:`\dot v = -v / \tau_v + g r + \mathrm{noise}`, and is reset to 0 when it fires.

Cramer et al. (2022) model the basilar membrane by hydrodynamics instead, and the transmitter by three reservoirs.
Spikes have a resolution of 1 ms: they are not locked to the phase of the sound within a channel, but to its envelope.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .voice import SAMPLE_RATE, Array

UNITS = 700
"""Channels of the cochlea, from low to high frequencies."""

LOWEST, HIGHEST = 80.0, 7600.0
# samples of sound per sample of an envelope, and samples of an envelope per time step of hair and bushy cells
DECIMATION, AVERAGED = 8, 2
STEP = DECIMATION * AVERAGED / SAMPLE_RATE
"""Time step of hair cells and bushy cells in seconds."""

# ringing of the lowest filters, in seconds
RINGING = 0.06


@dataclass(frozen=True)
class Cochlea:
    """Properties of the model cochlea that all recordings share.

    Args:
        quietest: envelope a0 above which the response is logarithmic, for speech of root mean square 1.
        recovery: time constant of the transmitter in seconds.
        depletion: rate k of release in 1/s, for a compressed envelope of 1.
        leak: time constant of the bushy cells in seconds.
        gain: rise g of a bushy cell in thresholds per second, for a release of 1.
        fibers: hair cells per bushy cell, whose noise averages out.
        refractory: time after a spike in seconds in which a bushy cell does not fire.
        mismatch: standard deviation over channels of the logarithm of the gain.
    """

    quietest: float = 0.006
    recovery: float = 0.06
    depletion: float = 6.0
    leak: float = 0.01
    gain: float = 85.0
    fibers: int = 40
    refractory: float = 0.002
    mismatch: float = 0.15


def center_frequencies() -> Array:
    """Return the frequency in hertz that each channel responds to most, shape ``(700,)``, ascending."""
    # equally spaced numbers of equivalent rectangular bandwidths (Glasberg and Moore 1990)
    low, high = (21.4 * np.log10(1 + 0.00437 * f) for f in (LOWEST, HIGHEST))
    return np.asarray((10 ** (np.linspace(low, high, UNITS) / 21.4) - 1) / 0.00437)


def envelopes(sound: Array) -> NDArray[np.float32]:
    """Return the envelope of each channel over time.

    The spectrum of a channel is moved to frequency 0 and inverted on a window of 2 kHz around it, which holds the pass
    bands: the result is the analytic signal, sampled every 0.5 ms.

    Args:
        sound: sound pressure at ``SAMPLE_RATE``, shape ``(N,)``.

    Returns:
        Amplitudes averaged over steps of 1 ms, shape ``(S, 700)`` with S the number of steps that the sound covers.
    """
    steps = -(-len(sound) // (DECIMATION * AVERAGED))
    # few different lengths, whose filters are kept
    points = -(-(steps * AVERAGED + round(RINGING * SAMPLE_RATE / DECIMATION)) // 512) * 512
    bins, response = _filters(points)
    spectrum = np.fft.rfft(sound, points * DECIMATION).astype(np.complex64)
    analytic = np.fft.ifft(spectrum[bins] * response, axis=1)
    amplitude = np.abs(analytic[:, : steps * AVERAGED]).astype(np.float32)
    averages = amplitude.reshape(UNITS, steps, AVERAGED).mean(axis=2)
    return np.ascontiguousarray(averages.T)


@lru_cache(maxsize=4)
def _filters(points: int) -> tuple[NDArray[np.intp], NDArray[np.complex64]]:
    """Return the bins of the spectrum in the window of each channel, and the response to them, both ``(700, points)``.

    Args:
        points: samples of an envelope; the spectrum is of `DECIMATION` times as many samples of sound.
    """
    spacing = SAMPLE_RATE / (points * DECIMATION)
    last = points * DECIMATION // 2
    centers = center_frequencies()[:, None]
    bins = np.round(centers / spacing).astype(np.intp) + np.fft.fftfreq(points, 1 / points).astype(np.intp)
    frequencies = bins * spacing
    response = (1 + 1j * (frequencies - centers) / (1.019 * (24.7 + 0.108 * centers))) ** -4
    middle_ear = 1j * frequencies / (800 + 1j * frequencies)
    # an analytic signal has twice the positive frequencies
    response = np.where((bins > 0) & (bins <= last), response * middle_ear * (2 / DECIMATION), 0)
    return np.clip(bins, 0, last), response.astype(np.complex64)


def hear(sound: Array, rng: np.random.Generator, cochlea: Cochlea | None = None) -> NDArray[np.bool_]:
    """Return the spikes that a sound causes.

    Args:
        sound: sound pressure at ``SAMPLE_RATE``, shape ``(N,)``; speech has a root mean square near 1.
        rng: draws the noise of the fibers.
        cochlea: properties of the cochlea; None takes the defaults.

    Returns:
        Where a channel fires, shape ``(S, 700)``, in steps of 1 ms.
    """
    ear = cochlea or Cochlea()
    drive = np.log1p(envelopes(sound) / np.float32(ear.quietest))
    return _bushy_cells(_release(drive, ear), ear, rng)


def _release(drive: NDArray[np.float32], ear: Cochlea) -> NDArray[np.float32]:
    """Return the transmitter that hair cells release, shape ``(S, 700)``."""
    recovery = np.float32(STEP / ear.recovery)
    kept = np.exp(-np.float32(ear.depletion * STEP) * drive)
    released = np.empty_like(drive)
    transmitter = np.ones(UNITS, np.float32)
    for current, left, out in zip(drive, kept, released, strict=True):
        np.multiply(transmitter, current, out=out)
        transmitter *= left
        transmitter += recovery * (1 - transmitter)
    return released


def _bushy_cells(released: NDArray[np.float32], ear: Cochlea, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return the spikes of neurons that collect the release, shape ``(S, 700)``."""
    mismatch = np.random.Generator(np.random.Philox(0)).normal(0.0, ear.mismatch, UNITS)
    current = released * (ear.gain * STEP * np.exp(mismatch)).astype(np.float32)
    # the number of vesicles in a step is a Poisson variable, whose variance is its mean
    noise = rng.standard_normal(current.shape, dtype=np.float32)
    noise *= np.sqrt(current / np.float32(ear.fibers))
    current += noise
    decay = np.float32(np.exp(-STEP / ear.leak))
    rest = round(ear.refractory / STEP)
    potential = rng.uniform(0.0, 0.5, UNITS).astype(np.float32)
    spikes = np.zeros(current.shape, bool)
    for step, arriving in enumerate(current):
        potential *= decay
        potential += arriving
        fired = potential > 1
        if rest > 1:
            fired &= ~spikes[max(0, step - rest + 1) : step].any(axis=0)
        potential[fired] = 0
        spikes[step] = fired
    return spikes
