"""The CPU backend against attention by definition, with NaN in everything that it must not read."""

from __future__ import annotations

import pytest
import torch

from tests.execution.paged import BLOCK_SIZE, Layer, Shapes

SHAPES = {
    "plain": Shapes(),
    "one kv head": Shapes(num_heads=6, num_kv_heads=1),
    "no groups": Shapes(num_heads=3, num_kv_heads=3),
    "values of another width": Shapes(key_dim=8, value_dim=4),
    "window": Shapes(window=5),
    "window of one": Shapes(window=1),
    "window longer than all": Shapes(window=1000),
    "softcap": Shapes(softcap=1.5),
    "sinks": Shapes(with_sinks=True),
    "window, softcap and sinks": Shapes(window=6, softcap=2.0, with_sinks=True),
}
STEPS = {
    "one decode": [(9, 1)],
    "decodes of equal length": [(6, 1)] * 4,
    "decodes of very different lengths": [(0, 1), (1, 1), (3, 1), (4, 1), (17, 1), (40, 1), (41, 1), (63, 1)],
    "cold chunks": [(0, 7), (0, 2), (0, 12)],
    "chunks with context": [(5, 3), (8, 9), (1, 2), (16, 4)],
    "everything at once": [(0, 5), (22, 1), (4, 6), (0, 1), (7, 1), (0, 16), (33, 2), (35, 1)],
}


@pytest.mark.parametrize("spans", STEPS.values(), ids=list(STEPS))
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=list(SHAPES))
def test_each_sequence_attends_to_itself_alone(shapes: Shapes, spans: list[tuple[int, int]]) -> None:
    layer = Layer(shapes, spans)
    for output, expected in zip(layer.attend(), layer.expected(), strict=True):
        torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=list(SHAPES))
def test_the_padding_block_stays_zero(shapes: Shapes) -> None:
    layer = Layer(shapes, STEPS["everything at once"])
    layer.attend()
    assert not layer.cache.keys[-1].any()
    assert not layer.cache.values[-1].any()


def test_a_neighbour_full_of_nan_spoils_only_itself() -> None:
    layer = Layer(Shapes(), [(9, 1), (10, 1), (0, 6), (3, 4)])
    layer.queries[1][:] = layer.keys[1][:] = layer.values[1][:] = float("nan")
    layer.queries[2][:] = layer.keys[2][:] = layer.values[2][:] = float("nan")
    outputs, expected = layer.attend(), layer.expected()
    for number in (0, 3):
        torch.testing.assert_close(outputs[number].double(), expected[number], rtol=1e-5, atol=1e-5)
    assert outputs[1].isnan().all()


def test_the_steps_keys_and_values_are_in_the_cache_afterwards() -> None:
    layer = Layer(Shapes(), [(5, 1), (2, 9)])
    layer.attend()
    table = layer.step.groups[0].block_table
    keys, values = layer.cache.gather(table)
    torch.testing.assert_close(keys[0, :, :6].transpose(0, 1), layer.keys[0])
    torch.testing.assert_close(values[0, :, :6].transpose(0, 1), layer.values[0])
    assert table.shape == (1, -(-6 // BLOCK_SIZE))


def test_layers_with_one_window_share_their_masks() -> None:
    layer = Layer(Shapes(window=3), [(9, 1), (0, 6)])
    layer.attend()
    masks = dict(layer.step.masks)
    layer.attend()
    assert set(layer.step.masks) == {(-1, 3), (0, 3)}
    assert all(layer.step.masks[key] is mask for key, mask in masks.items())


def test_bfloat16_comes_out_as_bfloat16() -> None:
    for shapes in (Shapes(), Shapes(softcap=2.0)):
        layer = Layer(shapes, [(6, 1), (0, 5), (2, 3)])
        layer.to(torch.bfloat16)
        for output, expected in zip(layer.attend(), layer.expected(), strict=True):
            assert output.dtype == torch.bfloat16
            torch.testing.assert_close(output.double(), expected, rtol=0.05, atol=0.05)
