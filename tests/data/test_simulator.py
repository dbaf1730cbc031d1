from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import lfilter

from lightning_snn.data import parallel
from lightning_snn.data.frames import frame_events
from lightning_snn.data.simulator import (
    CLASS_NAMES,
    DIRECTION_PAIRS,
    LIGHTS,
    UNSEEN_LIGHT,
    Light,
    Split,
    Subject,
    body,
    draw_subject,
    recording,
    scene,
    simulate_counts,
    simulate_events,
    simulate_frames,
    simulate_split,
)
from lightning_snn.data.simulator.body import LEFT, RIGHT, bend_arms, hand_paths, move, wander
from lightning_snn.data.simulator.sensor import Sensor, make_sensor, simulate_sensor

OFF, ON = 0, 1
STEP = 0.0125
TINY = Split("train", subjects=1, repetitions=1)
CIRCLES = {3: (RIGHT, +1), 4: (RIGHT, -1), 5: (LEFT, +1), 6: (LEFT, -1)}


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def person(seed: int = 0) -> Subject:
    return draw_subject(generator(seed))


def quiet_sensor(size: int, threshold: float = 0.2, refractory: float = 1e-4) -> Sensor:
    """A camera without noise events."""
    thresholds = np.full((size, size), threshold, np.float32)
    return Sensor(thresholds, 1.1 * thresholds, np.zeros((size, size), np.float32), 0.0, refractory=refractory)


def test_a_brighter_patch_gives_on_events_and_a_darker_one_off_events() -> None:
    brightness = np.full((40, 12, 12), 0.3, np.float32)
    brightness[10:, 1:5, 1:5] = 0.9
    brightness[10:, 7:11, 7:11] = 0.1
    counts = simulate_sensor(brightness, quiet_sensor(12), STEP, bandwidth=40.0, noise=0.0, rng=generator()).sum(axis=0)
    # ln(0.93 / 0.33) / 0.2 = 5.2 ON and ln(0.33 / 0.13) / 0.22 = 4.2 OFF thresholds, from a level known to half a one.
    assert set(np.unique(counts[ON, 1:5, 1:5])) <= {4, 5}
    assert set(np.unique(counts[OFF, 7:11, 7:11])) <= {3, 4}
    counts[ON, 1:5, 1:5] = counts[OFF, 7:11, 7:11] = 0
    assert counts.sum() == 0


def test_a_still_scene_without_noise_gives_no_events() -> None:
    brightness = np.broadcast_to(generator().uniform(0.05, 1.0, (8, 8)).astype(np.float32), (200, 8, 8))
    assert simulate_sensor(brightness, quiet_sensor(8), STEP, 40.0, noise=0.0, rng=generator()).sum() == 0
    assert simulate_sensor(brightness, quiet_sensor(8), STEP, 40.0, noise=0.1, rng=generator()).sum() > 100


def test_events_keep_track_of_the_low_pass_filtered_logarithm_of_brightness() -> None:
    """Adding up the thresholds of a pixel's events gives its level, never further off than one and a half of them."""
    time = np.arange(400) * STEP
    frequency, phase = generator(1).uniform(0.1, 4.0, (3, 6, 6)), generator(2).uniform(0, 6.28, (3, 6, 6))
    waves = np.sin(2 * np.pi * frequency * time[:, None, None, None] + phase).sum(axis=1)
    brightness = np.exp(waves - 1.5).astype(np.float32)
    sensor = quiet_sensor(6)
    counts = simulate_sensor(brightness, sensor, STEP, bandwidth=6.0, noise=0.0, rng=generator()).astype(np.float64)
    summed = (counts[:, ON] * sensor.on_threshold - counts[:, OFF] * sensor.off_threshold).cumsum(axis=0)

    def error(bandwidth: float) -> float:
        light = np.log(brightness.astype(np.float64) + sensor.dark)
        keep = np.exp(-2 * np.pi * bandwidth * STEP)
        level = light[:1] + lfilter([1 - keep], [1, -keep], light - light[:1], axis=0)
        return np.abs(level - level[0] - summed).max() / sensor.off_threshold.max()

    assert error(6.0) < 1.5
    assert error(24.0) > 3
    assert counts.sum() > 5000


