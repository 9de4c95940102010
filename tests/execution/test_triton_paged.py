"""The Triton kernels, interpreted, against attention by definition, with NaN in what they must not read."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace

import pytest
import torch

from tests.execution.triton_here import require_triton

require_triton()

from inference_server.execution.attention.cuda import CudaBackend, check_backend  # noqa: E402
from inference_server.execution.attention.triton_paged import MAX_SPLITS, TritonAttention  # noqa: E402
from inference_server.execution.block_tables import BlockTables  # noqa: E402
from inference_server.execution.kv_cache import LayerShape  # noqa: E402
from inference_server.execution.paged_inputs import PagedInputs, paged_step  # noqa: E402
from inference_server.execution.paged_step import PagedStep  # noqa: E402
from tests.execution.paged import BLOCK_SIZE, CPU, Layer, Shapes, schedule  # noqa: E402

SHAPES = {
    "plain": Shapes(),
    "one kv head": Shapes(num_heads=6, num_kv_heads=1),
    "odd group": Shapes(num_heads=9, num_kv_heads=3),
    "no groups": Shapes(num_heads=3, num_kv_heads=3),
    "odd head size": Shapes(key_dim=24, value_dim=24),
    "values of another width": Shapes(key_dim=24, value_dim=16),
    "window": Shapes(window=5),
    "window of one": Shapes(window=1),
    "softcap": Shapes(softcap=1.5),
    "sinks": Shapes(with_sinks=True),
    "window, softcap and sinks": Shapes(window=6, softcap=2.0, with_sinks=True),
}
STEPS = {
    "one decode": [(9, 1)],
    "decodes of very different lengths": [(0, 1), (1, 1), (3, 1), (4, 1), (17, 1), (140, 1), (63, 1)],
    "cold chunks": [(0, 7), (0, 2), (0, 12)],
    "chunks with context": [(5, 3), (8, 9), (1, 2), (70, 40)],
    "everything at once": [(0, 5), (22, 1), (4, 6), (0, 1), (7, 1), (0, 16), (33, 2), (35, 1)],
}
NUM_BLOCKS = 96


def paged(spans: Seq[tuple[int, int]], cold_from: int | None = None) -> tuple[PagedStep, list[int]]:
    """The step of `schedule(spans)`, and where each of its rows stands in the order of the batch."""
    batch = schedule(spans, NUM_BLOCKS)
    tables = BlockTables(max_rows=len(spans), width=64, device=CPU)
    host = PagedInputs(tables, block_size=BLOCK_SIZE, cold_from=cold_from).plan(batch, {})
    head, sample_rows, starts = (
        torch.from_numpy(part) for part in (host.head, host.sample_rows, host.query_starts)
    )
    tables.apply(torch.from_numpy(host.places), torch.from_numpy(host.values))
    step = paged_step(host, head, head[: host.num_tokens], starts, sample_rows, tables.device)
    last_rows = [int(row) for row in host.sample_rows]
    order = [
        row
        for last, (_, num_new) in zip(last_rows, spans, strict=True)
        for row in range(last + 1 - num_new, last + 1)
    ]
    return step, order


def attend(
    layer: Layer, spans: Seq[tuple[int, int]], *, num_processors: int = 1, cold_from: int | None = None
) -> list[torch.Tensor]:
    """What the CUDA backend gives, one tensor per sequence."""
    step, order = paged(spans, cold_from)
    rows = torch.tensor(order)
    call = layer.call()
    unsorted = torch.empty_like(rows)
    unsorted[rows] = torch.arange(len(rows))
    call = replace(call, query=call.query[unsorted], key=call.key[unsorted], value=call.value[unsorted])
    backend = CudaBackend(TritonAttention(num_processors), None)
    output = backend.attend(call, layer.cache, step)[rows]
    return list(output.split([num_new for _, num_new in spans]))


@pytest.mark.parametrize("spans", STEPS.values(), ids=list(STEPS))
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=list(SHAPES))
def test_each_sequence_attends_to_itself_alone(shapes: Shapes, spans: list[tuple[int, int]]) -> None:
    layer = Layer(shapes, spans, NUM_BLOCKS)
    layer.spoil_unwritten()
    for output, expected in zip(attend(layer, spans), layer.expected(), strict=True):
        torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_processors", [2, 6, 40])
def test_splitting_a_decodes_keys_changes_nothing(num_processors: int) -> None:
    spans = [(150, 1), (3, 1), (64, 1)]
    for shapes in (Shapes(), Shapes(window=20, softcap=3.0, with_sinks=True)):
        layer = Layer(shapes, spans, NUM_BLOCKS)
        outputs = attend(layer, spans, num_processors=num_processors)
        for output, expected in zip(outputs, layer.expected(), strict=True):
            torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_number_of_parts_fills_the_device_and_no_more() -> None:
    attention = TritonAttention(132)
    assert attention.num_splits(1, 8) == MAX_SPLITS
    assert attention.num_splits(64, 8) == 1
    assert attention.num_splits(8, 8) == 8
    sizes = [attention.num_splits(n, 8) for n in range(1, 300)]
    assert sizes == sorted(sizes, reverse=True)
    assert all(size & (size - 1) == 0 for size in sizes)


def test_cold_chunks_may_be_a_region_of_their_own() -> None:
    spans = [(0, 9), (5, 1), (0, 3), (4, 6), (0, 12)]
    layer = Layer(Shapes(), spans, NUM_BLOCKS)
    for output, expected in zip(attend(layer, spans, cold_from=8), layer.expected(), strict=True):
        torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_steps_keys_and_values_are_in_the_cache_and_nothing_else_is_touched() -> None:
    spans = [(5, 1), (2, 9)]
    layer = Layer(Shapes(), spans, NUM_BLOCKS)
    before = layer.cache.keys.clone()
    attend(layer, spans)
    for item, keys in zip(schedule(spans, NUM_BLOCKS).scheduled, layer.keys, strict=True):
        total = item.start + item.num_new_tokens
        table = torch.tensor([item.sequence.block_ids])
        torch.testing.assert_close(layer.cache.gather(table)[0][0, :, :total].transpose(0, 1), keys)
        for position in range(item.start, total):
            block = item.sequence.block_ids[position // BLOCK_SIZE]
            before[block, position % BLOCK_SIZE] = layer.cache.keys[block, position % BLOCK_SIZE]
    assert torch.equal(before.nan_to_num(99), layer.cache.keys.nan_to_num(99))


def test_half_precision_comes_out_as_half_precision() -> None:
    spans = [(6, 1), (0, 5), (2, 3)]
    layer = Layer(Shapes(), spans, NUM_BLOCKS)
    layer.to(torch.float16)
    for output, expected in zip(attend(layer, spans), layer.expected(), strict=True):
        assert output.dtype == torch.float16
        torch.testing.assert_close(output.double(), expected, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("shape", [LayerShape(2, 16, 16), LayerShape(1, 24, 16)])
def test_the_check_at_load_passes_a_right_backend_and_catches_a_wrong_one(shape: LayerShape) -> None:
    def check(backend: CudaBackend) -> float:
        return check_backend(backend, [shape], num_heads=4, block_size=16, dtype=torch.float32, device=CPU)

    class Wrong(TritonAttention):
        def decode(self, call, cache, region, block_table, output) -> None:  # type: ignore[no-untyped-def]
            super().decode(call, cache, region, block_table.flip(0), output)

    assert check(CudaBackend(TritonAttention(8), None)) < 1e-4
    assert not check(CudaBackend(Wrong(8), None)) < 0.1
