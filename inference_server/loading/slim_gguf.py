"""A copy of a GGUF file without some of its metadata entries. Copies bytes; interprets no tensor."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from inference_server.checkpoints.gguf import PREAMBLE, GgufHeader

_COPY_CHUNK_BYTES = 4 * 1024 * 1024


def write_slim_copy(gguf: Path, header: GgufHeader, target: Path, *, drop: Collection[str]) -> None:
    """Write `target` with the metadata entries in `drop` left out and everything else as it is.

    Tensor offsets count from the start of the data section, so the tensor table stays valid as it stands.
    """
    kept = [span for key, span in header.spans.items() if key not in drop]
    with gguf.open("rb") as source, target.open("wb") as copy:
        magic, version, num_tensors, _ = PREAMBLE.unpack(source.read(PREAMBLE.size))
        copy.write(PREAMBLE.pack(magic, version, num_tensors, len(kept)))
        for start, end in (*kept, header.tensor_table):
            source.seek(start)
            copy.write(source.read(end - start))
        copy.write(bytes(-copy.tell() % header.alignment))
        source.seek(header.data_start)
        shutil.copyfileobj(source, copy, _COPY_CHUNK_BYTES)