def test_thresholds_differ_between_pixels_by_ten_per_cent() -> None:
    sensor = make_sensor(64, threshold=0.2)
    on, off = np.log(sensor.on_threshold), np.log(sensor.off_threshold)
    for thresholds in (on, off):
        assert np.median(thresholds) == pytest.approx(np.log(0.2), abs=0.01)
        assert thresholds.std() == pytest.approx(0.1, rel=0.05)
    assert abs(np.corrcoef(on.ravel(), off.ravel())[0, 1]) < 0.05
    assert np.array_equal(make_sensor(64, threshold=0.2).on_threshold, sensor.on_threshold)
    assert not np.array_equal(make_sensor(32, threshold=0.2).on_threshold, sensor.on_threshold[:32, :32])
    # A pixel covers more of a real camera's the fewer there are, and their events add up.
    assert [np.median(make_sensor(size).off_threshold) for size in (32, 64)] == pytest.approx([0.05, 0.141], rel=0.02)


@pytest.mark.parametrize(("refractory", "step", "most"), [(2e-3, 0.0125, 6), (1e-4, 0.0125, 27), (2e-3, 1e-3, 1)])
def test_a_pixel_fires_no_faster_than_its_dead_time_allows(refractory: float, step: float, most: int) -> None:
    brightness = np.empty((20, 4, 4), np.float32)
    brightness[::2], brightness[1::2] = 0.01, 10.0
    sensor = quiet_sensor(4, refractory=refractory)
    counts = simulate_sensor(brightness, sensor, step, bandwidth=1e4, noise=0.0, rng=generator())
    # Unhindered, a step between 0.01 and 10 is worth ln(10.03 / 0.04) / 0.2 = 27.6 ON or 25.1 OFF events.
    assert counts[1::2, ON].max() == most
    assert counts[2::2, OFF].min() == min(most, 24)


def test_pixels_fire_by_themselves_at_the_rates_of_the_sensor() -> None:
    sensor, seconds = make_sensor(32), 50.0
    brightness = np.full((int(seconds / STEP), 32, 32), 0.3, np.float32)
    counts = simulate_sensor(brightness, sensor, STEP, 40.0, noise=0.0, rng=generator()).sum(axis=0, dtype=np.int64)
    hot = sensor.hot_rate > 0
    assert hot.sum() == 3
    expected = (sensor.hot_rate[hot] + sensor.background_rate) * seconds
    assert np.all(np.abs(counts[:, hot] - expected) < 4 * np.sqrt(expected))
    quiet = counts[:, ~hot]
    assert quiet.mean() / seconds == pytest.approx(sensor.background_rate, rel=0.05)
    # A Poisson process: the variance over pixels equals the mean.
    assert quiet.var() / quiet.mean() == pytest.approx(1.0, abs=0.12)


def test_dim_pixels_are_noisier_and_slower() -> None:
    def noise_events(brightness: float) -> int:
        images = np.full((400, 8, 8), brightness, np.float32)
        return int(simulate_sensor(images, quiet_sensor(8), STEP, 40.0, noise=0.03, rng=generator()).sum())

    assert noise_events(0.02) > 5 * noise_events(0.2)

    def delay(bandwidth: float) -> float:
        images = np.full((60, 8, 8), 0.1, np.float32)
        images[10:] = 1.0
        counts = simulate_sensor(images, quiet_sensor(8), STEP, bandwidth, noise=0.0, rng=generator())
        events = counts[:, ON].sum(axis=(1, 2))
        return float((np.arange(60) - 10) @ events / events.sum()) * STEP

    # A first-order low-pass of cut-off f lags by 1 / (2 pi f).
    assert delay(2.0) == pytest.approx(1 / (2 * np.pi * 2.0), rel=0.3)
    assert delay(2.0) > 3 * delay(14.0)


