"""Declares metrics in one registry, renders them, and forgets a model's series in all of them at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

MODEL_LABELS = ("model", "model_name")  # ours, and vLLM's


class Families:
    """The metric families of one server. Owner of the registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._of_models: list[tuple[Counter | Gauge | Histogram, str]] = []  # with the label that names it

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

    def render(self) -> tuple[bytes, str]:
        """The page of a scrape and its content type."""
        return generate_latest(_WithoutCreated(self.registry)), CONTENT_TYPE_LATEST

    def _remember(self, family: Counter | Gauge | Histogram, labels: Sequence[str]) -> None:
        for label in MODEL_LABELS:
            if label in labels:
                self._of_models.append((family, label))


class _WithoutCreated:
    """A registry without the `_created` twin of every series, which nobody reads."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
