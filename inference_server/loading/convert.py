"""Turns what cannot be served directly into a folder of safetensors: GGUF files, pickled weights.

Each function fills one folder or raises; caching is `preparation.py`'s matter. Runs in a preparation job,
never in the server: torch, transformers and numpy are imported inside the functions.

Transformers' GGUF reader walks vocabulary and merges element by element, twice for the weights and once more
for AutoTokenizer: half of the 27 s that a 135M model takes on two cores. So the weights are read from a copy
of the file without those arrays, and the tokenizer by the class that needs no config.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inference_server.checkpoints.cache import reporting_full_disk, require_space
from inference_server.checkpoints.gguf import ArrayLength, GgufHeader, read_gguf_header
from inference_server.errors import FetchFailed, HelixFlowError
from inference_server.loading.completeness import listing
from inference_server.loading.slim_gguf import write_slim_copy

CONVERTER_VERSION = 3  # raise it when the output changes: it is part of the cache key
_BYTES_PER_PARAMETER = 2  # bfloat16; kept blocks are no larger than the file
_TOKENS_KEY = "tokenizer.ggml.tokens"
_TOKENIZER_ARRAYS = (
    _TOKENS_KEY,
    "tokenizer.ggml.scores",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.merges",
)

OnProgress = Callable[[str, float | None], None]


def convert_gguf(gguf: Path, out: Path, on_progress: OnProgress) -> None:
    """Write config, bfloat16 safetensors, tokenizer and chat template of `gguf` into the empty folder `out`.

    Tensors that the file holds in blocks of 32 are kept as such, too (see `convert_blocks.py`).

    Raises:
        FetchFailed: the file is damaged, in parts or lacks tensors, transformers does not know its
            architecture, or the disk is full.
    """
    from inference_server.loading.convert_blocks import convert_blocks

    header = read_gguf_header(gguf)
    _refuse_part(gguf, header)
    needed_bytes = header.num_parameters * _BYTES_PER_PARAMETER + 2 * header.file_bytes
    require_space(out, needed_bytes)
    with (
        _as_fetch_failed(f"the GGUF file ({header.architecture}) cannot be converted"),
        reporting_full_disk(out, needed_bytes),
        tempfile.TemporaryDirectory(dir=out) as scratch,
    ):
        on_progress("convert", 0.0)
        _convert_tokenizer(gguf, out, Path(scratch))
        on_progress("convert", 0.1)
        _convert_weights(gguf, header, out, Path(scratch), on_progress)
        on_progress("convert", 0.9)
        convert_blocks(gguf, header, out)
    on_progress("convert", 1.0)


def convert_pickled(folder: Path, out: Path, on_progress: OnProgress, *, trust_remote_code: bool) -> None:
    """Rewrite pickled weights as safetensors in `out`, which already links the folder's other files.

    Even where the operator allows pickles, torch reads them with `weights_only`. What they lack is left out:
    an encoder without a language model's head is complete, and whoever loads the result knows what it needs.

    Raises:
        FetchFailed: they cannot be read, or the disk is full.
    """
    from transformers import AutoModelForCausalLM

    num_bytes = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    require_space(out, num_bytes)
    on_progress("convert", None)
    with _as_fetch_failed("the pickled weights cannot be converted"), reporting_full_disk(out, num_bytes):
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype="auto",
            use_safetensors=False,
            weights_only=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
        _save_model(model, out, without=report["missing_keys"])
    on_progress("convert", 1.0)


def _refuse_part(gguf: Path, header: GgufHeader) -> None:
    count = header.metadata.get("split.count", 1)
    if isinstance(count, int) and count > 1:
        raise FetchFailed(
            f"{gguf.name} is one of {count} parts of a model; merge them into one file first: "
            "llama-gguf-split --merge FIRST-PART.gguf MERGED.gguf"
        )


def _convert_tokenizer(gguf: Path, out: Path, scratch: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    alone = scratch / "tokenizer.gguf"  # away from files that happen to lie next to it
    alone.symlink_to(gguf.resolve())
    tokenizer = PreTrainedTokenizerFast.from_pretrained(scratch, gguf_file=alone.name, local_files_only=True)
    tokenizer.save_pretrained(out)


def _convert_weights(
    gguf: Path, header: GgufHeader, out: Path, scratch: Path, on_progress: OnProgress
) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from inference_server.loading.gguf_rope import set_rope_scaling

    weights = scratch / "weights.gguf"
    _weights_only_file(gguf, header, weights)
    on_progress("convert", 0.2)
    config = AutoConfig.from_pretrained(scratch, gguf_file=weights.name, local_files_only=True)
    tokens = header.metadata.get(_TOKENS_KEY)
    if isinstance(tokens, ArrayLength) and f"{header.architecture}.vocab_size" not in header.metadata:
        config.vocab_size = tokens.count
    set_rope_scaling(config, gguf, header)
    with _remembering_tensor_names():
        model, report = AutoModelForCausalLM.from_pretrained(
            scratch,
            gguf_file=weights.name,
            config=config,
            dtype=torch.bfloat16,
            local_files_only=True,
            output_loading_info=True,
            **_dequantize_option(),
        )
    if missing := report["missing_keys"]:
        raise FetchFailed(f"the GGUF file is incomplete: of the converted model {listing(missing)}")
    on_progress("convert", 0.8)
    _save_model(model, out)


def _weights_only_file(gguf: Path, header: GgufHeader, target: Path) -> None:
    """The file as transformers reads it fastest: slim for its old reader, whole for its new one."""
    if header.architecture in _architectures_of_new_reader():
        target.symlink_to(gguf.resolve())
    else:
        write_slim_copy(gguf, header, target, drop=_TOKENIZER_ARRAYS)


def _architectures_of_new_reader() -> frozenset[str]:
    """Its configs count the vocabulary array, so it must be there; its reader skips arrays quickly."""
    try:
        from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
    except ImportError:
        return frozenset()
    return frozenset(GGUF_CONFIG_ARCHS)


def _dequantize_option() -> dict[str, Any]:
    """Older transformers always unpack GGUF weights; newer ones are told to."""
    import transformers

    if not hasattr(transformers, "GgufConfig"):
        return {}
    return {"quantization_config": transformers.GgufConfig(dequantize=True)}


@contextmanager
def _remembering_tensor_names() -> Iterator[None]:
    """Transformers asks gguf for the same table of tensor names once per module: two thirds of the time left.

    The function is pure, so a remembered answer is the same answer. Undone at the end of the block.
    """
    import gguf

    original = gguf.get_tensor_name_map
    gguf.get_tensor_name_map = functools.cache(original)
    try:
        yield
    finally:
        gguf.get_tensor_name_map = original


def _save_model(model: Any, out: Path, *, without: Collection[str] = ()) -> None:
    """Safetensors in one file where possible; the file replaces a link of the same name, never its target."""
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in without}
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        model.save_pretrained(scratch, state_dict=tensors, max_shard_size="50GB")
        for path in Path(scratch).iterdir():
            shutil.move(path, out / path.name)


@contextmanager
def _as_fetch_failed(what: str) -> Iterator[None]:
    """Name any failure of the libraries; their own text stays in the cause, for the log."""
    try:
        yield
    except HelixFlowError:
        raise
    except Exception as error:
        raise FetchFailed(f"{what}: {type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