def test_a_capsule_covers_what_lies_within_its_radius_of_the_segment() -> None:
    rng = generator()
    height, width, steps = 15, 19, 80
    # Among them capsules that lie partly or wholly outside of the image.
    start = rng.uniform(-5, 24, (steps, 2))
    end, radius = start + rng.uniform(-5, 5, (steps, 2)), rng.uniform(0.5, 3.0, steps)
    image, together = np.full((2, steps, height, width), 0.5, np.float32)
    for step in range(steps):
        one = slice(step, step + 1)
        scene.draw_capsule(image[one], start[one], end[one], radius[one], 0.9, texture=0.0, cycles=0.0, phase=0.0)
    scene.draw_capsule(together, start, end, radius, 0.9, texture=0.0, cycles=0.0, phase=0.0)
    assert np.allclose(image, together)
    touched = 0
    for step in range(steps):
        for row in range(height):
            for column in range(width):
                pixel = np.array([column + 0.5, row + 0.5])
                axis = end[step] - start[step]
                along = min(max((pixel - start[step]) @ axis / (axis @ axis), 0.0), 1.0)
                inside = radius[step] - np.linalg.norm(pixel - start[step] - along * axis)
                if inside > scene.EDGE_WIDTH / 2:
                    assert 0.6 < image[step, row, column] < 0.901
                    touched += 1
                elif inside < -scene.EDGE_WIDTH / 2:
                    assert image[step, row, column] == 0.5
                elif inside > -0.9 * scene.EDGE_WIDTH / 2:
                    assert image[step, row, column] > 0.5
    assert touched > 300


def test_brightness_is_positive_and_proportional_to_the_light() -> None:
    subject, time = person(), np.arange(20) * STEP
    lit = {
        gain: scene.render(
            subject, move(0, subject, time, generator()), Light("a", gain, 0.3, 0.0, 40.0), 32, generator(1)
        )
        for gain in (1.0, 0.25)
    }
    assert lit[1.0].min() > 0
    assert np.allclose(lit[0.25], 0.25 * lit[1.0])


def test_a_hand_is_seen_where_a_pinhole_camera_projects_it() -> None:
    subject = dataclasses.replace(person(), skin=0.6, background=0.1, long_sleeves=True, shirt=0.1, hair=0.1)
    motion = move(1, subject, np.arange(6) * STEP, generator())
    hands = motion.hands.copy()
    hands[RIGHT] = np.linspace([-0.5, -0.5, -0.4], [-0.35, 0.3, 0.6], 6)
    motion = dataclasses.replace(motion, hands=hands)
    image = scene.render(subject, motion, Light("a", 1.0, 0.0, 0.0, 40.0), 64, generator())
    # The camera stands 2.4 m away and sees 1.4 m there, centered 0.12 m below the shoulders.
    meters = 1.4 / 2.4 * (2.4 - hands[RIGHT, :, 2])
    column = ((hands[RIGHT, :, 0] / meters + 0.5) * 64).astype(int)
    row = (((hands[RIGHT, :, 1] - 0.12) / meters + 0.5) * 64).astype(int)
    assert np.all(np.abs(image[np.arange(6), row, column] - 0.6) < 0.06)
    # A little further from the body there is the wall.
    assert np.all(image[np.arange(6), row, column - 6] < 0.2)


def test_people_are_turned_around_the_vertical_axis_by_a_quarter_radian() -> None:
    subject, time = person(), np.arange(3) * STEP
    angles = []
    for seed in range(400):
        line = np.subtract(*move(3, subject, time, generator(seed)).shoulders[[LEFT, RIGHT]])
        assert np.allclose(line, line[0])
        assert np.linalg.norm(line[0]) == pytest.approx(subject.shoulder_width)
        assert line[0, 1] == 0
        angles.append(np.arctan2(line[0, 2], line[0, 0]))
    # 4 standard errors of a mean and of a standard deviation
    assert np.mean(angles) == pytest.approx(0.0, abs=4 * 0.25 / 400**0.5)
    assert np.std(angles) == pytest.approx(0.25, abs=4 * 0.25 / 800**0.5)


@pytest.mark.parametrize("class_index", range(len(CLASS_NAMES)))
def test_bones_keep_their_lengths(class_index: int) -> None:
    subject, time = person(class_index), np.arange(0, 2, 0.02)
    motion = move(class_index, subject, time, generator(class_index))
    assert np.allclose(np.linalg.norm(motion.elbows - motion.shoulders, axis=-1), subject.upper_arm)
    assert np.allclose(np.linalg.norm(motion.hands - motion.elbows, axis=-1), subject.forearm)
    assert np.ptp(motion.hands, axis=1).max() > 0.05


