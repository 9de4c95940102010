"""What workers were seen to need is remembered, and never believed blindly."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from inference_server.model_manager import overheads as module
from inference_server.model_manager.learning import LearningLauncher
from inference_server.model_manager.overheads import OverheadKey, OverheadStore, overhead_key
from inference_server.types import MeasuredOverhead, MemoryReport, Speculation
from inference_server.worker.launcher import WorkerLauncher
from inference_server.worker.protocol import Load
from tests.checkpoints.files import write_folder

MEASURED = MeasuredOverhead(context_bytes=200, workspace_bytes=100, host_bytes=3)


@pytest.fixture
def load(tmp_path: Path) -> Load:
    return Load(
        model="m",
        folder=str(write_folder(tmp_path / "model")),
        device="cpu",
        dtype="bfloat16",
        quantization="none",
        max_model_len=512,
        kv_cache_tokens=4096,
        max_num_seqs=64,
        max_num_batched_tokens=512,
    )


@pytest.fixture
def store(tmp_path: Path) -> OverheadStore:
    return OverheadStore(tmp_path / "cache")


def only_file(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "cache" / "memory").iterdir()
    return path


def test_what_was_measured_is_found_again_by_another_process(
    tmp_path: Path, store: OverheadStore, load: Load
) -> None:
    assert store.find(overhead_key(load)) is None
    store.remember(overhead_key(load), MEASURED)
    assert OverheadStore(tmp_path / "cache").find(overhead_key(load)) == MEASURED


def test_a_later_measurement_takes_the_place_of_an_earlier_one(store: OverheadStore, load: Load) -> None:
    later = MeasuredOverhead(context_bytes=1, workspace_bytes=2)
    for overhead in (MEASURED, later):
        store.remember(overhead_key(load), overhead)
    assert store.find(overhead_key(load)) == later


@pytest.mark.parametrize(
    "change",
    [
        {"device": "cuda:0"},
        {"dtype": "float32"},
        {"quantization": "int8"},
        {"kernels": "native"},
        {"max_num_seqs": 65},
        {"max_num_batched_tokens": 1024},
        {"num_threads": 3},
        {"speculation": Speculation()},
    ],
)
def test_another_way_of_running_the_model_has_its_own_record(
    store: OverheadStore, load: Load, change: dict[str, object]
) -> None:
    store.remember(overhead_key(load), MEASURED)
    assert store.find(overhead_key(msgspec.structs.replace(load, **change))) is None


def test_the_name_and_a_larger_kv_cache_change_nothing(store: OverheadStore, load: Load) -> None:
    store.remember(overhead_key(load), MEASURED)
    other = msgspec.structs.replace(load, model="alias", kv_cache_tokens=8192, measures_overhead=True)
    assert store.find(overhead_key(other)) == MEASURED


def test_the_same_model_in_another_folder_is_the_same(tmp_path: Path, load: Load) -> None:
    copy = msgspec.structs.replace(load, folder=str(write_folder(tmp_path / "copy")))
    assert overhead_key(copy) == overhead_key(load)
    (tmp_path / "copy" / "config.json").write_text('{"hidden_size": 1}')
    assert overhead_key(copy) != overhead_key(load)


def test_another_version_of_a_library_measures_anew(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    before = overhead_key(load)
    monkeypatch.setattr(module, "_versions", lambda: ("torch 99",))
    assert overhead_key(load) != before


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"key": 1, "overhead": 2}', b"\xff\xfe"])
def test_a_damaged_record_is_ignored_with_a_line_in_the_log(
    tmp_path: Path, store: OverheadStore, load: Load, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    store.remember(overhead_key(load), MEASURED)
    only_file(tmp_path).write_bytes(content)
    assert store.find(overhead_key(load)) is None
    assert "is ignored" in caplog.text


@pytest.mark.parametrize("field", ["context_bytes", "workspace_bytes", "host_bytes"])
@pytest.mark.parametrize("value", [-1, 1 << 60])
def test_an_impossible_number_is_ignored(
    tmp_path: Path, store: OverheadStore, load: Load, field: str, value: int
) -> None:
    store.remember(overhead_key(load), MEASURED)
    record = msgspec.json.decode(only_file(tmp_path).read_bytes())
    record["overhead"][field] = value
    only_file(tmp_path).write_bytes(msgspec.json.encode(record))
    assert store.find(overhead_key(load)) is None


def test_a_record_under_the_name_of_another_is_ignored(
    tmp_path: Path, store: OverheadStore, load: Load
) -> None:
    store.remember(overhead_key(load), MEASURED)
    moved = only_file(tmp_path).rename(tmp_path / "moved")
    other: OverheadKey = overhead_key(msgspec.structs.replace(load, max_num_seqs=7))
    store.remember(other, MEASURED)
    moved.replace(only_file(tmp_path))
    assert store.find(other) is None


def test_a_folder_that_cannot_be_written_costs_only_the_memory_of_it(
    tmp_path: Path, load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file")
    store = OverheadStore(tmp_path / "cache")
    store.remember(overhead_key(load), MEASURED)
    assert store.find(overhead_key(load)) is None
    assert "cannot be remembered" in caplog.text


class FakeLauncher:
    """Launches a worker that reports this."""

    def __init__(self, overhead: MeasuredOverhead | None) -> None:
        memory = MemoryReport(
            weights_bytes=1, kv_cache_bytes=1, workspace_bytes=0, rss_bytes=1, overhead=overhead
        )
        self.worker = SimpleNamespace(ready=SimpleNamespace(memory=memory))

    async def launch(self, message: Load, on_progress: object) -> Any:
        return self.worker


@pytest.mark.parametrize("overhead", [MEASURED, None])
def test_a_launcher_remembers_what_its_workers_measured(
    store: OverheadStore, load: Load, overhead: MeasuredOverhead | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    inner = FakeLauncher(overhead)

    async def scenario() -> None:
        launcher = LearningLauncher(cast(WorkerLauncher, inner), store)
        assert await launcher.launch(load, lambda progress: None) is inner.worker
        await asyncio.get_running_loop().shutdown_default_executor()

    asyncio.run(scenario())
    assert store.find(overhead_key(load)) == overhead
    assert caplog.text == ""
