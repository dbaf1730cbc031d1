"""People and their movements: seeded subjects, and the joint positions of each gesture over time.

Lengths are in meters, times in seconds, angles in radians. World axes as seen by the camera: x to the right, y down, z
from the subject toward the camera; the origin is midway between the shoulders. The subject roughly faces the camera, so
the right arm is on the left of the image. "Clockwise" is as seen by the camera.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CLASS_NAMES = (
    "hand clapping",
    "right hand wave",
    "left hand wave",
    "right arm clockwise",
    "right arm counter-clockwise",
    "left arm clockwise",
    "left arm counter-clockwise",
    "arm roll",
    "air drums",
    "air guitar",
    "other gestures",
)

RIGHT, LEFT = 0, 1
# sign of x in the image of the outward direction of each arm
OUTWARD = np.array([-1.0, 1.0])
# standard deviation of the angle by which a person is turned away from the camera, in radians
TURN = 0.25

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Subject:
    """One person, with clothes, background wall and habits, which are the same in all of their recordings."""

    shoulder_width: float
    upper_arm: float
    forearm: float
    limb_radius: float
    hand_radius: float
    head_radius: float
    torso_radius: float
    torso_length: float
    skin: float
    shirt: float
    hair: float
    background: float
    background_texture: float
    long_sleeves: bool
    shirt_texture: float
    limb_texture: float
    texture_frequency: float
    tempo: float
    amplitude: float
    elbow_lift: float
    raise_: float
    spread: float
    left_handed: bool

    @property
    def reach(self) -> float:
        """Length of the stretched arm to the wrist in meters."""
        return self.upper_arm + self.forearm


def draw_subject(rng: np.random.Generator) -> Subject:
    """Draw a random person; reflectances are fractions of the light, in (0, 1)."""
    size = rng.normal(1.0, 0.07)
    build = np.exp(rng.normal(0.0, 0.15))
    background = np.exp(rng.uniform(np.log(0.06), np.log(0.75)))
    skin = np.exp(rng.uniform(np.log(0.18), np.log(0.65)))
    # a person is visible only in contrast to the wall, so draw again if the skin is about as bright
    while abs(np.log(skin / background)) < 0.45:
        skin = np.exp(rng.uniform(np.log(0.18), np.log(0.65)))
        background = np.exp(rng.uniform(np.log(0.06), np.log(0.75)))
    return Subject(
        shoulder_width=0.38 * size * rng.normal(1.0, 0.05),
        upper_arm=0.30 * size * rng.normal(1.0, 0.04),
        forearm=0.27 * size * rng.normal(1.0, 0.04),
        limb_radius=0.045 * size * build,
        hand_radius=0.060 * size * np.exp(rng.normal(0.0, 0.1)),
        head_radius=0.095 * size,
        torso_radius=0.135 * size * build**0.7,
        torso_length=0.50 * size,
        skin=float(skin),
        shirt=float(np.exp(rng.uniform(np.log(0.05), np.log(0.8)))),
        hair=float(np.exp(rng.uniform(np.log(0.04), np.log(0.4)))),
        background=float(background),
        background_texture=rng.uniform(0.05, 0.4),
        long_sleeves=bool(rng.random() < 0.5),
        shirt_texture=rng.uniform(0.05, 0.4),
        limb_texture=rng.uniform(0.05, 0.25),
        texture_frequency=rng.uniform(4.0, 12.0),
        tempo=float(np.exp(rng.normal(0.0, 0.15))),
        amplitude=float(np.exp(rng.normal(0.0, 0.12))),
        elbow_lift=rng.uniform(-0.5, 0.5),
        raise_=rng.normal(0.0, 0.06),
        spread=rng.normal(0.0, 0.06),
        left_handed=bool(rng.random() < 0.15),
    )


@dataclass(frozen=True)
class Motion:
    """Joint positions in meters at S instants; arms are ordered right, left."""

    shoulders: Array  # (2, S, 3)
    elbows: Array  # (2, S, 3)
    hands: Array  # (2, S, 3)
    neck: Array  # (S, 3)


def move(class_index: int, subject: Subject, time: Array, rng: np.random.Generator) -> Motion:
    """Move a subject through one gesture.

    Args:
        class_index: gesture, an index into ``CLASS_NAMES``.
        subject: the person.
        time: instants in seconds, shape ``(S,)``.
        rng: draws phase, tempo, amplitude, place and facing of this recording, and their variation over time.

    Returns:
        The joints at each instant.
    """
    hands = hand_paths(class_index, subject, time, rng) * subject.reach
    place = np.stack([wander(time, 0.012, rng), wander(time, 0.008, rng), np.zeros_like(time)], axis=-1)
    place[:, 0] += rng.normal(0.0, 0.06)
    place[:, 1] += rng.normal(0.0, 0.05)
    place[:, 2] += rng.normal(0.0, 0.12)

    hands[..., 0] *= OUTWARD[:, None]
    shoulders = np.zeros_like(hands)
    shoulders[..., 0] = OUTWARD[:, None] * subject.shoulder_width / 2
    # the trunk follows the moving arms a little
    place = place + 0.04 * hands.mean(axis=0)
    shoulders = shoulders + place
    hands = shoulders + hands
    elbow_pole = np.stack([0.6 * OUTWARD, np.full(2, 0.8 - subject.elbow_lift), np.full(2, -0.35)], axis=-1)
    elbows, hands = bend_arms(shoulders, hands, elbow_pole[:, None], subject.upper_arm, subject.forearm)
    angle = rng.normal(0.0, TURN)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]])
    shoulders, elbows, hands = (place + (joints - place) @ turn for joints in (shoulders, elbows, hands))
    return Motion(shoulders, elbows, hands, place)


def wander(time: Array, amplitude: float, rng: np.random.Generator) -> Array:
    """Return a slow random function of time, ``(S,)``, with RMS ``amplitude``: three sinusoids of 0.15-0.8 Hz."""
    frequency = rng.uniform(0.15, 0.8, (3, 1))
    phase = rng.uniform(0.0, 2 * np.pi, (3, 1))
    position: Array = amplitude * np.sqrt(2 / 3) * np.sin(2 * np.pi * frequency * time + phase).sum(axis=0)
    return position


def bend_arms(shoulders: Array, hands: Array, pole: Array, upper_arm: float, forearm: float) -> tuple[Array, Array]:
    """Return elbows, bent toward ``pole``, and hands of two-bone arms; hands out of reach are moved into reach.

    With d the distance from shoulder to hand, the elbow lies ``(d^2 + u^2 - f^2) / 2d`` along the line and off it
    toward the pole, so that both bones keep their lengths u and f.
    """
    line = hands - shoulders
    distance = np.linalg.norm(line, axis=-1, keepdims=True)
    direction = line / distance
    distance = np.clip(distance, 1.2 * abs(upper_arm - forearm) + 0.05, 0.995 * (upper_arm + forearm))
    along = (distance**2 + upper_arm**2 - forearm**2) / (2 * distance)
    off = np.sqrt(np.maximum(upper_arm**2 - along**2, 0.0))
    sideways = pole - (pole * direction).sum(axis=-1, keepdims=True) * direction
    sideways = sideways / np.linalg.norm(sideways, axis=-1, keepdims=True)
    return shoulders + along * direction + off * sideways, shoulders + distance * direction


def hand_paths(class_index: int, subject: Subject, time: Array, rng: np.random.Generator) -> Array:
    """Return hand paths relative to the shoulders in arm lengths, ``(2, S, 3)``: outward, down, toward the camera."""
    match class_index:
        case 0:
            return _clap(subject, time, rng)
        case 1 | 2:
            return _one_arm(RIGHT if class_index == 1 else LEFT, _wave(subject, time, rng), time, rng)
        case 3 | 4 | 5 | 6:
            arm = RIGHT if class_index in (3, 4) else LEFT
            clockwise = class_index in (3, 5)
            # y points down, so increasing angles are clockwise if outward is +x, which is the left arm
            turn = OUTWARD[arm] if clockwise else -OUTWARD[arm]
            return _one_arm(arm, _circle(turn, subject, time, rng), time, rng)
        case 7:
            return _roll(subject, time, rng)
        case 8:
            return _drum(subject, time, rng)
        case 9:
            return _guitar(subject, time, rng)
        case 10:
            return _other(subject, time, rng)
    raise ValueError(
        f"Expected argument `class_index` to be an integer from 0 to {len(CLASS_NAMES) - 1}, but got {class_index}"
    )


def _phase(tempo: float, subject: Subject, time: Array, rng: np.random.Generator) -> Array:
    """Return the phase in radians of a movement of about ``tempo`` Hz, which varies; the initial phase is random."""
    frequency = tempo * subject.tempo * float(np.exp(rng.normal(0.0, 0.08)))
    return rng.uniform(0.0, 2 * np.pi) + 2 * np.pi * frequency * time + wander(time, 0.25, rng)


def _size(subject: Subject, time: Array, rng: np.random.Generator) -> Array:
    """Return the relative extent of a movement over time: subject, recording, and variation within it."""
    return subject.amplitude * float(np.exp(rng.normal(0.0, 0.08))) * (1 + wander(time, 0.07, rng))


def _path(outward: Array | float, down: Array | float, front: Array | float, time: Array) -> Array:
    return np.stack([np.broadcast_to(axis, time.shape) for axis in (outward, down, front)], axis=-1)


def _midline(subject: Subject) -> float:
    """Return the outward coordinate of the body's midline relative to a shoulder, in arm lengths."""
    return -0.5 * subject.shoulder_width / subject.reach


