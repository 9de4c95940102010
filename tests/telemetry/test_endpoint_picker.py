"""The endpoint picker's page: its series, and how often it is made."""

from __future__ import annotations

import dataclasses
import re

from prometheus_client.parser import text_string_to_metric_families

from inference_server.config.model_keys import NAME_PATTERN
from inference_server.telemetry.endpoint_picker import NO_MODEL, EndpointPickerPage, ReplicaLoad, render

LOAD = ReplicaLoad(
    num_running=3,
    num_waiting=2,
    kv_cache_usage=0.25,
    resident=["org/a", "alias-of-a"],
    coming=["b"],
    num_more=1,
)


def test_each_name_has_one_series_without_a_model_label() -> None:
    families = list(text_string_to_metric_families(render(LOAD, 1700000000.5).decode()))
    samples = {family.name: family.samples for family in families}
    assert all(len(found) == 1 for found in samples.values())
    values = {name: found[0].value for name, found in samples.items()}
    assert values == {
        "vllm:num_requests_running": 3,
        "vllm:num_requests_waiting": 2,
        "vllm:kv_cache_usage_perc": 0.25,
        "vllm:lora_requests_info": 1700000000.5,
    }
    assert samples["vllm:num_requests_running"][0].labels == {}


def adapters(load: ReplicaLoad) -> dict[str, str]:
    (info,) = [
        family.samples[0]
        for family in text_string_to_metric_families(render(load, 1.0).decode())
        if family.name == "vllm:lora_requests_info"
    ]
    return info.labels


def test_models_in_memory_and_on_their_way_stand_as_running_adapters_and_the_latter_as_waiting() -> None:
    assert adapters(LOAD) == {
        "max_lora": "5",
        "running_lora_adapters": "org/a,alias-of-a,b",
        "waiting_lora_adapters": "b",
    }


def test_a_replica_without_models_says_so_and_how_many_fit() -> None:
    """A picker takes two empty lists for no news and would keep to what it last knew, or give no room."""
    empty = dataclasses.replace(LOAD, resident=(), coming=(), num_more=2)
    assert adapters(empty) == {"max_lora": "3", "running_lora_adapters": "-", "waiting_lora_adapters": ""}
    assert not re.fullmatch(NAME_PATTERN, NO_MODEL)


def test_however_many_scrape_the_page_is_made_once_in_its_period() -> None:
    num_made = 0
    now_s = 100.0

    def measure() -> ReplicaLoad:
        nonlocal num_made
        num_made += 1
        return LOAD

    page = EndpointPickerPage(measure, clock=lambda: now_s, wall_clock=lambda: now_s, max_age_s=0.05)
    for tick in range(2048):  # 100 pickers, 20 times a second, for one second
        now_s = 100.0 + tick / 2048
        page.get()
    assert num_made <= 20
    now_s += 0.05
    assert b"} 101.0" in page.get()