def test_a_hand_out_of_reach_is_drawn_in_along_its_line() -> None:
    shoulders, hands = np.zeros((1, 1, 3)), np.array([[[0.0, 3.0, 4.0]]])
    _, drawn = bend_arms(shoulders, hands, np.array([[[1.0, 0.0, 0.0]]]), 0.3, 0.3)
    assert np.allclose(drawn, 0.995 * 0.6 * np.array([0.0, 0.6, 0.8]))


def test_wander_has_the_amplitude_that_it_is_given() -> None:
    time = np.arange(0, 100, 0.05)
    for amplitude in (0.01, 0.25):
        assert wander(time, amplitude, generator()).std() == pytest.approx(amplitude, rel=0.05)


@pytest.mark.parametrize(("clockwise", "counter"), DIRECTION_PAIRS)
def test_time_reversal_turns_clockwise_into_counter_clockwise(
    clockwise: int, counter: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The wobble is a random function of time of which the reversed one is as likely; without it the symmetry is exact.
    monkeypatch.setattr(body, "wander", lambda time, amplitude, rng: np.zeros_like(time))
    subject, time = person(), np.arange(0, 1.6, STEP)

    def joints(class_index: int, instants: np.ndarray) -> list[np.ndarray]:
        return list(vars(move(class_index, subject, instants, generator())).values())

    forward, reversed_ = joints(clockwise, time), joints(counter, -time)
    assert all(np.allclose(one, other, atol=1e-12) for one, other in zip(forward, reversed_, strict=True))
    arm, _ = CIRCLES[clockwise]
    assert np.abs(forward[2] - joints(counter, time)[2])[arm].max() > 0.1
    other_arm = dict(DIRECTION_PAIRS[::-1])[5 if clockwise == 3 else 3]
    assert np.abs(forward[2] - joints(other_arm, -time)[2])[arm].max() > 0.1


@pytest.mark.parametrize("class_index", CIRCLES)
def test_hands_turn_the_way_their_class_says_as_the_camera_sees_them(class_index: int) -> None:
    arm, sense = CIRCLES[class_index]
    time = np.arange(0, 1.6, STEP)
    for seed in range(20):
        motion = move(class_index, person(seed), time, generator(seed))
        x, y = (motion.hands[arm] - motion.hands[arm].mean(axis=0))[:, :2].T
        # With y down, x dy - y dx is positive for a clockwise turn.
        turn = x[:-1] * y[1:] - y[:-1] * x[1:]
        assert np.sign(turn.sum()) == sense
        assert (np.sign(turn) == sense).mean() > 0.8


def test_a_class_out_of_range_is_named() -> None:
    for class_index in (-1, 11):
        with pytest.raises(ValueError, match=f"`class_index` to be an integer from 0 to 10, but got {class_index}"):
            hand_paths(class_index, person(), np.arange(3.0), generator())
        with pytest.raises(ValueError, match=f"`class_index` .*but got {class_index}"):
            simulate_frames(class_index, person(), LIGHTS[0], np.random.SeedSequence(0))


@pytest.mark.parametrize(
    ("size", "time_steps", "duration"), [(32, 16, 1.6), (32, 7, 1.0), (64, 5, 0.5), (32, 100, 0.3)]
)
def test_events_counted_in_bins_are_the_frames(size: int, time_steps: int, duration: float) -> None:
    for class_index in (0, 3, 9):
        arguments = (class_index, person(class_index), LIGHTS[1], np.random.SeedSequence(5), size, time_steps, duration)
        events, frames = simulate_events(*arguments), simulate_frames(*arguments)
        assert np.all(np.diff(events["t"]) >= 0)
        counted = frame_events(
            *(events[name] for name in "xypt"),
            time_steps=time_steps,
            sensor_size=(size, size),
            start=0,
            duration=round(duration * 1e6),
        )
        assert np.array_equal(counted, frames)
        assert frames.sum() > 200
        assert frames.dtype == np.uint8
        assert frames.shape == (time_steps, 2, size, size)


@pytest.mark.parametrize(("time_steps", "duration"), [(16, 1.6), (7, 1.0), (1, 0.01), (300, 0.3)])
def test_steps_are_short_and_divide_evenly_among_frames(time_steps: int, duration: float) -> None:
    counts, step = simulate_counts(3, person(), LIGHTS[0], np.random.SeedSequence(0), 32, time_steps, duration)
    assert len(counts) % time_steps == 0
    assert len(counts) * step == pytest.approx(duration)
    assert step < 1 / 60 + 1e-9
    assert counts.sum() > 0


def test_a_recording_depends_on_its_key_alone() -> None:
    key = np.random.SeedSequence(7, spawn_key=(1, 2))
    first = simulate_frames(3, person(), LIGHTS[0], key)
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    assert np.array_equal(simulate_frames(3, person(), LIGHTS[0], key), first)
    assert np.array_equal(np.random.get_state()[1], before)
    assert key.n_children_spawned == 0
    assert not np.array_equal(simulate_frames(3, person(), LIGHTS[0], np.random.SeedSequence(7)), first)


def test_a_recording_is_the_same_in_any_order_and_in_a_larger_split() -> None:
    small, large = Split("test", subjects=2, repetitions=1), Split("test", subjects=5, repetitions=3)

    def find(split: Split, subject: int, label: int, repetition: int) -> np.ndarray:
        chosen = (split.subject_numbers == subject) & (split.labels == label)
        return split.frames(int(np.flatnonzero(chosen)[repetition]))

    keys = [(1, 4, 0), (0, 10, 0), (1, 4, 0), (0, 0, 0)]
    ones, others = [find(small, *key) for key in keys], [find(large, *key) for key in reversed(keys)]
    for one, other in zip(ones, reversed(others), strict=True):
        assert np.array_equal(one, other)
    assert np.array_equal(ones[0], ones[2])


def test_each_part_of_the_key_changes_a_recording() -> None:
    base = Split("train", subjects=2, repetitions=2)
    recordings = [
        base.frames(0),
        base.frames(1),  # repetition
        base.frames(2),  # class
        base.frames(2 * 11),  # subject
        dataclasses.replace(base, name="val").frames(0),
        dataclasses.replace(base, seed=1).frames(0),
        # A seed above 32 bits is not cut.
        dataclasses.replace(base, seed=2**32).frames(0),
    ]
    assert len({frames.tobytes() for frames in recordings}) == len(recordings)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Subject, Light]]:
    """Who was simulated under which light, in order; nothing is really simulated."""
    calls: list[tuple[Subject, Light]] = []
    monkeypatch.setattr(recording, "simulate_frames", lambda label, subject, light, *_: calls.append((subject, light)))
    return calls


