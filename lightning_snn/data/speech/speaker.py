"""People and how they speak: seeded speakers, each with a vocal tract, a pitch, a tempo and an accent of their own."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from .phonemes import PHONEMES

# pitch in hertz and size of the formants of an adult man and woman
MAN, WOMAN = (115.0, 1.0), (205.0, 1.16)


@dataclass(frozen=True)
class Speaker:
    """One person, whose voice and habits are the same in all of their recordings.

    Args:
        pitch: mean frequency of the glottal pulses in hertz.
        formant_scale: formants relative to those of an adult man; a shorter vocal tract has a larger one.
        tempo: speed relative to the typical one.
        open_share: share of a glottal period in which the glottis is open, in (0, 1).
        tilt: frequency in hertz above which the voice falls by 6 dB per octave more.
        breathiness: amplitude of noise at the glottis relative to the typical one.
        hiss: noise at a constriction relative to the typical one.
        coarticulation: standard deviation in seconds of the smoothing of formants over time.
        intonation: change of pitch over a word, in octaves per second.
        accent: key of the speaker's own vowels and consonants, see :meth:`formants`.
    """

    pitch: float
    formant_scale: float
    tempo: float
    open_share: float
    tilt: float
    breathiness: float
    hiss: float
    coarticulation: float
    intonation: float
    accent: int

    def formants(self, name: str, spread: float = 0.08) -> np.ndarray:
        """Return the three formants in hertz with which this person makes a sound.

        Args:
            name: the sound, a key of ``PHONEMES``.
            spread: standard deviation over people of the logarithm of a formant, beyond the size of the vocal tract.
        """
        # keyed by name, so that a new sound leaves the others as they are
        draw = np.random.Generator(np.random.Philox([self.accent, zlib.crc32(name.encode())]))
        scaled = np.array(PHONEMES[name].formants) * self.formant_scale
        return np.asarray(scaled * np.exp(draw.normal(0.0, spread, 3)))


def draw_speaker(rng: np.random.Generator) -> Speaker:
    """Return a random person, in half of the cases a woman."""
    pitch, size = WOMAN if rng.random() < 0.5 else MAN
    return Speaker(
        pitch=float(pitch * np.exp(rng.normal(0.0, 0.14))),
        formant_scale=float(size * np.exp(rng.normal(0.0, 0.08))),
        tempo=float(0.8 * np.exp(rng.normal(0.0, 0.18))),
        open_share=float(rng.uniform(0.45, 0.75)),
        tilt=float(rng.uniform(1200.0, 4000.0)),
        breathiness=float(np.exp(rng.normal(0.0, 0.5))),
        hiss=float(np.exp(rng.normal(0.0, 0.3))),
        coarticulation=float(rng.uniform(0.014, 0.028)),
        intonation=float(rng.normal(-0.3, 0.35)),
        accent=int(rng.integers(2**31)),
    )