def _one_arm(arm: int, path: Array, time: Array, rng: np.random.Generator) -> Array:
    """Return the paths of both hands if one arm moves along ``path`` and the other hangs."""
    hanging = _path(
        0.12 + abs(rng.normal(0.0, 0.06)) + wander(time, 0.01, rng), 0.9, 0.15 + wander(time, 0.02, rng), time
    )
    return np.stack([path, hanging] if arm == RIGHT else [hanging, path])


def _clap(subject: Subject, time: Array, rng: np.random.Generator) -> Array:
    phase = _phase(2.2, subject, time, rng)
    gap = 0.40 * _size(subject, time, rng) * (0.5 + 0.5 * np.cos(phase)) ** 0.8 + 0.05
    down = 0.25 + subject.raise_ + rng.normal(0.0, 0.06) + wander(time, 0.03, rng)
    path = _path(_midline(subject) + gap, down, 0.65, time)
    return np.stack([path, path])


def _wave(subject: Subject, time: Array, rng: np.random.Generator) -> Array:
    """Swing the forearm around a raised elbow."""
    angle = 0.60 * _size(subject, time, rng) * np.sin(_phase(1.9, subject, time, rng))
    angle = angle + rng.normal(0.0, 0.12) + wander(time, 0.05, rng)
    pivot_outward = 0.32 + subject.spread + rng.normal(0.0, 0.05)
    pivot_down = 0.08 + subject.raise_ + rng.normal(0.0, 0.06)
    return _path(pivot_outward + 0.5 * np.sin(angle), pivot_down - 0.5 * np.cos(angle), 0.35, time)


