"""An endpoint picker may look twenty times a second, also while a model loads."""

from __future__ import annotations

from benchmarks.scrape_cost import cost_during_load, scraped_server

SECONDS = 1.0
RATE_HZ = 20.0
# The promise is 1 ms on a quiet machine (benchmarks/RESULTS.md); a busy one's caches are others' too.
MAX_CPU_MS = 3.0


def test_the_endpoint_pickers_page_costs_little_also_during_a_load() -> None:
    with scraped_server(num_models=2, load_s=SECONDS) as server:
        cost = cost_during_load(server, "/metrics/epp", SECONDS, RATE_HZ)
    assert cost.num_pages == SECONDS * RATE_HZ
    assert cost.num_bytes < 1000
    assert cost.cpu_ms < MAX_CPU_MS, cost
