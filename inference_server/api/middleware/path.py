"""The path of a request below the prefix that a proxy has put before it."""

from __future__ import annotations


def route_path(path: str, root_path: str) -> str:
    """`path` without `root_path`, as the router matches it."""
    if root_path and path.startswith(f"{root_path}/"):
        return path[len(root_path) :]
    return path
