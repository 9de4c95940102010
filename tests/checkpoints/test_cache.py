from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from inference_server.checkpoints.cache import (
    locked,
    new_folder,
    reporting_full_disk,
    require_space,
    write_json,
)
from inference_server.checkpoints.digest import remembered_sha256, require_sha256
from inference_server.errors import FetchFailed


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "entry"
    with new_folder(final) as staging:
        (staging / "a").write_text("1")
        assert not final.exists()
    assert (final / "a").read_text() == "1"
    assert os.listdir(final.parent) == ["entry"]


def test_a_failed_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "entry") as staging:
        (staging / "missing" / "a").write_text("1")
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_left_is_swept_away(tmp_path: Path) -> None:
    (tmp_path / ".entry.new").mkdir()
    (tmp_path / ".entry.new" / "old").write_text("1")
    with new_folder(tmp_path / "entry"):
        pass
    assert os.listdir(tmp_path / "entry") == []


def test_too_little_space_is_said_beforehand_with_both_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretend_free(monkeypatch, 100 * 2**20)
    require_space(tmp_path, 30 * 2**20)
    with pytest.raises(FetchFailed, match=r"50 MiB needed, 100 MiB free"):
        require_space(tmp_path, 50 * 2**20)


def test_a_disk_that_fills_up_is_said_clearly(tmp_path: Path) -> None:
    with pytest.raises(FetchFailed, match="5 MiB needed"), reporting_full_disk(tmp_path, 5 * 2**20):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(PermissionError), reporting_full_disk(tmp_path, 5):
        raise PermissionError(errno.EACCES, "no")


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "x" / "a.json", {"a": 1})
    write_json(tmp_path / "x" / "a.json", {"a": 2})
    assert (tmp_path / "x" / "a.json").read_text() == '{"a":2}'
    assert os.listdir(tmp_path / "x") == ["a.json"]


def test_json_written_by_many_at_once_is_never_torn(tmp_path: Path) -> None:
    path, values = tmp_path / "a.json", [[number] * 2000 for number in range(4)]
    write_json(path, values[0])
    with ThreadPoolExecutor() as pool:
        writers = [pool.submit(write_json, path, value) for _ in range(50) for value in values]
        while not all(writer.done() for writer in writers):
            assert json.loads(path.read_bytes()) in values
        for writer in writers:
            writer.result()
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_second_process_waits_for_the_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with locked(tmp_path, "k"):
        process = context.Process(target=_lock_and_note, args=(tmp_path,))
        process.start()
        process.join(timeout=1.0)
        assert process.is_alive()
        assert not (tmp_path / "note").exists()
    process.join(timeout=20.0)
    assert process.exitcode == 0
    assert (tmp_path / "note").exists()


def _lock_and_note(folder: Path) -> None:
    with locked(folder, "k"):
        (folder / "note").touch()


def test_a_digest_is_read_once_per_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"one")
    first = remembered_sha256(path, tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr("inference_server.checkpoints.digest.file_sha256", _fail)
        assert remembered_sha256(path, tmp_path / "cache") == first
    path.write_bytes(b"two")
    assert remembered_sha256(path, tmp_path / "cache") != first
    require_sha256("a", first, first.upper())
    with pytest.raises(FetchFailed, match="a has SHA-256"):
        require_sha256("a", first, "0" * 64)


def _fail(path: Path) -> str:
    raise AssertionError(path)


def _pretend_free(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=num_bytes))
