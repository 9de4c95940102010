"""A Python package index, just enough of it to find one wheel (PEP 503, 691). Knows nothing of downloads."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from urllib.parse import urljoin, urlsplit

import httpx
import msgspec

from inference_server.errors import FetchFailed

DEFAULT_INDEX_URL = "https://pypi.org/simple"
_JSON = "application/vnd.pypi.simple.v1+json"
_MAX_WHEEL_BYTES = 64 * 1024**3


class _File(msgspec.Struct, frozen=True):
    filename: str
    url: str
    hashes: dict[str, str]
    size: int | None = None


class _Project(msgspec.Struct, frozen=True):
    files: tuple[_File, ...]


class WheelFile(msgspec.Struct, frozen=True):
    """A wheel as the index lists it."""

    url: str
    sha256: str
    size: int


def index_client(environ: Mapping[str, str] = os.environ) -> httpx.Client:
    """A client that trusts what pip would trust: PIP_CERT, else SSL_CERT_FILE, else certifi's list."""
    certificates = environ.get("PIP_CERT")
    verify = ssl.create_default_context(cafile=certificates) if certificates else True
    return httpx.Client(verify=verify, follow_redirects=True, timeout=httpx.Timeout(30.0))


def find_wheel(
    client: httpx.Client, project: str, version: str, environ: Mapping[str, str] = os.environ
) -> WheelFile:
    """The platform-independent wheel of exactly this version, from the index in PIP_INDEX_URL or from PyPI.

    Raises:
        FetchFailed: the index cannot be reached, does not know the version, or gives no size or digest.
    """
    base = environ.get("PIP_INDEX_URL") or DEFAULT_INDEX_URL
    page = f"{base.rstrip('/')}/{project}/"
    try:
        response = client.get(page, headers={"Accept": _JSON})
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise FetchFailed(f"the package index cannot be reached: {type(error).__name__}") from error
    if response.status_code == httpx.codes.NOT_FOUND:
        raise FetchFailed(f"the package index has no project {project!r}")
    if response.status_code != httpx.codes.OK:
        raise FetchFailed(f"the package index answers HTTP {response.status_code}")
    return _choose(_decode(response), str(response.url), project, version)


def _decode(response: httpx.Response) -> _Project:
    try:
        return msgspec.json.decode(response.content, type=_Project)
    except msgspec.MsgspecError as error:
        raise FetchFailed("the package index does not speak the JSON simple API (PEP 691)") from error


def _choose(listing: _Project, page: str, project: str, version: str) -> WheelFile:
    file = next((f for f in listing.files if _is_wheel_of(f.filename, project, version)), None)
    if file is None:
        raise FetchFailed(f"the package index has no platform-independent wheel of {project} {version}")
    sha256, url = file.hashes.get("sha256"), urljoin(page, file.url)
    if sha256 is None or file.size is None or not 0 < file.size <= _MAX_WHEEL_BYTES:
        raise FetchFailed(f"the package index gives no SHA-256 or no usable size for {file.filename}")
    if urlsplit(url).scheme not in ("http", "https"):
        raise FetchFailed(f"the package index gives no web address for {file.filename}")
    return WheelFile(url=url, sha256=sha256, size=file.size)


def _is_wheel_of(filename: str, project: str, version: str) -> bool:
    parts = filename.removesuffix(".whl").split("-")
    return (
        filename.endswith("-any.whl")
        and len(parts) in (5, 6)
        and parts[0].replace("_", "-").replace(".", "-").lower() == project
        and parts[1].replace("_", "-").lower() == version.replace("_", "-").lower()
    )
