"""Simulator of event-camera recordings of people who make the 11 gestures of DVS128 Gesture.

The recordings are *simulated*: accuracies on them are not comparable with published ones on DVS128 Gesture. The
classes of each pair in ``DIRECTION_PAIRS`` differ only in the direction of motion.

This package imports only NumPy, so that processes that generate recordings start without torch.

Sources: for the events of a DVS128 camera, Lichtsteiner, Posch, Delbruck, "A 128x128 120 dB 15 us latency asynchronous
temporal contrast vision sensor", IEEE J. Solid-State Circuits 43(2), 2008; for the gestures, Amir et al., "A low power,
fully event-based gesture recognition system", CVPR 2017.
"""

from __future__ import annotations

from lightning_snn.data.parallel import simulate_split

from .body import CLASS_NAMES, Subject, draw_subject
from .recording import (
    DIRECTION_PAIRS,
    MIRRORED_CLASSES,
    SIMULATOR_VERSION,
    Split,
    simulate_counts,
    simulate_events,
    simulate_frames,
)
from .scene import LIGHTS, UNSEEN_LIGHT, Light

__all__ = [
    "CLASS_NAMES",
    "DIRECTION_PAIRS",
    "LIGHTS",
    "MIRRORED_CLASSES",
    "SIMULATOR_VERSION",
    "UNSEEN_LIGHT",
    "Light",
    "Split",
    "Subject",
    "draw_subject",
    "simulate_counts",
    "simulate_events",
    "simulate_frames",
    "simulate_split",
]