def _circle(turn: float, subject: Subject, time: Array, rng: np.random.Generator) -> Array:
    """Circle the hand next to the body; ``turn`` (+1 or -1) is the direction and affects nothing else."""
    phase = _phase(1.25, subject, time, rng)
    angle = phase[0] + turn * (phase - phase[0])
    radius = 0.42 * _size(subject, time, rng)
    flatness = rng.uniform(0.75, 1.0)
    tilt = rng.normal(0.0, 0.4)
    along, across = radius * np.cos(angle), radius * flatness * np.sin(angle)
    outward = 0.42 + subject.spread + rng.normal(0.0, 0.06) + wander(time, 0.02, rng)
    down = 0.05 + subject.raise_ + rng.normal(0.0, 0.08) + wander(time, 0.02, rng)
    depth = rng.normal(0.0, 0.15) * along + rng.normal(0.0, 0.15) * across
    return _path(
        outward + np.cos(tilt) * along - np.sin(tilt) * across,
        down + np.sin(tilt) * along + np.cos(tilt) * across,
        0.4 + depth,
        time,
    )


def _roll(subject: Subject, time: Array, rng: np.random.Generator) -> Array:
    """Roll the forearms around each other in front of the chest, in either direction."""
    phase = rng.choice([-1.0, 1.0]) * _phase(1.8, subject, time, rng)
    radius = 0.20 * _size(subject, time, rng)
    down = 0.32 + subject.raise_ + rng.normal(0.0, 0.06) + wander(time, 0.02, rng)
    inward = _midline(subject) - 0.10 + rng.normal(0.0, 0.04)
    return np.stack(
        [
            _path(inward, down + radius * np.sin(angle), 0.6 + radius * np.cos(angle), time)
            for angle in (phase, phase + np.pi)
        ]
    )


