"""Triton kernels and nothing else: the one place that imports triton. Imported only where they run."""
