"""What synaptic operations cost in joules, by published figures, each with what it leaves out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EnergyConstants:
    """Energy of a synaptic operation, and what must be known of the figure to use it.

    Attributes:
        name: what it is called.
        joules_per_ac: energy of an accumulate, in joules.
        joules_per_mac: energy of a multiply-accumulate, in joules; None where there is no such operation.
        caveat: what the figure leaves out.
        source: where it is published.
    """

    name: str
    joules_per_ac: float
    joules_per_mac: float | None
    caveat: str
    source: str

    def joules(self, accumulates: float, macs: float) -> float:
        """``E = N_AC E_AC + N_MAC E_MAC`` in joules; nan if there are MACs, which have no figure here."""
        if self.joules_per_mac is None:
            return accumulates * self.joules_per_ac if macs == 0 else float("nan")
        return accumulates * self.joules_per_ac + macs * self.joules_per_mac


_ARITHMETIC_ONLY = (
    "arithmetic in a 45 nm process at 0.9 V only. Memory traffic, which costs 10 to 1000 times as much, updates of "
    "membranes, communication, control, leakage and static power are left out: it compares counts of operations and "
    "is not the energy of any device"
)
_HOROWITZ = 'M. Horowitz, "Computing\'s energy problem (and what we can do about it)", ISSCC 2014'

HOROWITZ_FLOAT32 = EnergyConstants("horowitz_float32", 0.9e-12, 4.6e-12, f"float32 {_ARITHMETIC_ONLY}", _HOROWITZ)
HOROWITZ_INT32 = EnergyConstants("horowitz_int32", 0.1e-12, 3.2e-12, f"int32 {_ARITHMETIC_ONLY}", _HOROWITZ)
LOIHI = EnergyConstants(
    "loihi",
    23.6e-12,
    None,
    "the least energy of a synaptic operation of a 14 nm chip. Updates of neurons, spikes between cores, the host and "
    "static power are left out; there is no figure for multiply-accumulates, so that networks of inputs other than "
    "spikes have none, nor has the dense network",
    'M. Davies et al., "Loihi: A Neuromorphic Manycore Processor with On-Chip Learning", IEEE Micro 38(1), 2018',
)

ENERGY_CONSTANTS = {constants.name: constants for constants in (HOROWITZ_FLOAT32, HOROWITZ_INT32, LOIHI)}
