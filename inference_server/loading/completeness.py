"""Whether a checkpoint held all the weights of the model that transformers made of it.

Transformers fills what is missing with random numbers and only prints a warning; what it can tie to another
tensor, or knows to be needless, it does not call missing. Reads its loading report; knows no files.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from inference_server.errors import ModelLoadFailed

# What quantized layers may hold beside their weights; their library makes it up where a file has none.
_MADE_UP_ENDINGS = ("zero_point", "qzeros", "g_idx")
_NAMED = 3  # of the missing tensors


def require_all_weights(model: Any, report: Mapping[str, Any], *, unused: tuple[str, ...] = ()) -> None:
    """Check a model that `from_pretrained` gave with this loading report.

    Names that begin with one of `unused` may be missing; so may buffers, which the model's code computes.

    Raises:
        ModelLoadFailed: the checkpoint lacks weights.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    missing = [
        name
        for name in report["missing_keys"]
        if name in parameters and not name.startswith(unused) and not _is_made_up(model, name)
    ]
    if missing:
        raise ModelLoadFailed(f"the checkpoint is incomplete: {listing(missing)}")


def listing(missing: Collection[str]) -> str:
    """How many tensors are missing, and the first of them by name."""
    first = ", ".join(sorted(missing)[:_NAMED])
    more = ", ..." if len(missing) > _NAMED else ""
    noun = "tensor is" if len(missing) == 1 else "tensors are"
    return f"{len(missing)} {noun} missing ({first}{more})"


def _is_made_up(model: Any, name: str) -> bool:
    return getattr(model, "hf_quantizer", None) is not None and name.endswith(_MADE_UP_ENDINGS)
