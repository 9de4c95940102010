"""A request's time limit, whatever the request waits for at the moment when it passes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from inference_server.errors import DeadlineExceeded


@asynccontextmanager
async def deadline(remaining_s: float, timeout_s: float) -> AsyncIterator[None]:
    """Ends the block when `remaining_s` of a limit of `timeout_s` have passed.

    Raises:
        DeadlineExceeded: it ended for that.
    """
    try:
        async with asyncio.timeout(max(0.0, remaining_s)) as limit:
            yield
    except TimeoutError:
        if limit.expired():
            raise DeadlineExceeded(
                f"the answer was not complete within the request's {timeout_s:g} s"
            ) from None
        raise
