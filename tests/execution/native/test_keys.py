"""What is kept on disk is made anew once a source that decides its contents changes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import inference_server
from inference_server.checkpoints import native_weights
from inference_server.execution.native import kernels, loading

PACKAGE = Path(inference_server.__file__).parent


@pytest.mark.parametrize(
    "name",
    [
        "checkpoints/native.py",
        "checkpoints/native_weights.py",
        "execution/admission.py",
        "execution/native/architecture.py",
        "execution/native/packing.py",
        "loading/blocks.py",
        "loading/nibbles.py",
    ],
)
def test_packed_weights_depend_on_every_source_that_shapes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for folder in ("checkpoints", "execution", "loading"):
        shutil.copytree(PACKAGE / folder, tmp_path / folder)
    monkeypatch.setattr(loading, "_PACKAGE", tmp_path)
    before = loading.packing_key.__wrapped__()
    assert before == loading.packing_key()
    (tmp_path / name).write_text("changed")
    assert loading.packing_key.__wrapped__() != before


def test_compiled_kernels_depend_on_the_numbers_of_the_formats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = kernels.sources_key()
    (tmp_path / "native_weights.py").write_text("changed")
    monkeypatch.setattr(native_weights, "__file__", str(tmp_path / "native_weights.py"))
    assert kernels.sources_key() != before
