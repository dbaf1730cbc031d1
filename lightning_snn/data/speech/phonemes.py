"""Speech sounds and the words made of them: the English and the German digits from zero to nine.

Formants are those of an adult man, in hertz: vowels after Peterson and Barney (1952), consonants after Klatt (1980).
Vowels of the two languages that differ little share an entry, so some words of the two languages are hard to tell
apart, such as "nine" and "neun" or "six" and "sechs".
"""

from __future__ import annotations

from dataclasses import dataclass

ENGLISH = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
GERMAN = ("null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun")


@dataclass(frozen=True)
class Phoneme:
    """One speech sound.

    Args:
        formants: first three resonances of the vocal tract in hertz.
        duration: typical length in seconds.
        voice: amplitude of the glottal pulses, 1 in a vowel.
        breath: amplitude of noise at the glottis, which the vocal tract filters.
        noise: amplitude of noise at a constriction.
        noise_center: frequency in hertz where the spectrum of that noise is largest.
        noise_width: standard deviation of that spectrum in hertz.
        zero: frequency in hertz that the nose takes out; 0 if the nose is closed.
    """

    formants: tuple[float, float, float]
    duration: float
    voice: float = 0.0
    breath: float = 0.0
    noise: float = 0.0
    noise_center: float = 5000.0
    noise_width: float = 1500.0
    zero: float = 0.0


def _vowel(first: float, second: float, third: float, duration: float) -> Phoneme:
    return Phoneme((first, second, third), duration, voice=1.0, breath=0.02)


# a stop is a closure, whose name ends in "-", and a release
PHONEMES = {
    "iː": _vowel(270, 2290, 3010, 0.15),
    "ɪ": _vowel(390, 1990, 2550, 0.09),
    "ɛ": _vowel(530, 1840, 2480, 0.12),
    "e": _vowel(430, 2050, 2600, 0.11),
    "ə": _vowel(500, 1450, 2420, 0.06),
    "ɐ": _vowel(600, 1300, 2400, 0.09),
    "a": _vowel(730, 1200, 2440, 0.13),
    "ʌ": _vowel(640, 1190, 2390, 0.13),
    "ɔ": _vowel(570, 840, 2410, 0.15),
    "o": _vowel(480, 880, 2350, 0.12),
    "ʊ": _vowel(400, 920, 2240, 0.10),
    "uː": _vowel(300, 870, 2240, 0.16),
    "ʏ": _vowel(380, 1600, 2200, 0.11),
    "w": Phoneme((300, 680, 2200), 0.07, voice=0.6),
    "ɹ": Phoneme((340, 1100, 1550), 0.08, voice=0.6),
    "ʁ": Phoneme((420, 1150, 2300), 0.06, voice=0.5, noise=0.06, noise_center=1300, noise_width=400),
    "l": Phoneme((340, 1150, 2700), 0.11, voice=0.55),
    "n": Phoneme((270, 1550, 2500), 0.09, voice=0.45, zero=1100),
    "v": Phoneme((250, 1150, 2300), 0.07, voice=0.4, noise=0.05, noise_center=5500, noise_width=2500),
    "z": Phoneme((260, 1550, 2550), 0.10, voice=0.35, noise=0.25, noise_center=6200, noise_width=1200),
    "s": Phoneme((300, 1600, 2600), 0.13, noise=0.60, noise_center=6200, noise_width=1200),
    "f": Phoneme((320, 1100, 2200), 0.11, noise=0.13, noise_center=5500, noise_width=3000),
    "θ": Phoneme((320, 1400, 2550), 0.11, noise=0.10, noise_center=6800, noise_width=2200),
    "x": Phoneme((550, 1250, 2400), 0.12, breath=0.10, noise=0.25, noise_center=1400, noise_width=450),
    "t-": Phoneme((280, 1700, 2600), 0.06),
    "t": Phoneme((320, 1750, 2650), 0.05, breath=0.12, noise=0.45, noise_center=4500, noise_width=1500),
    "d": Phoneme((280, 1700, 2600), 0.03, voice=0.3, noise=0.30, noise_center=4200, noise_width=1400),
    "k-": Phoneme((280, 2000, 2500), 0.06),
    "k": Phoneme((350, 1950, 2500), 0.04, breath=0.10, noise=0.40, noise_center=2100, noise_width=500),
    "b-": Phoneme((250, 900, 2200), 0.05, voice=0.2),
    "b": Phoneme((300, 950, 2200), 0.015, voice=0.4, noise=0.12, noise_center=900, noise_width=500),
}

PRONUNCIATIONS = {
    "zero": ("z", "ɪ", "ɹ", "o", "ʊ"),
    "one": ("w", "ʌ", "n"),
    "two": ("t", "uː"),
    "three": ("θ", "ɹ", "iː"),
    "four": ("f", "ɔ", "ɹ"),
    "five": ("f", "a", "ɪ", "v"),
    "six": ("s", "ɪ", "k-", "k", "s"),
    "seven": ("s", "ɛ", "v", "ə", "n"),
    "eight": ("e", "ɪ", "t-", "t"),
    "nine": ("n", "a", "ɪ", "n"),
    "null": ("n", "ʊ", "l"),
    "eins": ("a", "ɪ", "n", "s"),
    "zwei": ("t", "s", "v", "a", "ɪ"),
    "drei": ("d", "ʁ", "a", "ɪ"),
    "vier": ("f", "iː", "ɐ"),
    "fünf": ("f", "ʏ", "n", "f"),
    "sechs": ("z", "ɛ", "k-", "k", "s"),
    "sieben": ("z", "iː", "b-", "b", "ə", "n"),
    "acht": ("a", "x", "t-", "t"),
    "neun": ("n", "ɔ", "ɪ", "n"),
}
"""Speech sounds of each word, in order."""

CLASS_NAMES = (*ENGLISH, *GERMAN)
"""Words in the order of the labels, which is that of the Spiking Heidelberg Digits."""
