"""Order of evaluation in several processes, in which no sample is repeated."""

from __future__ import annotations

from collections.abc import Iterator, Sized

from torch.utils.data import DistributedSampler

from lightning_snn.processes import rank, world_size


class UnpaddedSampler(DistributedSampler[int]):
    """Every k-th sample for each of k processes, in order; numbers of samples differ by at most one.

    `DistributedSampler` itself repeats the first samples until all processes have equally many, so these count twice in
    metrics and reports. Unequal numbers are right for validation, test and prediction, where processes wait for each
    other only at the end. Lightning leaves this sampler as it is.

    Args:
        data_source: the data set.

    Raises:
        ValueError: if there are fewer samples than processes, each of which needs one.

    Example:
        >>> list(UnpaddedSampler(range(3)))
        [0, 1, 2]
    """

    def __init__(self, data_source: Sized) -> None:
        processes, samples = world_size(), len(data_source)
        if samples < processes:
            raise ValueError(
                f"Expected at least as many samples to evaluate as processes, but got {samples} for {processes} "
                "processes. Use fewer devices or more samples"
            )
        super().__init__(data_source, num_replicas=processes, rank=rank(), shuffle=False)  # type: ignore[arg-type]
        self.total_size = samples
        self.num_samples = len(self._indices())

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices())

    def _indices(self) -> range:
        return range(self.rank, self.total_size, self.num_replicas)
