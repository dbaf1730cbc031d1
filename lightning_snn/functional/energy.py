"""Published energies of synaptic operations in joules, with their limits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EnergyConstants:
    """Energy of a synaptic operation, with its source and limits.

    Attributes:
        name: name of the set of constants.
        joules_per_ac: energy of an accumulate (AC), in joules.
        joules_per_mac: energy of a multiply-accumulate (MAC), in joules; None if the hardware has no such operation.
        caveat: costs that the constants leave out.
        source: publication.
    """

    name: str
    joules_per_ac: float
    joules_per_mac: float | None
    caveat: str
    source: str

    def joules(self, accumulates: float, macs: float) -> float:
        """Return ``E = N_AC E_AC + N_MAC E_MAC`` in joules; nan if `macs` is not 0 and the energy of a MAC is unknown.

        Args:
            accumulates: N_AC, number of accumulates.
            macs: N_MAC, number of multiply-accumulates.

        Example:
            >>> f"{HOROWITZ_FLOAT32.joules(1000, 10):.3g}"
            '9.46e-10'
        """
        if self.joules_per_mac is None:
            return accumulates * self.joules_per_ac if macs == 0 else float("nan")
        return accumulates * self.joules_per_ac + macs * self.joules_per_mac


_ARITHMETIC_ONLY = (
    "arithmetic in a 45 nm process at 0.9 V only. Memory traffic, which costs 10 to 1000 times as much, membrane "
    "updates, communication, control, leakage and static power are left out. The figure compares operation counts; it "
    "is not the energy of a device"
)
_HOROWITZ = 'M. Horowitz, "Computing\'s energy problem (and what we can do about it)", ISSCC 2014'

HOROWITZ_FLOAT32 = EnergyConstants("horowitz_float32", 0.9e-12, 4.6e-12, f"float32 {_ARITHMETIC_ONLY}", _HOROWITZ)
HOROWITZ_INT32 = EnergyConstants("horowitz_int32", 0.1e-12, 3.2e-12, f"int32 {_ARITHMETIC_ONLY}", _HOROWITZ)
LOIHI = EnergyConstants(
    "loihi",
    23.6e-12,
    None,
    "minimum energy of a synaptic operation on a 14 nm chip. Neuron updates, spikes between cores, the host and static "
    "power are left out. No energy of a multiply-accumulate is published, so networks whose inputs are not spikes have "
    "no energy here, and neither has the dense network",
    'M. Davies et al., "Loihi: A Neuromorphic Manycore Processor with On-Chip Learning", IEEE Micro 38(1), 2018',
)

ENERGY_CONSTANTS = {constants.name: constants for constants in (HOROWITZ_FLOAT32, HOROWITZ_INT32, LOIHI)}
