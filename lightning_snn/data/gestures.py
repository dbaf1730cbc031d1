"""Data module of simulated event-camera gestures, generated once, in parallel, and cached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_snn.checks import check_between, check_choice, check_integer
from lightning_snn.data.simulated import SimulatedDataModule
from lightning_snn.data.simulator import (
    CLASS_NAMES,
    DIRECTION_PAIRS,
    MIRRORED_CLASSES,
    SIMULATOR_VERSION,
    Split,
)


class Gestures(SimulatedDataModule):
    """Simulated event-camera recordings of gestures: 11 classes, named as in DVS128 Gesture.

    The recordings are *simulated*: accuracies are not comparable with published ones on DVS128 Gesture. Each person of
    a split makes each gesture `repetitions` times. No person is in two splits, and half of the test recordings are
    under a light that the training split does not have. Clockwise and counter-clockwise gestures differ only in the
    direction of motion (`pairs`).

    Frames are generated once, on all processors, and cached under a key of everything that they depend on. They do not
    depend on the number of processes.

    Args:
        size: height and width of the sensor in pixels, 32 or 64.
        time_steps: frames per recording, T.
        duration: length of a recording in seconds.
        train_subjects: people in the training split.
        val_subjects: people in the validation split.
        test_subjects: people in the test split.
        repetitions: recordings per person and gesture in the training split; validation and test have two.
        max_shift: training recordings are shifted at random by up to this many pixels, from 0 to ``size``.
        mirror: mirror training recordings left to right with probability 1/2; a wave of the right hand becomes one of
            the left hand, and a clockwise circle of the right arm a counter-clockwise one of the left arm.
        batch_size: samples per batch.
        processes: processes that simulate; None takes one per processor available to this process.
        cache_dir: folder of the cached frames; None takes that of :func:`~lightning_snn.data.cache.cache_root`.
        **loader_options: other arguments of :class:`~lightning_snn.data.FrameDataModule`; the seed also determines
            people and recordings. Frames are held in memory, so ``num_workers=0`` is fastest.

    Raises:
        ValueError: if an argument is out of range. ``setup`` raises one that names the file if the cache is damaged.
        RuntimeError: from ``prepare_data`` and ``setup``, if a process that simulates fails.

    Example:
        >>> import tempfile
        >>> people = {"train_subjects": 1, "val_subjects": 1, "test_subjects": 1, "repetitions": 1}
        >>> data = Gestures(time_steps=4, duration=0.2, processes=1, cache_dir=tempfile.mkdtemp(), **people)
        >>> data.setup()
        >>> x, y = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
        >>> x.shape, y.shape
        (torch.Size([4, 11, 2, 32, 32]), torch.Size([11]))
    """

    num_classes = len(CLASS_NAMES)
    class_names = CLASS_NAMES
    pairs = DIRECTION_PAIRS
    mirrored_classes = MIRRORED_CLASSES
    cache_name = "gestures"
    simulator_version = SIMULATOR_VERSION

    def __init__(
        self,
        *,
        size: int = 32,
        time_steps: int = 16,
        duration: float = 1.6,
        train_subjects: int = 128,
        val_subjects: int = 12,
        test_subjects: int = 16,
        repetitions: int = 2,
        max_shift: int = 2,
        mirror: bool | Sequence[int] = True,
        batch_size: int = 32,
        processes: int | None = None,
        cache_dir: str | None = None,
        **loader_options: Any,
    ) -> None:
        super().__init__(
            processes=processes,
            cache_dir=cache_dir,
            batch_size=batch_size,
            max_shift=max_shift,
            mirror=mirror,
            **loader_options,
        )
        check_choice("size", size, (32, 64))
        for name, value in (
            ("train_subjects", train_subjects),
            ("val_subjects", val_subjects),
            ("test_subjects", test_subjects),
            ("repetitions", repetitions),
        ):
            check_integer(name, value)
        check_between("max_shift", max_shift, 0, size)
        shape: dict[str, Any] = {"seed": self.seed, "size": size, "time_steps": time_steps, "duration": duration}
        self.splits = (
            Split("train", train_subjects, repetitions, **shape),
            Split("val", val_subjects, 2, **shape),
            Split("test", test_subjects, 2, **shape),
        )
        self.frame_shape = (2, size, size)
        self.time_steps = time_steps
