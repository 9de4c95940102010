"""Declares metrics in one registry, renders them, and forgets a model's series in all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from inference_server.telemetry.exposition import Family, FamilyText

MODEL_LABELS = ("model", "model_name")  # ours, and vLLM's


class Families:
    """The metric families of one server. Owner of the registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._of_models: list[tuple[Family, str]] = []  # with the label that names it
        self._texts: list[FamilyText] = []
        self._others: list[Collector] = []

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        """A value of the moment."""
        found = Gauge(name, text, labels, registry=self.registry)
        self._remember(found, labels)
        return found

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        """A total; its samples end with `_total`."""
        found = Counter(name, text, labels, registry=self.registry)
        self._remember(found, labels)
        return found

    def histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        """A distribution over `buckets`."""
        found = Histogram(name, text, labels, buckets=buckets, registry=self.registry)
        self._remember(found, labels)
        return found

    def forget(self, model: str) -> None:
        """Drop every series of a model that is no longer configured."""
        for family, label in self._of_models:
            family.remove_by_labels({label: model})

    def include(self, make: Callable[[CollectorRegistry], Collector]) -> None:
        """Add what the library collects by itself; `make` puts it into the registry that it is given."""
        self._others.append(make(self.registry))

    def render(self) -> tuple[bytes, str]:
        """The page of a scrape and its content type."""
        page = "".join(chain.from_iterable(text.lines() for text in self._texts)).encode()
        return page + generate_latest(_Collected(self._others)), CONTENT_TYPE_LATEST

    def _remember(self, family: Family, labels: Sequence[str]) -> None:
        self._texts.append(FamilyText(family))
        for label in MODEL_LABELS:
            if label in labels:
                self._of_models.append((family, label))


class _Collected:
    """What some collectors have, as `generate_latest` wants it."""

    def __init__(self, collectors: Iterable[Collector]) -> None:
        self._collectors = collectors

    def collect(self) -> Iterable[Metric]:
        return chain.from_iterable(collector.collect() for collector in self._collectors)
