"""Every case of the list of limits and hostile input (docs/security.md) has a test that is named after it."""

from __future__ import annotations

import re
from pathlib import Path

NUM_ROWS = 26
_NAMED = re.compile(r"^(?:async )?def test_row_(\d+)_", re.MULTILINE)


def test_each_row_has_a_test() -> None:
    folder = Path(__file__).parents[1]
    found = {int(n) for path in folder.rglob("test_*.py") for n in _NAMED.findall(path.read_text("utf-8"))}
    assert found == set(range(1, NUM_ROWS + 1))
