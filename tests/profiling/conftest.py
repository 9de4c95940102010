from __future__ import annotations

from tests.server.conftest import demo_server

__all__ = ["demo_server"]
