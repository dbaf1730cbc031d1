"""Simulator of spoken digits as spikes of a cochlea, in the form of the Spiking Heidelberg Digits.

The recordings are *simulated*: no person spoke them, and accuracies on them are not comparable with published ones on
the Spiking Heidelberg Digits. The classes are the same: the English and the German digits from zero to nine.

This package imports only NumPy, so that processes that generate recordings start without torch.

Sources: for the data set, Cramer, Stradmann, Schemmel, Zenke, "The Heidelberg spiking data sets for the systematic
evaluation of spiking neural networks", IEEE Transactions on Neural Networks and Learning Systems 33, 2022; for the
voice, Klatt, "Software for a cascade/parallel formant synthesizer", JASA 67, 1980.
"""

from __future__ import annotations

from lightning_snn.data.parallel import simulate_split

from .cochlea import UNITS, Cochlea, center_frequencies, envelopes, hear
from .phonemes import CLASS_NAMES, PHONEMES, PRONUNCIATIONS
from .recording import SPEECH_VERSION, Split, simulate_spikes
from .speaker import Speaker, draw_speaker
from .voice import SAMPLE_RATE, articulate, speak

__all__ = [
    "CLASS_NAMES",
    "PHONEMES",
    "PRONUNCIATIONS",
    "SAMPLE_RATE",
    "SPEECH_VERSION",
    "UNITS",
    "Cochlea",
    "Speaker",
    "Split",
    "articulate",
    "center_frequencies",
    "draw_speaker",
    "envelopes",
    "hear",
    "simulate_spikes",
    "simulate_split",
    "speak",
]
