"""The endpoint picker's page: its series, and how often it is made."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from inference_server.telemetry.endpoint_picker import EndpointPickerPage, ReplicaLoad, render

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


def test_models_in_memory_stand_as_running_adapters_and_coming_ones_as_waiting() -> None:
    (info,) = [
        family.samples[0]
        for family in text_string_to_metric_families(render(LOAD, 1.0).decode())
        if family.name == "vllm:lora_requests_info"
    ]
    assert info.labels == {
        "max_lora": "4",
        "running_lora_adapters": "org/a,alias-of-a",
        "waiting_lora_adapters": "b",
    }


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