def test_every_subject_makes_every_gesture_and_nobody_is_in_two_splits(seen: list[tuple[Subject, Light]]) -> None:
    people: list[set[Subject]] = []
    for name, repetitions in (("train", 3), ("val", 2), ("test", 2)):
        split = Split(name, subjects=6, repetitions=repetitions)
        seen.clear()
        for index in range(len(split)):
            split.frames(index)
        assert len(split) == len(split.labels) == len(split.subject_numbers) == 6 * 11 * repetitions
        combinations = np.stack([split.subject_numbers, split.labels], axis=1)
        unique, counts = np.unique(combinations, axis=0, return_counts=True)
        assert len(unique) == 66
        assert set(counts) == {repetitions}
        for number in range(6):
            assert {seen[i][0] for i in np.flatnonzero(split.subject_numbers == number)} == {split.subject(number)}
        people.append({subject for subject, _ in seen})
    assert [len(group) for group in people] == [6, 6, 6]
    assert len(set.union(*people)) == 18


def test_half_of_the_test_recordings_alone_are_under_the_unseen_light(seen: list[tuple[Subject, Light]]) -> None:
    for name, share in (("train", 0), ("val", 0), ("test", 0.5)):
        split = Split(name, subjects=8, repetitions=2)
        seen.clear()
        for index in range(len(split)):
            split.frames(index)
        unseen = np.array([light is UNSEEN_LIGHT for _, light in seen])
        assert np.array_equal(unseen, split.under_unseen_light)
        for label in range(11):
            assert unseen[split.labels == label].mean() == share
        others = [light.name for _, light in seen if light is not UNSEEN_LIGHT]
        shares = [others.count(light.name) / len(others) for light in LIGHTS]
        assert sum(shares) == 1
        assert min(shares) > 0.1
    assert UNSEEN_LIGHT not in LIGHTS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "valid"}, "`name` to be one of 'train', 'val', 'test', but got 'valid'"),
        ({"size": 0}, "`size` to be an integer of at least 2, but got 0"),
        ({"time_steps": 0}, "`time_steps` to be an integer of at least 1, but got 0"),
        ({"duration": 0.0}, "`duration` to be a finite number larger than 0, but got 0.0"),
        ({"duration": 1e-9}, "`duration` to give each of 16 frames at least 0.0001 seconds, but got 1e-09"),
    ],
)
def test_an_argument_out_of_range_is_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Split(**{"name": "train", "subjects": 1, "repetitions": 1, **arguments})
    if "name" not in arguments:
        with pytest.raises(ValueError, match=message):
            simulate_events(0, person(), LIGHTS[0], np.random.SeedSequence(0), **arguments)


