from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from inference_server.checkpoints.download import MAX_FAILURES_IN_A_ROW, download
from inference_server.errors import FetchFailed
from tests.checkpoints.index_server import WHEEL_NAME, Behaviour, serving

CONTENT = bytes(range(256)) * 20_000  # 5 MB


@pytest.fixture
def server() -> Iterator[Behaviour]:
    with serving(CONTENT) as behaviour:
        yield behaviour


def fetch(
    server: Behaviour, part: Path, *, size: int = len(CONTENT)
) -> tuple[list[float], list[float | None]]:
    """Returns the pauses taken and the progress reported."""
    pauses: list[float] = []
    progress: list[float | None] = []
    with httpx.Client() as client:
        download(
            client,
            f"{server.url}/files/{WHEEL_NAME}",
            part,
            size=size,
            on_progress=lambda _, fraction: progress.append(fraction),
            sleep=pauses.append,
        )
    return pauses, progress


def test_a_file_arrives_with_progress(server: Behaviour, tmp_path: Path) -> None:
    pauses, progress = fetch(server, tmp_path / "x.part")
    assert (tmp_path / "x.part").read_bytes() == CONTENT
    assert pauses == []
    assert progress == sorted(progress, key=float)  # type: ignore[arg-type]
    assert progress[-1] == 1.0


def test_an_earlier_try_is_continued(server: Behaviour, tmp_path: Path) -> None:
    (tmp_path / "x.part").write_bytes(CONTENT[:1000])
    fetch(server, tmp_path / "x.part")
    assert (tmp_path / "x.part").read_bytes() == CONTENT
    assert server.file_requests == ["bytes=1000-"]


def test_a_complete_part_asks_for_nothing(server: Behaviour, tmp_path: Path) -> None:
    (tmp_path / "x.part").write_bytes(CONTENT)
    fetch(server, tmp_path / "x.part")
    assert server.requests == []


def test_a_broken_connection_is_resumed(server: Behaviour, tmp_path: Path) -> None:
    server.cut_after = [2_000_000, 1_000_000]
    pauses, _ = fetch(server, tmp_path / "x.part")
    assert (tmp_path / "x.part").read_bytes() == CONTENT
    assert len(server.file_requests) == 3
    assert pauses == [1.0, 1.0]


def test_a_server_that_ignores_ranges_starts_over(server: Behaviour, tmp_path: Path) -> None:
    (tmp_path / "x.part").write_bytes(b"?" * 1000)
    server.ignore_range = True
    fetch(server, tmp_path / "x.part")
    assert (tmp_path / "x.part").read_bytes() == CONTENT


def test_a_wrong_range_is_not_stitched_together(server: Behaviour, tmp_path: Path) -> None:
    (tmp_path / "x.part").write_bytes(CONTENT[:1000])
    server.wrong_range = True
    fetch(server, tmp_path / "x.part")
    assert (tmp_path / "x.part").read_bytes() == CONTENT
    assert server.file_requests == ["bytes=1000-", None]


@pytest.mark.parametrize("status", [416, 500, 503])
def test_a_passing_fault_is_survived(server: Behaviour, tmp_path: Path, status: int) -> None:
    (tmp_path / "x.part").write_bytes(CONTENT[:1000])
    server.statuses = [status]
    fetch(server, tmp_path / "x.part")
    assert (tmp_path / "x.part").read_bytes() == CONTENT


def test_lasting_faults_end_the_attempt_and_keep_the_part(server: Behaviour, tmp_path: Path) -> None:
    (tmp_path / "x.part").write_bytes(CONTENT[:1000])
    server.statuses = [502] * 20
    with pytest.raises(FetchFailed, match="keeps failing"):
        fetch(server, tmp_path / "x.part")
    assert len(server.file_requests) == MAX_FAILURES_IN_A_ROW
    assert (tmp_path / "x.part").stat().st_size == 1000


def test_a_refusal_is_final(server: Behaviour, tmp_path: Path) -> None:
    server.statuses = [403]
    with pytest.raises(FetchFailed, match="403"):
        fetch(server, tmp_path / "x.part")


def test_more_bytes_than_promised_are_refused(server: Behaviour, tmp_path: Path) -> None:
    with pytest.raises(FetchFailed, match="more than the 1000 bytes"):
        fetch(server, tmp_path / "x.part", size=1000)


def test_a_disk_without_room_is_refused_before_a_byte_is_fetched(
    server: Behaviour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    with pytest.raises(FetchFailed, match="5 MiB needed, 1 MiB free"):
        fetch(server, tmp_path / "x.part")
    assert server.requests == []
