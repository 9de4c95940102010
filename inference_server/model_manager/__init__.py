"""Which models are in memory: states, the byte budget, eviction, leases, and the manager that runs them."""
