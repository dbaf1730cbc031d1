from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from lightning_snn.data.speech import (
    CLASS_NAMES,
    PHONEMES,
    PRONUNCIATIONS,
    SAMPLE_RATE,
    UNITS,
    Cochlea,
    Split,
    articulate,
    center_frequencies,
    draw_speaker,
    envelopes,
    hear,
    simulate_spikes,
    speak,
    voice,
)
from lightning_snn.data.speech.phonemes import ENGLISH, GERMAN


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def tone(frequency: float, seconds: float = 0.3) -> np.ndarray:
    return np.cos(2 * np.pi * frequency * np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE)


def middle_ear(frequency: float) -> float:
    return frequency / np.hypot(frequency, 800)


@pytest.mark.parametrize("unit", [60, 250, 420, 690])
def test_a_tone_excites_the_channel_of_its_frequency_most(unit: int) -> None:
    frequency = center_frequencies()[unit]
    late = envelopes(tone(frequency))[150:250].mean(axis=0)
    assert abs(int(late.argmax()) - unit) <= (4 if unit < 100 else 1)
    # an analytic signal of a cosine has amplitude 1
    assert late[unit] == pytest.approx(middle_ear(frequency), rel=5e-3)


@pytest.mark.parametrize("unit", [100, 350, 600])
def test_an_envelope_is_that_of_a_gammatone_filter_in_time(unit: int) -> None:
    """The complex impulse response of the filter, convolved with the sound sample by sample."""
    center = center_frequencies()[unit]
    bandwidth = 1.019 * (24.7 + 0.108 * center)
    seconds = np.arange(1600) / SAMPLE_RATE
    impulse = (2 * np.pi * bandwidth) ** 4 / 6 * seconds**3 * np.exp(2 * np.pi * (1j * center - bandwidth) * seconds)
    # a narrow sound, in which the gain of the middle ear is that of its middle
    sound = tone(center, 0.2) * np.exp(-0.5 * ((np.arange(3200) - 1600) / 200) ** 2)
    expected = np.abs(np.convolve(sound, 2 * impulse / SAMPLE_RATE))[:3200] * middle_ear(center) / 2
    found = envelopes(sound)[:, unit]
    np.testing.assert_allclose(found, 2 * expected[4::16][: len(found)], atol=0.05 * found.max())


def test_frequencies_ascend_with_equal_steps_in_equivalent_bandwidths() -> None:
    centers = center_frequencies()
    assert len(centers) == UNITS
    assert centers[[0, -1]] == pytest.approx([80, 7600])
    assert np.diff(21.4 * np.log10(1 + 0.00437 * centers)).std() < 1e-9


def test_silence_causes_no_spikes_and_a_louder_tone_more() -> None:
    assert not hear(np.zeros(8000), generator()).any()
    counts = [hear(level * tone(1000), generator()).sum() for level in (0.01, 0.05, 0.3)]
    assert 0 < counts[0] < counts[1] < counts[2]


def test_responses_to_a_lasting_tone_adapt() -> None:
    spikes = hear(0.3 * tone(1000, 0.6), generator()).sum(axis=1)
    onset, later = spikes[10:40].mean(), spikes[300:500].mean()
    assert onset > 1.3 * later > 0
    unlimited = hear(0.3 * tone(1000, 0.6), generator(), Cochlea(depletion=0.0)).sum(axis=1)
    assert unlimited[10:40].mean() < 1.2 * unlimited[300:500].mean()


def test_a_channel_rests_after_a_spike() -> None:
    sound = speak("seven", draw_speaker(generator()), generator())
    for steps in (2, 5):
        spikes = hear(sound, generator(), Cochlea(refractory=steps * 1e-3))
        times = [np.flatnonzero(column) for column in spikes.T]
        assert min(np.diff(each).min() for each in times if len(each) > 1) >= steps


def test_resonances_lie_at_the_formants() -> None:
    frequencies = np.arange(0.0, 4000.0, 5.0)
    formants = np.array([[500.0, 1500.0, 2500.0], [300.0, 2200.0, 3000.0]])
    transfer = np.abs(voice._resonances(formants, 1.0, frequencies))
    for row, expected in zip(transfer, formants, strict=True):
        peaks = frequencies[1:-1][(row[1:-1] > row[:-2]) & (row[1:-1] > row[2:])]
        np.testing.assert_allclose(peaks[:3], expected, atol=25)


