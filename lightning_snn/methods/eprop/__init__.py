"""E-prop: eligibility traces of synapses times learning signals of neurons."""

from lightning_snn.methods.eprop.chain import Chain, chain_refusals
from lightning_snn.methods.eprop.method import EProp
from lightning_snn.methods.eprop.streaming import EligibilityRun

__all__ = ["Chain", "EProp", "EligibilityRun", "chain_refusals"]