def _drum(subject: Subject, time: Array, rng: np.random.Generator) -> Array:
    """Strike downwards with both hands in turn."""
    phase = _phase(2.1, subject, time, rng)
    height = 0.42 * _size(subject, time, rng)
    down = 0.55 + subject.raise_ + rng.normal(0.0, 0.06)
    lag = np.pi + rng.normal(0.0, 0.4)
    outward = -0.05 + subject.spread + rng.normal(0.0, 0.05)
    return np.stack(
        [
            _path(outward, down - height * (0.5 + 0.5 * np.sin(angle)) ** 0.7, 0.6, time)
            for angle in (phase, phase + lag)
        ]
    )


def _guitar(subject: Subject, time: Array, rng: np.random.Generator) -> Array:
    """Strum with one hand at the belly, and slide the other along the neck of the guitar."""
    strum = 0.22 * _size(subject, time, rng) * np.sin(_phase(2.6, subject, time, rng))
    strumming = _path(
        _midline(subject) + 0.12 + rng.normal(0.0, 0.05) + 0.3 * strum,
        0.62 + subject.raise_ + rng.normal(0.0, 0.05) + strum,
        0.45,
        time,
    )
    slide = wander(time, 0.08, rng)
    holding = _path(
        0.42 + subject.spread + rng.normal(0.0, 0.06) + slide,
        0.28 + subject.raise_ + rng.normal(0.0, 0.06) - 0.4 * slide,
        0.4,
        time,
    )
    return np.stack([holding, strumming] if subject.left_handed else [strumming, holding])


def _other(subject: Subject, time: Array, rng: np.random.Generator) -> Array:
    """Improvise: one or both hands swing along a random line or figure that no other class has."""
    kind = rng.integers(4)
    phase = _phase(1.5, subject, time, rng)
    size = _size(subject, time, rng)
    swing = np.sin(phase)
    if kind == 0:  # both arms flap, sideways and up
        path = _path(0.75 - 0.15 * swing**2, 0.25 + 0.5 * size * swing, 0.2, time)
        return np.stack([path, path])
    if kind == 1:  # both arms punch forwards in turn
        paths = [
            _path(-0.15, 0.2 - 0.12 * side * size * swing, 0.55 + 0.35 * side * size * swing, time) for side in (-1, 1)
        ]
        return np.stack(paths)
    if kind == 2:  # both hands sweep from side to side together
        sweep = 0.35 * size * swing
        down = 0.25 + rng.normal(0.0, 0.1)
        return np.stack([_path(0.05 + side * sweep, down, 0.55, time) for side in (-1, 1)])
    # one hand draws a figure of eight
    figure = _path(0.3 + 0.35 * size * swing, 0.15 + 0.3 * size * np.sin(2 * phase), 0.5, time)
    return _one_arm(int(rng.integers(2)), figure, time, rng)
