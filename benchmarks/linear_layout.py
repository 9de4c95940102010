"""Float32 matrix products on the CPU, by weight layout: why `execution/linear_layout.py` exists.

Prints milliseconds (best of 20) of one product x Wᵀ for the demo model's shapes: as `F.linear` with a
row-major W, with W stored input-major, as (W xᵀ)ᵀ, and through oneDNN's prepacked linear.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

SHAPES = ((576, 576), (1536, 576), (576, 1536), (49152, 576))  # out_features, in_features
ROWS = (1, 4, 16, 32, 64, 256)


def best_ms(work: Callable[[], torch.Tensor], repeats: int = 20) -> float:
    """The fastest of several runs, in milliseconds."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times) * 1000


@torch.inference_mode()
def main() -> None:
    """Print the table."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("| out × in | rows | F.linear | input-major | (W xᵀ)ᵀ | oneDNN prepacked |")
    print("|---|---|---|---|---|---|")
    for out_features, in_features in SHAPES:
        weight = torch.randn(out_features, in_features)
        input_major = weight.t().contiguous()
        for rows in ROWS:
            x = torch.randn(rows, in_features)
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
            times = (
                best_ms(lambda x=x, w=weight: F.linear(x, w)),
                best_ms(lambda x=x, w=input_major: x @ w),
                best_ms(lambda x=x, w=weight: (w @ x.t()).t()),
                best_ms(lambda x=x, w=packed: torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")),
            )
            cells = " | ".join(f"{value:.3f}" for value in times)
            print(f"| {out_features} × {in_features} | {rows} | {cells} |")


if __name__ == "__main__":
    main()
