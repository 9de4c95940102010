"""Write helm/helixflow/README.md: the values as a table, from the comments of values.yaml that begin with --.

`python scripts/chart_documents.py` writes it; a test says if that was forgotten. A commented key is one row,
with all that lies below it as its default.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

CHART = Path(__file__).parents[1] / "helm" / "helixflow"
_KEY = re.compile(r"^(?P<indent> *)(?P<name>[A-Za-z][A-Za-z0-9]*):")
_COMMENT = re.compile(r"^ *# (?P<first>-- )?(?P<text>.*)$")

HEAD = """# Chart `helixflow`

Made by `python scripts/chart_documents.py` from values.yaml; do not edit. How to install, watch and change a
release stands in docs/operations.md.

Dots go inwards: `--set gpu.count=2`. `values.schema.json` refuses names that are not here.

| value | default | what it is |
|---|---|---|
"""


class Row(NamedTuple):
    """One documented value."""

    place: str
    default: str
    text: str


def document() -> str:
    """The whole README.md."""
    source = (CHART / "values.yaml").read_text(encoding="utf-8")
    lines = (f"| `{row.place}` | {row.default} | {row.text} |\n" for row in rows(source))
    return HEAD + "".join(lines)


def rows(source: str) -> Iterator[Row]:
    """The rows of a values.yaml, in its order."""
    values = yaml.safe_load(source)
    path: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in source.splitlines():
        if found := _COMMENT.match(line):
            if found["first"]:
                comment = [found["text"]]
            elif comment:
                comment.append(found["text"])
        elif found := _KEY.match(line):
            depth = len(found["indent"])
            path = [*((indent, name) for indent, name in path if indent < depth), (depth, found["name"])]
            if comment:
                names = [name for _, name in path]
                yield Row(".".join(names), _default(values, names), " ".join(comment))
            comment = []
        else:
            comment = []


def _default(values: Any, names: list[str]) -> str:
    for name in names:
        values = values[name]
    text = json.dumps(values, ensure_ascii=False).replace("|", "\\|")
    return f"`{text}`"


def main() -> int:
    """Write the file; returns the exit status."""
    (CHART / "README.md").write_text(document(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
