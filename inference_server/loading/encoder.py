"""From a prepared folder to an encoder and its dense layers on a device, through transformers' AutoModel.

Knows transformers' loader and the modules of sentence-transformers; computes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from inference_server.checkpoints.inspection import inspect_folder
from inference_server.checkpoints.sentence import DenseModule, SentenceConfig
from inference_server.errors import ModelLoadFailed
from inference_server.loading.completeness import require_all_weights
from inference_server.loading.loader import DTYPES, storage_bytes
from inference_server.loading.quiet import quiet_libraries

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "GELU": nn.GELU,
    "Identity": nn.Identity,
    "ReLU": nn.ReLU,
    "SiLU": nn.SiLU,
    "Sigmoid": nn.Sigmoid,
    "Tanh": nn.Tanh,
}
_UNUSED = ("pooler.",)  # what it computes is never read


@dataclass(frozen=True, slots=True)
class LoadedEncoder:
    """An encoder and its dense layers in evaluation mode, and what they take."""

    encoder: nn.Module
    dense: tuple[nn.Module, ...]
    device: torch.device
    dtype: torch.dtype
    weights_bytes: int
    vocab_size: int


def load_encoder(
    folder: Path, sentence: SentenceConfig, *, device: str, dtype: str, trust_remote_code: bool = False
) -> LoadedEncoder:
    """Load `folder` onto `device`.

    Raises:
        ModelLoadFailed: the folder is unsafe, damaged or lacks weights, or its model is no encoder or decoder
            alone.
    """
    from transformers import AutoModel

    inspect_folder(folder, allow_pickle=False, trust_remote_code=trust_remote_code)
    quiet_libraries()
    target = torch.device(device)
    encoder, report = AutoModel.from_pretrained(
        folder,
        dtype=DTYPES[dtype],
        device_map={"": target},
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
    )
    if encoder.config.is_encoder_decoder:
        raise ModelLoadFailed("encoder-decoder models are not supported for embeddings")
    require_all_weights(encoder, report, unused=_UNUSED)
    encoder.config.use_cache = False
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None
    encoder.eval()
    dense = tuple(_load_dense(module, target) for module in sentence.dense)
    return LoadedEncoder(
        encoder=encoder,
        dense=dense,
        device=target,
        dtype=DTYPES[dtype],
        weights_bytes=storage_bytes(encoder) + sum(map(storage_bytes, dense)),
        vocab_size=int(encoder.config.get_text_config().vocab_size),
    )


def _load_dense(module: DenseModule, device: torch.device) -> nn.Module:
    """In float32 whatever the encoder's dtype: it is small, and what it gives is the answer."""
    from safetensors.torch import load_file

    linear = nn.Linear(module.in_features, module.out_features, bias=module.bias, device=device)
    tensors = load_file(module.folder / "model.safetensors", device=str(device))
    try:
        linear.load_state_dict({name.removeprefix("linear."): tensor for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise ModelLoadFailed(f"{module.folder.name} does not hold the layer that it describes") from error
    return nn.Sequential(linear, _ACTIVATIONS[module.activation]()).eval().requires_grad_(False)