def test_a_filter_that_changes_nothing_returns_its_source() -> None:
    source = generator().standard_normal(50 * voice.HOP)
    found = voice._filtered(source, np.ones((50, voice.PADDED // 2 + 1)))
    # windows overlap fully behind the first and before the last
    inner = slice(voice.WINDOW, -voice.WINDOW)
    np.testing.assert_allclose(found[inner], source[inner], atol=1e-12)


def test_words_are_made_of_known_sounds_and_each_once() -> None:
    assert (*ENGLISH, *GERMAN) == CLASS_NAMES
    assert set(PRONUNCIATIONS) == set(CLASS_NAMES)
    assert len(set(PRONUNCIATIONS.values())) == len(CLASS_NAMES) == 20
    assert {sound for word in PRONUNCIATIONS.values() for sound in word} <= set(PHONEMES)


def test_a_hiss_is_voiceless_and_a_vowel_is_at_the_formants_of_the_speaker() -> None:
    speaker = draw_speaker(generator(3))
    motion = articulate("six", speaker, generator(4))
    noisy = motion.noise.max(axis=1)
    assert motion.voice[noisy.argmax()] < 0.02 < motion.voice.max()
    middle = motion.formants[motion.voice.argmax()]
    np.testing.assert_allclose(middle, speaker.formants("ɪ"), rtol=0.25)
    # "zwei" glides from low to high second formants, "neun" from lower ones still
    glide = articulate("zwei", speaker, generator(5))
    voiced = np.flatnonzero(glide.voice > 0.5)
    assert glide.formants[voiced[-1], 1] > 1.2 * glide.formants[voiced[0], 1]


def test_speakers_of_shorter_tracts_have_higher_formants() -> None:
    speakers = [draw_speaker(generator(seed)) for seed in range(40)]
    scale = np.array([speaker.formant_scale for speaker in speakers])
    heights = np.array([np.log(np.stack([s.formants(name) for name in PHONEMES])).mean() for s in speakers])
    assert np.corrcoef(np.log(scale), heights)[0, 1] > 0.95
    assert np.std(heights - np.log(scale)) > 0.001, "an accent is more than the size of the vocal tract"
    assert speakers[0].formants("s").tolist() == speakers[0].formants("s").tolist()


def test_a_recording_follows_each_part_of_its_key_and_nothing_else() -> None:
    split = Split("train", speakers=2, repetitions=2)
    base = split.frames(0)
    assert base.dtype == np.uint8
    assert base.shape == split.recording_shape == (100, 140)
    assert np.array_equal(Split("train", speakers=5, repetitions=2).frames(0), base)
    for other, index in (
        (split, 1),
        (split, 40),
        (Split("val", 2, 2), 0),
        (Split("train", 2, 2, seed=1), 0),
    ):
        assert not np.array_equal(other.frames(index), base)
    coarse = Split("train", 2, 2, time_steps=50, channels=70)
    assert np.array_equal(coarse.frames(0), base.reshape(50, 2, 70, 2).sum((1, 3)))


def test_every_speaker_says_every_word_and_nobody_is_in_two_splits() -> None:
    seen = {}
    for name in ("train", "val", "test"):
        split = Split(name, speakers=6, repetitions=3)
        pairs = np.stack([split.speaker_numbers, split.labels], axis=1)
        assert np.array_equal(np.unique(pairs, axis=0, return_counts=True)[1], np.full(6 * 20, 3))
        seen[name] = {split.speaker(number) for number in range(6)}
    assert len(set.union(*seen.values())) == 18


def test_spikes_are_in_the_range_of_recorded_digits() -> None:
    """The Spiking Heidelberg Digits have some thousands of spikes in half a second to one and a half."""
    counts = []
    for index in range(0, 40, 6):
        times, units = Split("train", 2, 1).spikes(index)
        assert len(times) == len(units)
        assert (np.diff(times) >= 0).all()
        assert units.min() >= 0
        assert units.max() < UNITS
        assert 0.2 < times[-1] < 1.6
        counts.append(len(times))
    assert 2000 < np.median(counts) < 15000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "all"}, "`name`"),
        ({"speakers": 0}, "`speakers`"),
        ({"repetitions": 1.5}, "`repetitions`"),
        ({"seed": -1}, "`seed`"),
        ({"time_steps": 0}, "`time_steps`"),
        ({"duration": 6.0}, "`duration`"),
        ({"channels": 99}, "`channels` to divide the 700 units of the cochlea, but got 99"),
    ],
)
def test_an_argument_out_of_range_is_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"Expected argument {message}"):
        Split(**{"name": "train", "speakers": 1, "repetitions": 1, **arguments})


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected argument `class_index`"):
        simulate_spikes(20, draw_speaker(generator()), np.random.SeedSequence(0))


def test_the_simulator_does_without_torch() -> None:
    code = "import lightning_snn.data.speech, sys; assert not {'torch', 'lightning'} & set(sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
