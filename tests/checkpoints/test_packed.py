"""Where packed weights are kept, and what is swept away when new ones have come."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest

from inference_server.checkpoints.packed import (
    has_room,
    make_home,
    packed_files,
    packed_path,
    sweep,
    unfinished_path,
)
from tests.checkpoints.files import write_native_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_native_folder(tmp_path / "model")


def path_of(tmp_path: Path, folder: Path, quantization: str = "int8", layout: str = "1") -> Path:
    return packed_path(tmp_path / "cache", folder, quantization=quantization, dtype="bfloat16", layout=layout)


def kept(path: Path, folder: Path) -> Path:
    make_home(path, folder)
    path.write_bytes(b"weights")
    return path


def test_the_path_changes_with_format_layout_and_checkpoint_only(tmp_path: Path, folder: Path) -> None:
    first = path_of(tmp_path, folder)
    assert path_of(tmp_path, folder) == first
    others = [path_of(tmp_path, folder, "int4"), path_of(tmp_path, folder, layout="2")]
    weights = folder / "model.safetensors"
    os.utime(weights, ns=(0, 1))
    others.append(path_of(tmp_path, folder))
    others.append(path_of(tmp_path, write_native_folder(tmp_path / "other")))
    assert len({first, *others}) == 5


def test_a_new_file_takes_the_place_of_its_older_versions_only(tmp_path: Path, folder: Path) -> None:
    old, other_format = path_of(tmp_path, folder), path_of(tmp_path, folder, "int4")
    new = path_of(tmp_path, folder, layout="2")
    for path in (old, other_format, new):
        kept(path, folder)
    sweep(new)
    assert set(packed_files(tmp_path / "cache", folder)) == {new, other_format, new.parent / "source"}


def test_what_a_killed_writer_left_goes_and_what_is_being_written_stays(tmp_path: Path, folder: Path) -> None:
    path = kept(path_of(tmp_path, folder), folder)
    abandoned, busy = unfinished_path(path, "1"), unfinished_path(path, "2")
    abandoned.write_bytes(b"half")
    with busy.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        sweep(path)
        assert not abandoned.exists()
        assert busy.exists()


def test_files_of_checkpoints_that_are_gone_go_too(tmp_path: Path, folder: Path) -> None:
    other = write_native_folder(tmp_path / "other")
    gone = kept(path_of(tmp_path, other), other)
    path = kept(path_of(tmp_path, folder), folder)
    shutil.rmtree(other)
    sweep(path)
    assert path.exists()
    assert not gone.parent.exists()


def test_half_of_the_free_disk_is_the_most_that_is_taken(tmp_path: Path, folder: Path) -> None:
    path = kept(path_of(tmp_path, folder), folder)
    free = shutil.disk_usage(tmp_path).free
    assert has_room(path, free // 4)
    assert not has_room(path, free)
