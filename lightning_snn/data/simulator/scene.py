"""Images of the scene: lights, and a moving body drawn as soft capsules in front of a wall."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .body import LEFT, RIGHT, Array, Motion, Subject

Frames = NDArray[np.float32]

# height and width of the field of view at the subject's distance, in meters
FIELD_OF_VIEW = 1.4
CAMERA_DISTANCE = 2.4
# distance of the image center below the shoulders, in meters
VIEW_CENTER = 0.12
# width of the brightness transition at an edge, in pixels
EDGE_WIDTH = 1.2


@dataclass(frozen=True)
class Light:
    """Light in the room.

    Args:
        name: name of the light.
        gain: brightness of a white wall; the dark level of the pixels is 0.03 on this scale.
        gradient: largest relative change of brightness from the center of the image to its edge.
        noise: standard deviation of the relative shot noise of a white wall at gain 1, within 10 ms and a pixel of a
            32x32 sensor.
        bandwidth: cut-off frequency of the photoreceptor in hertz; pixels are slower in dim light.
    """

    name: str
    gain: float
    gradient: float
    noise: float
    bandwidth: float


LIGHTS = (
    Light("led", gain=1.0, gradient=0.15, noise=0.003, bandwidth=40.0),
    Light("fluorescent", gain=0.6, gradient=0.10, noise=0.0045, bandwidth=30.0),
    Light("daylight", gain=2.0, gradient=0.35, noise=0.003, bandwidth=60.0),
    Light("lab", gain=0.4, gradient=0.20, noise=0.0045, bandwidth=20.0),
)
# used in the test split only
UNSEEN_LIGHT = Light("desk lamp", gain=0.2, gradient=0.5, noise=0.0045, bandwidth=14.0)


def render(subject: Subject, motion: Motion, light: Light, size: int, rng: np.random.Generator) -> Frames:
    """Draw a moving subject under a light.

    Args:
        subject: body measures, reflectances and textures.
        motion: joints at S instants.
        light: gain and gradient.
        size: height and width of the image in pixels.
        rng: draws the pattern of the wall, the direction of the light and the phases of textures.

    Returns:
        Brightness on the scale of ``Light.gain``, shape ``(S, size, size)``.
    """
    steps = len(motion.neck)
    image: Frames = np.empty((steps, size, size), dtype=np.float32)
    image[:] = subject.background * (1 + subject.background_texture * _pattern(size, rng))

    def stroke(start: Array, end: Array, radius: float, reflectance: float, texture: float = 0.0) -> None:
        length = float(np.linalg.norm(end - start, axis=-1).max())
        first, scale = _project(start, size)
        last, _ = _project(end, size)
        draw_capsule(
            image,
            first,
            last,
            radius * scale,
            reflectance,
            texture,
            subject.texture_frequency * length,
            rng.uniform(0, 2 * np.pi),
        )

    down = np.array([0.0, 1.0, 0.0])
    chest = motion.neck + 0.9 * subject.torso_radius * down
    stroke(chest, motion.neck + subject.torso_length * down, subject.torso_radius, subject.shirt, subject.shirt_texture)
    stroke(motion.shoulders[RIGHT], motion.shoulders[LEFT], 1.1 * subject.limb_radius, subject.shirt)
    chin = motion.neck - 1.3 * subject.head_radius * down
    crown = motion.neck - 2.1 * subject.head_radius * down
    stroke(crown, crown, 1.05 * subject.head_radius, subject.hair)
    stroke(chin, chin, 0.95 * subject.head_radius, subject.skin)

    right_is_far = (motion.hands[RIGHT, :, 2] < motion.hands[LEFT, :, 2])[:, None]
    for near in (False, True):
        shoulder, elbow, hand = (
            np.where(right_is_far != near, joint[RIGHT], joint[LEFT])
            for joint in (motion.shoulders, motion.elbows, motion.hands)
        )
        sleeve = subject.shirt if subject.long_sleeves else subject.skin
        stroke(shoulder, elbow, 1.15 * subject.limb_radius, subject.shirt, subject.limb_texture)
        stroke(elbow, hand, 0.9 * subject.limb_radius, sleeve, subject.limb_texture)
        stroke(hand, hand, subject.hand_radius, subject.skin)

    brightness: Frames = image * np.float32(light.gain) * _illumination(light, size, rng)
    return brightness


def draw_capsule(
    image: Frames,
    start: Array,
    end: Array,
    radius: Array,
    reflectance: float,
    texture: float,
    cycles: float,
    phase: float,
) -> None:
    """Draw over ``image``, in place, all points within ``radius`` of the segment from ``start`` to ``end``.

    Only a window around the capsule is changed, of the same shape at all instants so that they are drawn together.

    Args:
        image: shape ``(S, H, W)``.
        start: one end of the segment in pixels (x, y), shape ``(S, 2)``.
        end: the other end.
        radius: in pixels, shape ``(S,)``.
        reflectance: brightness, in (0, 1).
        texture: relative contrast of the stripes along the segment, in [0, 1).
        cycles: number of stripes.
        phase: phase of the stripes at ``start``, in radians.
    """
    steps, height, width = image.shape
    span = np.abs(end - start).max(axis=0) / 2 + float(radius.max()) + EDGE_WIDTH
    window_x, window_y = np.minimum(2 * np.ceil(span).astype(int) + 1, (width, height))
    corner = np.floor((start + end) / 2 - np.array([window_x, window_y]) / 2).astype(int) + 1
    corner = np.clip(corner, 0, (width - window_x, height - window_y))

    columns = corner[:, 0, None] + np.arange(window_x)
    rows = corner[:, 1, None] + np.arange(window_y)
    offset_x = (columns + 0.5 - start[:, 0, None]).astype(np.float32)[:, None, :]
    offset_y = (rows + 0.5 - start[:, 1, None]).astype(np.float32)[:, :, None]
    axis = (end - start).astype(np.float32)
    axis_x, axis_y = axis[:, 0, None, None], axis[:, 1, None, None]
    length_squared = np.maximum((axis**2).sum(axis=-1), np.float32(1e-6))[:, None, None]

    along = np.clip(offset_x * (axis_x / length_squared) + offset_y * (axis_y / length_squared), 0, 1)
    distance = np.sqrt((offset_x - along * axis_x) ** 2 + (offset_y - along * axis_y) ** 2)
    width_at = radius.astype(np.float32)[:, None, None]
    coverage = np.clip((width_at - distance) * np.float32(1 / EDGE_WIDTH) + np.float32(0.5), 0, 1)
    brightness: Frames = np.float32(reflectance) * (1 - np.float32(0.3) * np.minimum(distance / width_at, 1) ** 2)
    if texture > 0:
        brightness *= 1 + np.float32(texture) * np.sin(np.float32(2 * np.pi * cycles) * along + np.float32(phase))

    index = (np.arange(steps)[:, None] * height + rows)[:, :, None] * width + columns[:, None, :]
    pixels = image.reshape(-1)
    behind = pixels.take(index)
    pixels[index] = behind + coverage * (brightness - behind)


def _project(point: Array, size: int) -> tuple[Array, Array]:
    """Return pixel coordinates ``(S, 2)`` and pixels per meter ``(S,)`` of points ``(S, 3)`` in a pinhole camera."""
    scale = size / FIELD_OF_VIEW * CAMERA_DISTANCE / (CAMERA_DISTANCE - point[:, 2])
    shifted = point[:, :2] - np.array([0.0, VIEW_CENTER])
    return shifted * scale[:, None] + size / 2, scale


def _pattern(size: int, rng: np.random.Generator) -> Frames:
    """Return a smooth random pattern of mean 0 and values in [-1, 1], shape ``(size, size)``."""
    coarse = rng.uniform(-1.0, 1.0, (7, 7))
    position = np.linspace(0, 5.999, size)
    cell = position.astype(int)
    weight = np.zeros((size, 7))
    weight[np.arange(size), cell] = 1 - (position - cell)
    weight[np.arange(size), cell + 1] = position - cell
    pattern: Frames = (weight @ coarse @ weight.T).astype(np.float32)
    return pattern


def _illumination(light: Light, size: int, rng: np.random.Generator) -> Frames:
    """Return the relative brightness over the image, shape ``(size, size)``: a plane that falls off to one side."""
    direction = rng.uniform(0, 2 * np.pi)
    position = np.linspace(-1, 1, size)
    plane = np.cos(direction) * position[None, :] + np.sin(direction) * position[:, None]
    brightness: Frames = (1 + light.gradient * plane / np.sqrt(2)).astype(np.float32)
    return brightness
