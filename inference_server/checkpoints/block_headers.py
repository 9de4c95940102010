"""Which tensors of a prepared folder also lie in blocks of 32, as its GGUF source had them.

`blocks.safetensors` holds two or three tensors for each of them; `loading/blocks_file.py` writes and reads
them. This file reads the header alone, for the plan: no numpy.
"""

from __future__ import annotations

from pathlib import Path

from inference_server.checkpoints.headers import read_header

BLOCKS_NAME = "blocks.safetensors"
CODES, SCALES, MINIMUMS = ".codes", ".scales", ".minimums"  # after the tensor's name
_BITS = {"I8": 8, "U8": 4}  # of a code, by the type of CODES; two codes of 4 bits share a byte


def block_bits(folder: Path) -> dict[str, int]:
    """Tensor name → bits per weight, 8 or 4; empty if the folder has no blocks.

    Raises:
        FetchFailed: the file is damaged.
    """
    path = folder / BLOCKS_NAME
    if not path.exists():
        return {}
    codes = {name: info for name, info in read_header(path).items() if name.endswith(CODES)}
    return {
        name.removesuffix(CODES): _BITS[info.dtype] for name, info in codes.items() if info.dtype in _BITS
    }
