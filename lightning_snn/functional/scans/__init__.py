"""Implementations of the scans over time: a loop for any device, kernels for GPUs, and operators that choose."""
