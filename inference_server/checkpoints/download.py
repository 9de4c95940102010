"""One large file over HTTP, resumable: what arrived stays in `*.part` and the next try continues there.

Knows nothing of indexes, archives or digests; whoever calls it verifies the result.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from inference_server.checkpoints.cache import reporting_full_disk, require_space
from inference_server.errors import FetchFailed

MAX_FAILURES_IN_A_ROW = 5
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")

OnProgress = Callable[[str, float | None], None]


class _Restart(Exception):  # noqa: N818 - control flow of one loop
    """What lies in the part file is of no use."""


def download(
    client: httpx.Client,
    url: str,
    part: Path,
    *,
    size: int,
    on_progress: OnProgress,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Fill `part` with the `size` bytes at `url`, continuing from what it already holds.

    Raises:
        FetchFailed: the server refuses, sends too much or keeps failing, or the disk is full.
    """
    num_failures = 0
    while (offset := _num_bytes(part, size)) < size:
        require_space(part.parent, size - offset)
        try:
            with reporting_full_disk(part.parent, size - offset):
                _continue(client, url, part, offset, size, on_progress)
            break
        except _Restart:
            part.unlink(missing_ok=True)
            num_failures += 1
        except httpx.TransportError:
            num_failures = 1 if _num_bytes(part, size) > offset else num_failures + 1
        if num_failures >= MAX_FAILURES_IN_A_ROW:
            raise FetchFailed("the download keeps failing; what has arrived is kept, try again later")
        sleep(min(2.0 ** (num_failures - 1), 10.0))
    on_progress("download", 1.0)


def _continue(
    client: httpx.Client, url: str, part: Path, offset: int, size: int, on_progress: OnProgress
) -> None:
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
    with client.stream("GET", url, headers=headers) as response:
        start = _start_of(response, offset)
        with part.open("r+b" if start else "wb") as file:
            file.seek(start)
            for chunk in response.iter_bytes():
                percent_before = 100 * start // size
                start += len(chunk)
                if start > size:
                    raise FetchFailed(f"the server sends more than the {size} bytes that the index promises")
                file.write(chunk)
                if 100 * start // size > percent_before:
                    on_progress("download", start / size)
    if start < size:
        raise httpx.ReadError("the connection closed early")


def _start_of(response: httpx.Response, offset: int) -> int:
    """The position in the file at which the response's body starts."""
    if response.status_code == httpx.codes.PARTIAL_CONTENT:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != offset:
            raise _Restart
        return offset
    if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
        raise _Restart
    if response.is_server_error:
        raise httpx.ReadError(f"HTTP {response.status_code}")
    if response.status_code != httpx.codes.OK:
        raise FetchFailed(f"the server refuses the download with HTTP {response.status_code}")
    return 0


def _num_bytes(part: Path, size: int) -> int:
    """Bytes already there; a part longer than the file itself is none of it."""
    if not part.exists():
        return 0
    num_bytes = part.stat().st_size
    if num_bytes > size:
        part.unlink()
        return 0
    return num_bytes
