"""Benchmarks of the whole server. Results, negative ones too, are in RESULTS.md."""
