from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from inference_server.checkpoints.fetch import Fetched, fetch
from inference_server.checkpoints.sources import FolderSource, GgufFileSource, ScriptedSource, Source
from inference_server.errors import ConfigError, FetchFailed
from tests.checkpoints.files import write_folder


def get(source: Source, cache: Path, sha256: str | None = None) -> Fetched:
    return fetch(source, cache_dir=cache, sha256=sha256, allow_pickle=False, on_progress=lambda *_: None)


def test_a_folder_is_served_from_where_it_is(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    assert get(FolderSource(folder), tmp_path) == Fetched("folder", folder)
    with pytest.raises(FetchFailed, match="no folder other"):
        get(FolderSource(tmp_path / "other"), tmp_path)


def test_a_folder_in_the_layout_of_the_hub_cache_leads_to_its_main_snapshot(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--tiny"
    old, new = (write_folder(repository / "snapshots" / name) for name in ("a" * 40, "b" * 40))
    with pytest.raises(FetchFailed, match="2 snapshots"):
        get(FolderSource(repository), tmp_path)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("b" * 40 + "\n")
    assert get(FolderSource(repository), tmp_path) == Fetched("folder", new, revision="b" * 40)
    assert get(FolderSource(old), tmp_path) == Fetched("folder", old, revision="a" * 40)


def test_a_gguf_file_is_checked_against_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF")
    digest = hashlib.sha256(b"GGUF").hexdigest()
    assert get(GgufFileSource(path), tmp_path / "c", digest) == Fetched("gguf", path, sha256=digest)
    with pytest.raises(FetchFailed, match="SHA-256"):
        get(GgufFileSource(path), tmp_path / "c", "0" * 64)
    with pytest.raises(FetchFailed, match=r"no file y\.gguf"):
        get(GgufFileSource(tmp_path / "y.gguf"), tmp_path / "c")


def test_a_digest_belongs_to_a_single_file_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="single file"):
        get(FolderSource(tmp_path), tmp_path, "0" * 64)


def test_the_scripted_model_needs_no_network(tmp_path: Path) -> None:
    fetched = get(ScriptedSource((("step_ms", "2"),)), tmp_path)
    assert fetched.path.is_dir()
    assert get(ScriptedSource((("step_ms", "2"),)), tmp_path) == fetched
    assert get(ScriptedSource(), tmp_path) != fetched
