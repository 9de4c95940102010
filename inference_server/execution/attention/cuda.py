"""The CUDA backend: our Triton kernels for everything paged, flash attention for cold prefill.

Also its numeric self-check, made at load against attention on gathered blocks.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from inference_server.execution.attention.contract import AttentionCall
from inference_server.execution.attention.triton_paged import TritonAttention
from inference_server.execution.attention.varlen import VarlenAttention, find_function
from inference_server.execution.kv_cache import LayerCache, LayerShape
from inference_server.execution.paged_step import PagedStep, Region


class CudaBackend:
    """An `AttentionBackend` over `PagedStep`s."""

    def __init__(self, paged: TritonAttention, varlen: VarlenAttention | None) -> None:
        self._paged = paged
        self._varlen = varlen

    @property
    def has_varlen(self) -> bool:
        """Whether cold chunks are worth a region of their own."""
        return self._varlen is not None

    def attend(self, call: AttentionCall, cache: LayerCache, step: PagedStep) -> torch.Tensor:
        """See `AttentionBackend.attend`."""
        num_tokens, num_heads, _ = call.query.shape
        output = call.query.new_empty((num_tokens, num_heads, call.value.shape[2]))
        self._paged.store(call, cache, step.slots)
        if step.decodes is not None:
            self._paged.decode(call, cache, step.decodes, step.block_table, output)
        if step.chunks is not None:
            self._paged.chunks(call, cache, step.chunks, step.block_table, output)
        if step.cold is not None:
            self._cold(call, cache, step.cold, step.block_table, output)
        return output

    def _cold(
        self,
        call: AttentionCall,
        cache: LayerCache,
        region: Region,
        block_table: torch.Tensor,
        output: torch.Tensor,
    ) -> None:
        rows = output[region.first_row : region.last_row]

        def by_our_kernel() -> torch.Tensor:
            self._paged.chunks(call, cache, region, block_table, output)
            return rows

        attended = None if self._varlen is None else self._varlen.attend(call, region, by_our_kernel)
        if attended is None:
            by_our_kernel()
        elif attended is not rows:
            rows.copy_(attended)


def cuda_backend(device: torch.device) -> CudaBackend:
    """The backend for one GPU; on a CPU, where the kernels can only be interpreted, one without varlen."""
    on_cuda = device.type == "cuda"
    processors = torch.cuda.get_device_properties(device).multi_processor_count if on_cuda else 1
    function = find_function() if on_cuda else None
    return CudaBackend(TritonAttention(processors), None if function is None else VarlenAttention(function))


def check_backend(
    backend: CudaBackend,
    shapes: Iterable[LayerShape],
    *,
    num_heads: int,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> float:
    """Largest difference from plain attention over a few decodes and chunks of each shape.

    In standard deviations of the values. Raises whatever a kernel that does not compile or run raises.
    """
    worst = 0.0
    for shape in set(shapes):
        group = max(1, num_heads // shape.num_kv_heads)
        worst = max(worst, _Trial(shape, group, block_size, dtype, device).difference(backend))
    return worst


class _Trial:
    """Two decodes (one of them padding), a chunk with context and a cold one, on random numbers."""

    LENGTHS = ((1, 37), (1, 0), (5, 41), (9, 9))  # new tokens, all tokens

    def __init__(
        self, shape: LayerShape, group: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        generator = torch.Generator().manual_seed(3)

        def noise(*dims: int) -> torch.Tensor:
            return torch.randn(dims, generator=generator).to(device, dtype)

        self._block_size = block_size
        self._width = -(-max(total for _, total in self.LENGTHS) // block_size)
        num_tokens = sum(new for new, _ in self.LENGTHS)
        num_blocks = len(self.LENGTHS) * self._width
        self._cache = LayerCache(shape, num_blocks, block_size, dtype, device)
        self._cache.keys.copy_(noise(*self._cache.keys.shape))
        self._cache.values.copy_(noise(*self._cache.values.shape))
        self._table = torch.arange(num_blocks, dtype=torch.int32, device=device).view(-1, self._width)
        self._call = AttentionCall(
            query=noise(num_tokens, group * shape.num_kv_heads, shape.key_dim),
            key=noise(num_tokens, shape.num_kv_heads, shape.key_dim),
            value=noise(num_tokens, shape.num_kv_heads, shape.value_dim),
            scale=shape.key_dim**-0.5,
            window=None,
            softcap=None,
            sinks=None,
        )

    def difference(self, backend: CudaBackend) -> float:
        found = backend.attend(self._call, self._cache, self._step()).float()
        worst, row = 0.0, 0
        for number, (new, total) in enumerate(self.LENGTHS):
            if total:
                expected = self._expected(number, row, new, total)
                worst = max(worst, float((found[row : row + new] - expected).abs().max()))
            row += new
        return worst

    def _step(self) -> PagedStep:
        slots: list[int] = []
        for number, (new, total) in enumerate(self.LENGTHS):
            first = number * self._width * self._block_size
            slots += [first + position if total else -1 for position in range(total - new, total)] or [-1]
        ids = torch.zeros((1, len(slots)), dtype=torch.int64, device=self._table.device)
        return PagedStep(
            input_ids=ids,
            position_ids=ids,
            slots=self._ints(slots),
            block_table=self._table,
            decodes=self._region(0, 2),
            chunks=self._region(2, 3),
            cold=self._region(3, 4),
            sample_rows=None,
        )

    def _region(self, first: int, last: int) -> Region:
        new = [length for length, _ in self.LENGTHS]
        starts = [sum(new[first:number]) for number in range(first, last + 1)]
        first_row = sum(new[:first])
        return Region(
            first_row=first_row,
            last_row=first_row + starts[-1],
            max_query_len=max(new[first:last]),
            query_starts=self._ints(starts),
            kv_lengths=self._ints([total for _, total in self.LENGTHS[first:last]]),
            table_rows=self._ints(list(range(first, last))),
        )

    def _ints(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self._table.device)

    def _expected(self, number: int, row: int, new: int, total: int) -> torch.Tensor:
        keys, values = self._cache.gather(self._table[number : number + 1].long())
        group = self._call.query.shape[1] // keys.shape[1]
        keys = keys[0, :, :total].float().repeat_interleave(group, dim=0)
        values = values[0, :, :total].float().repeat_interleave(group, dim=0)
        scores = torch.einsum("qhd,hkd->hqk", self._call.query[row : row + new].float(), keys)
        mask = torch.ones((new, total), dtype=torch.bool, device=scores.device).tril(total - new)
        weights = (scores * self._call.scale).masked_fill(~mask, float("-inf")).softmax(-1)
        return torch.einsum("hqk,hkd->qhd", weights, values)
