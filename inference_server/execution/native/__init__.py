"""Whole steps of common decoder shapes on x86-64 CPUs, as Numba kernels over packed weights."""
