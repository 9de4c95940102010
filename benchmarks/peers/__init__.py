"""HelixFlow beside other servers on the same machine: `python -m benchmarks.peers`, or `make bench-peers`."""
