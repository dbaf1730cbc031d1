r"""Formant synthesis of a word: glottal pulses and noise through a vocal tract whose resonances move.

A source of pulses and breath passes through resonances at the formants F_k with bandwidths B_k,

.. math:: H(s) = \prod_k \frac{|p_k|^2}{(s - p_k)(s - \bar p_k)}, \qquad p_k = -\pi B_k + 2 \pi i F_k,

noise of a constriction through a bell-shaped spectrum of its own. The filters of every 5 ms are applied to windows
that overlap and are added. Formants glide between the targets of neighboring sounds and miss those of short ones,
because targets are smoothed over time.

Sources: Klatt, "Software for a cascade/parallel formant synthesizer", JASA 67, 1980; for the pulses, Rosenberg,
"Effect of glottal pulse shape on the quality of natural vowels", JASA 49, 1971.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .phonemes import PHONEMES, PRONUNCIATIONS
from .speaker import Speaker

Array = NDArray[np.floating[Any]]
Transfer = NDArray[np.complexfloating[Any, Any]]

SAMPLE_RATE = 16_000
"""Samples of sound per second."""

# samples from one filter to the next, of the window of a filter, and of the window with the resonances that follow it
HOP, WINDOW, PADDED = 80, 320, 1024
FRAME = HOP / SAMPLE_RATE
# resonances of a man's vocal tract above the third, in hertz
HIGH_FORMANTS = np.array([3500.0, 4500.0, 5500.0, 6500.0, 7500.0])
# smoothing of amplitudes over time: standard deviation in seconds
ATTACK = 0.005
# noise of the room, relative to speech: the range of its root mean square
ROOM = (0.002, 0.03)
# standard deviation of the gain of a microphone over octaves, in nepers
COLORATION = 0.5
# silence after the last sound, in seconds
TAIL = 0.03


@dataclass(frozen=True)
class Articulation:
    """What the vocal tract does over time, in F frames of 5 ms.

    Args:
        formants: in hertz, shape ``(F, 3)``.
        voice: amplitude of glottal pulses, shape ``(F,)``.
        breath: amplitude of noise at the glottis, shape ``(F,)``.
        noise: amplitude spectrum of noise at a constriction, shape ``(F, PADDED // 2 + 1)``.
        zero: frequency that the nose takes out, in hertz, shape ``(F,)``.
        nasality: how far the nose is open, in [0, 1], shape ``(F,)``.
    """

    formants: Array
    voice: Array
    breath: Array
    noise: Array
    zero: Array
    nasality: Array


def speak(word: str, speaker: Speaker, rng: np.random.Generator) -> Array:
    """Return the sound of a word, in which the person differs a little from one time to the next.

    Args:
        word: a key of ``PRONUNCIATIONS``.
        speaker: the person.
        rng: draws timing, articulation, pitch and noise.

    Returns:
        Sound pressure at ``SAMPLE_RATE``, of root mean square near 1, shape ``(N,)``, with a little noise of the room;
        the word starts within the first 80 ms.
    """
    motion = articulate(word, speaker, rng)
    frames = len(motion.voice)
    frequencies = np.fft.rfftfreq(PADDED, 1 / SAMPLE_RATE)
    tract = _resonances(motion.formants, speaker.formant_scale, frequencies)
    tract *= _nose(motion.zero, motion.nasality, frequencies)
    softening = 1 / (1 + 1j * frequencies / speaker.tilt)
    pulses = _glottis(frames * HOP, speaker, rng)
    breath, noise = rng.standard_normal((2, frames * HOP))
    glottal = pulses * _per_sample(motion.voice)
    aspiration = breath * _per_sample(motion.breath * speaker.breathiness)
    sound = _filtered(glottal, tract * softening) + _filtered(aspiration, tract)
    sound += _filtered(noise, motion.noise * speaker.hiss)
    heard = _recorded(sound, rng)
    loudness, room = np.exp(rng.normal(0.0, 0.3)), np.exp(rng.uniform(*np.log(ROOM)))
    return np.asarray(loudness * heard / np.sqrt(np.mean(heard**2)) + room * rng.standard_normal(len(heard)))


def articulate(word: str, speaker: Speaker, rng: np.random.Generator) -> Articulation:
    """Return the movements of a vocal tract that makes a word; arguments as for :func:`speak`."""
    names = PRONUNCIATIONS[word]
    tempo = speaker.tempo * np.exp(rng.normal(0.0, 0.08))
    sounds = [PHONEMES[name] for name in names]
    durations = [sound.duration / tempo * np.exp(rng.normal(0.0, 0.15)) for sound in sounds]
    lead = rng.uniform(0.0, 0.08)
    counts = np.maximum(1, np.round(np.diff(np.cumsum([0.0, *durations])) / FRAME)).astype(int)
    # before and after the word the tract is at the first and at the last sound, silent
    counts = np.concatenate([[round(lead / FRAME)], counts, [round(TAIL / FRAME)]])
    index = np.repeat(np.arange(len(counts)), counts)
    place = np.clip(index, 1, len(sounds)) - 1
    audible = ((index > 0) & (index <= len(sounds))).astype(float)

    spoken = np.stack([speaker.formants(name) * np.exp(rng.normal(0.0, 0.03, 3)) for name in names])
    formants = np.exp(_smoothed(np.log(spoken)[place], speaker.coarticulation))
    level = np.exp(rng.normal(0.0, 0.1, len(sounds)))

    def amplitude(of: list[float]) -> Array:
        return _smoothed((np.array(of) * level)[place] * audible, ATTACK)

    frequencies = np.fft.rfftfreq(PADDED, 1 / SAMPLE_RATE)
    # a constriction lies before a short cavity, which differs less from person to person than the whole vocal tract
    size = np.sqrt(speaker.formant_scale)
    spectra = np.stack([_bell(frequencies, sound.noise_center * size, sound.noise_width) for sound in sounds])
    noise = np.array([sound.noise for sound in sounds]) * level
    zero = np.array([sound.zero * speaker.formant_scale for sound in sounds])
    nasal = _smoothed((zero > 0)[place].astype(float), speaker.coarticulation)
    return Articulation(
        formants=formants,
        voice=amplitude([sound.voice for sound in sounds]),
        breath=amplitude([sound.breath for sound in sounds]),
        noise=_smoothed((noise[:, None] * spectra)[place] * audible[:, None], ATTACK),
        zero=np.full(len(place), max(zero.max(), 1000.0)),
        nasality=nasal,
    )


def _bell(frequencies: Array, center: float, width: float) -> Array:
    return np.asarray(np.exp(-0.5 * ((frequencies - center) / width) ** 2))


def _smoothed(values: Array, deviation: float) -> Array:
    """Smooth along the first axis with a Gaussian of this standard deviation in seconds; the ends are continued."""
    reach = max(1, round(3 * deviation / FRAME))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * FRAME / deviation) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(values, [(reach, reach)] + [(0, 0)] * (values.ndim - 1), mode="edge")
    total = np.zeros_like(values)
    for shift, weight in enumerate(kernel):
        total += weight * padded[shift : shift + len(values)]
    return total


def _per_sample(values: Array) -> Array:
    samples = np.arange(len(values) * HOP) / HOP
    return np.interp(samples, np.arange(len(values)), values)


def _glottis(samples: int, speaker: Speaker, rng: np.random.Generator) -> Array:
    """Return the derivative of the flow through the glottis, in pulses of slightly unequal length and height."""
    seconds = np.arange(samples) / SAMPLE_RATE
    frames = samples // HOP
    drift = _per_sample(_smoothed(rng.normal(0.0, 0.1, frames), 0.04))
    start = rng.normal(0.08, 0.06)
    octaves = start + speaker.intonation * seconds + drift
    phase = np.cumsum(speaker.pitch * 2.0**octaves) / SAMPLE_RATE
    period, within = np.divmod(phase, 1.0)
    number = period.astype(int)
    height = np.exp(rng.normal(0.0, 0.05, number[-1] + 1))[number]
    length = np.exp(rng.normal(0.0, 0.02, number[-1] + 1))[number]
    opening = speaker.open_share * 2 / 3 * length
    closing = speaker.open_share / 3 * length
    rise = 0.5 * np.pi / opening * np.sin(np.pi * within / opening)
    fall = -0.5 * np.pi / closing * np.sin(0.5 * np.pi * (within - opening) / closing)
    flow = np.where(within < opening, rise, np.where(within < opening + closing, fall, 0.0))
    return np.asarray(height * flow / 4)


def _resonances(formants: Array, scale: float, frequencies: Array) -> Transfer:
    """Return the transfer function of the vocal tract in each frame, shape ``(F, frequencies)``."""
    high = np.broadcast_to(HIGH_FORMANTS * scale, (len(formants), len(HIGH_FORMANTS)))
    poles = np.concatenate([formants, high], axis=1)
    bandwidth = 50 + 8e-6 * poles**2
    s = 1j * frequencies
    transfer = np.ones((len(formants), len(frequencies)), complex)
    for column in range(poles.shape[1]):
        pole = (-bandwidth[:, column] / 2 + 1j * poles[:, column])[:, None]
        transfer *= np.abs(pole) ** 2 / ((s - pole) * (s - pole.conj()))
    return transfer


def _nose(zero: Array, nasality: Array, frequencies: Array) -> Transfer:
    """Return the transfer function of an open nose: a notch, and less of everything above the first formant."""
    s = 1j * frequencies
    deep, wide = ((-width / 2 + 1j * zero)[:, None] for width in (80.0, 700.0))
    notch = (s - deep) * (s - deep.conj()) / ((s - wide) * (s - wide.conj()))
    damped = notch / (1 + 1j * frequencies / 900)
    return np.asarray(1 + nasality[:, None] * (damped - 1))


def _recorded(sound: Array, rng: np.random.Generator) -> Array:
    """Return the sound that a microphone records, whose gain wanders from octave to octave."""
    octaves = np.arange(6.0, 14.0)
    gain = rng.normal(0.0, COLORATION, len(octaves))
    frequencies = np.fft.rfftfreq(len(sound), 1 / SAMPLE_RATE)
    at = np.interp(np.log2(np.maximum(frequencies, 1.0)), octaves, gain)
    return np.asarray(np.fft.irfft(np.fft.rfft(sound) * np.exp(at), len(sound)))


def _filtered(source: Array, transfer: Array | Transfer) -> Array:
    """Return the source, filtered in each frame by the transfer function of that frame, shape ``(F, frequencies)``."""
    frames = len(transfer)
    padded = np.pad(source, (WINDOW // 2, WINDOW))
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[: frames * HOP : HOP]
    # Hann windows that overlap by three quarters add up to 2
    shape = 0.25 * (1 - np.cos(2 * np.pi * (np.arange(WINDOW) + 0.5) / WINDOW))
    pieces = np.fft.irfft(np.fft.rfft(windows * shape, PADDED) * transfer, PADDED)
    total = np.zeros(frames * HOP + PADDED)
    for offset in range(0, PADDED, HOP):
        part = pieces[:, offset : offset + HOP]
        rows = total[offset : offset + frames * HOP].reshape(frames, HOP)
        rows[:, : part.shape[1]] += part
    return total[WINDOW // 2 : WINDOW // 2 + frames * HOP]
