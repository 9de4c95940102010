"""Metrics of the server process itself: HTTP requests, whether it is leaving, its version, what it takes.

Knows no models; `metrics.py` builds on this. Owner: the event loop.
"""

from __future__ import annotations

from prometheus_client import ProcessCollector

from inference_server import __version__
from inference_server.telemetry.buckets import HTTP_BUCKETS
from inference_server.telemetry.families import Families


class ServerMetrics:
    """The part of the metrics that there is one of, however many models are served."""

    def __init__(self, families: Families) -> None:
        self.http_duration = families.histogram(
            "api_request_duration_seconds",
            "HTTP request duration",
            HTTP_BUCKETS,
            "method",
            "endpoint",
            "status",
        )
        self.connections = families.gauge("active_connections", "HTTP requests in progress")
        self.draining = families.gauge(
            "helixflow_draining", "1 while the server refuses new requests and finishes those it has, else 0"
        )
        self.shutdown_left = families.gauge(
            "helixflow_shutdown_left_seconds",
            "What is left of shutdown_timeout; below 0 when the server should have ended",
        )
        build = families.gauge("helixflow_build_info", "1; the version stands in the label", "version")
        build.labels(__version__).set(1)
        families.include(
            lambda registry: ProcessCollector(registry=registry)
        )  # read from /proc at each scrape
