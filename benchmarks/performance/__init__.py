"""What `scripts/run-performance-test.sh` runs: our own load, `ab` and k6, and a report of all of them."""