@pytest.fixture(scope="module")
def recordings() -> tuple[np.ndarray, np.ndarray]:
    """Frames ``(N, T, 2, H, W)`` and labels of every gesture of 10 people."""
    split = Split("train", subjects=10, repetitions=1)
    return np.stack([split.frames(index) for index in range(len(split))]), split.labels


def test_a_moving_right_arm_is_on_the_left_of_the_image(recordings: tuple) -> None:
    frames, labels = recordings
    columns = frames.sum(axis=(0, 1, 2, 3), where=np.isin(labels, (1, 3, 4))[:, None, None, None, None], dtype=np.int64)
    assert columns[:16].sum() > 1.5 * columns[16:].sum()
    columns = frames.sum(axis=(0, 1, 2, 3), where=np.isin(labels, (2, 5, 6))[:, None, None, None, None], dtype=np.int64)
    assert columns[16:].sum() > 1.5 * columns[:16].sum()


def test_the_center_of_events_turns_the_way_the_class_says(recordings: tuple) -> None:
    frames, labels = recordings
    events = frames.sum(axis=2, dtype=np.float64)
    total = events.sum(axis=(2, 3))
    x = (events.sum(axis=2) @ np.arange(32)) / total
    y = (events.sum(axis=3) @ np.arange(32)) / total
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    turn = (x[:, :-1] * y[:, 1:] - y[:, :-1] * x[:, 1:]).sum(axis=1)
    for label, (_, sense) in CIRCLES.items():
        assert (np.sign(turn[labels == label]) == sense).mean() > 0.85


def summed(frames: np.ndarray) -> np.ndarray:
    """Features without time: root counts in 8 by 8 cells by polarity, and totals, ``(N, 130)``."""
    image = frames.sum(axis=1, dtype=np.float64)
    cells = image.reshape(len(image), 2, 8, 4, 8, 4).sum(axis=(3, 5))
    return np.sqrt(np.concatenate([cells.reshape(len(image), -1), image.sum(axis=(2, 3))], axis=1))


def permutation_p_value(one: np.ndarray, other: np.ndarray, draws: int = 500) -> float:
    """Return the share of random swaps of the pairs for which the largest |t| of paired rows is as large."""
    difference = one - other
    swaps = generator().choice([-1.0, 1.0], (draws, len(difference)))

    def largest(signs: np.ndarray) -> np.ndarray:
        mean = signs @ difference / len(difference)
        spread = np.sqrt(np.maximum((difference**2).mean(axis=0) - mean**2, 1e-12))
        return np.abs(mean / spread).max(axis=1)

    observed = largest(np.ones((1, len(difference))))
    return (1 + (largest(swaps) >= observed).sum()) / (1 + draws)


