"""Computes embeddings: a padded batch of token ids → the encoder → pooling → dense layers → unit length.

The encoder is any model of transformers that gives `last_hidden_state`. Padding stands behind the tokens, and
the attention mask keeps them apart; `check_isolation` proves that for the model at hand. Owner:
the worker's main thread.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence as Seq

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference_server.errors import ModelLoadFailed
from inference_server.execution.pooling import pool

_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}  # of 1 - cosine


class Embedder:
    """A `BatchEmbedder` over tensors."""

    def __init__(
        self,
        encoder: nn.Module,
        *,
        poolings: Seq[str],
        dense: Seq[nn.Module],
        normalize: bool,
        device: torch.device,
    ) -> None:
        self._encoder = encoder
        self._poolings = tuple(poolings)
        self._dense = nn.Sequential(*dense)
        self._normalize = normalize
        self._device = device

    def embed(self, inputs: Seq[Seq[int]], dimensions: Seq[int | None]) -> list[bytes | None]:
        """The vector of each input as little-endian float32; None where it is not finite.

        `dimensions` cuts the vector of the same place to its first so many numbers, at unit length.
        """
        vectors = self.vectors(inputs).cpu()
        finite = torch.isfinite(vectors).all(dim=1).tolist()
        return [
            _as_bytes(_cut(vector, size)) if good else None
            for vector, size, good in zip(vectors, dimensions, finite, strict=True)
        ]

    def is_fatal(self, error: Exception) -> bool:
        """Whether the device is unusable after `error`."""
        return self._device.type == "cuda" and "CUDA error" in str(error)

    @torch.inference_mode()
    def vectors(self, inputs: Seq[Seq[int]]) -> Tensor:
        """[num_inputs, dimensions] in float32, on the device."""
        ids, mask = _padded(inputs, self._device)
        states = self._encoder(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        pooled = pool(states, mask[:, :, None].to(states.dtype), self._poolings)
        embedded: Tensor = self._dense(pooled)
        return functional.normalize(embedded, dim=1) if self._normalize else embedded


def check_isolation(embedder: Embedder, dtype: torch.dtype, vocab_size: int) -> int:
    """Two inputs of different length in one batch must get the vectors that each gets alone.

    Returns the number of dimensions.

    Raises:
        ModelLoadFailed: they do not, or the numbers are not finite.
    """
    ids = [token % vocab_size for token in range(3, 3 + 11)]
    inputs = (ids[:4], ids)
    together = embedder.vectors(inputs)
    alone = torch.cat([embedder.vectors([one]) for one in inputs])
    if not torch.isfinite(together).all():
        raise ModelLoadFailed("the model's embeddings are not finite numbers")
    distance = 1 - functional.cosine_similarity(together, alone, dim=1).min().item()
    if distance > _TOLERANCE[dtype]:
        raise ModelLoadFailed(
            "an input's embedding depends on what else is in the batch, so this model cannot be served"
        )
    return together.shape[1]


def _padded(inputs: Seq[Seq[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both [num_inputs, longest]; padding is id 0 behind the tokens."""
    longest = max(map(len, inputs))
    ids = torch.tensor([[*one, *[0] * (longest - len(one))] for one in inputs])
    lengths = torch.tensor([len(one) for one in inputs])
    mask = torch.arange(longest)[None, :] < lengths[:, None]
    return ids.to(device), mask.long().to(device)


def _cut(vector: Tensor, dimensions: int | None) -> Tensor:
    return vector if dimensions is None else functional.normalize(vector[:dimensions], dim=0)


def _as_bytes(vector: Tensor) -> bytes:
    numbers = vector.contiguous().numpy()
    return bytes((numbers if sys.byteorder == "little" else numbers.byteswap()).data)