@pytest.mark.parametrize(("clockwise", "counter"), DIRECTION_PAIRS)
def test_summed_over_time_the_directions_look_alike(clockwise: int, counter: int) -> None:
    def record(label: int) -> np.ndarray:
        """One recording each of 20 people; of both directions with the same draws, so that little else differs."""
        frames = np.stack(
            [simulate_frames(label, person(i), LIGHTS[i % 4], np.random.SeedSequence(i)) for i in range(20)]
        )
        # Hot pixels do not move with the picture, and would give a shifted one away.
        return frames * (make_sensor(32).hot_rate == 0)

    one, other = record(clockwise), record(counter)
    assert permutation_p_value(summed(one), summed(other)) > 0.05
    # A picture shifted by a single pixel is noticed, and so is one with a tenth of its events missing.
    assert permutation_p_value(summed(one), summed(np.roll(other, 1, axis=4))) < 0.01
    assert permutation_p_value(summed(one), summed(generator().binomial(other, 0.9))) < 0.01


def test_activity_is_that_of_real_recordings(recordings: tuple) -> None:
    frames = recordings[0].sum(axis=2, dtype=np.int64)
    rate = frames.sum(axis=(1, 2, 3)) / 1.6 / 1e3
    active = (frames > 0).mean(axis=(1, 2, 3))
    # Real DVS128 recordings at 32 by 32 have 3-16 thousand events per second, 7-21 % of cells active in 100 ms and 4-10
    # events per active cell.
    assert 0.07 < np.median(active) < 0.21
    assert 3.0 < np.quantile(rate, 0.1) < np.quantile(rate, 0.9) < 16.0
    assert 4.0 < frames.sum() / (frames > 0).sum() < 10.0


def test_recordings_do_not_depend_on_the_number_of_processes() -> None:
    split = dataclasses.replace(TINY, time_steps=4, duration=0.4)
    expected = np.stack([split.frames(index) for index in range(len(split))])
    for processes in (1, 2, 3):
        assert np.array_equal(np.stack(list(simulate_split(split, processes))), expected)
    other = dataclasses.replace(split, seed=1)
    assert not np.array_equal(np.stack(list(simulate_split(other, 2))), expected)


def follow_processes(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen]:
    started: list[subprocess.Popen] = []
    popen = subprocess.Popen

    def start(*arguments, **options) -> subprocess.Popen:
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(parallel.subprocess, "Popen", start)
    return started


def test_processes_end_when_their_recordings_are_no_longer_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    started = follow_processes(monkeypatch)
    recordings = simulate_split(Split("train", subjects=100, repetitions=4), 2)
    assert isinstance(recordings, Iterator)
    next(recordings)
    assert [worker.poll() for worker in started] == [None, None]
    recordings.close()  # type: ignore[attr-defined]
    assert all(worker.poll() is not None for worker in started)


def test_a_process_that_fails_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started = follow_processes(monkeypatch)
    (tmp_path / "sitecustomize.py").write_text("import os\nos._exit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match="that simulates recording 0 to succeed, but got exit code 3"):
        list(simulate_split(TINY, 2))
    assert all(worker.poll() is not None for worker in started)


def test_a_process_that_fails_later_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    started = follow_processes(monkeypatch)
    recordings = simulate_split(Split("train", subjects=100, repetitions=4), 2)
    next(recordings)
    started[1].kill()
    with pytest.raises(RuntimeError, match=r"that simulates recording \d+ to succeed, but got exit code -9"):
        list(recordings)
    assert all(worker.poll() is not None for worker in started)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no PYTHONSAFEPATH")
def test_processes_import_what_this_one_imports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the working folder comes first')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert len(list(simulate_split(dataclasses.replace(TINY, time_steps=1, duration=0.05), 2))) == 11


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is another thing there")
def test_ctrl_c_leaves_it_to_the_reading_process_to_end_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    started = follow_processes(monkeypatch)
    recordings = simulate_split(Split("train", subjects=100, repetitions=4), 2)
    next(recordings), next(recordings)
    for worker in started:
        worker.send_signal(signal.SIGINT)
    for _ in range(10):
        next(recordings)
    assert [worker.poll() for worker in started] == [None, None]
    recordings.close()  # type: ignore[attr-defined]


def test_the_simulator_does_without_torch() -> None:
    imports = "import lightning_snn.data.parallel, lightning_snn.data.simulator, sys"
    code = f"{imports}; assert not {{'torch', 'lightning'}} & set(sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
