"""Reads a JSON body within its limits and checks it against a schema; every refusal names what is wrong."""

from __future__ import annotations

import codecs
import re
from typing import TypeVar

import msgspec
from starlette.requests import Request

from inference_server.errors import (
    InvalidRequest,
    RequestTooLarge,
    UnsupportedMediaType,
    UnsupportedParameter,
)
from inference_server.generation.json_text import MAX_DEPTH, is_deeper

T = TypeVar("T")
_CHARSET = re.compile(r'(charset="?utf-?8"?)?;?', re.IGNORECASE)
_PATH = re.compile(r"^(?P<what>.*?)(?: - at (?:`key` in )?`\$(?P<path>[^`]*)`)?$", re.DOTALL)
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(?P<name>[^`]*)`")
_MISSING_FIELD = re.compile(r"Object missing required field `(?P<name>[^`]*)`")


async def read_json(request: Request, decoder: msgspec.json.Decoder[T], max_bytes: int) -> T:
    """The body as `decoder`'s type.

    Raises:
        UnsupportedMediaType: the content type is not JSON.
        RequestTooLarge: more than `max_bytes`, found out before they are kept.
        InvalidRequest: no JSON, nested too deeply, or a field is missing, unknown or out of range.
    """
    # A web page may post other types across origins without asking; JSON it may not.
    media_type, _, parameters = request.headers.get("content-type", "").partition(";")
    if media_type.strip().lower() != "application/json" or not _CHARSET.fullmatch(parameters.strip()):
        raise UnsupportedMediaType("send the body as UTF-8 with 'Content-Type: application/json'")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedMediaType("send the body without a Content-Encoding")
    body = await _read(request, max_bytes)
    try:
        value = decoder.decode(body.removeprefix(codecs.BOM_UTF8))
    except msgspec.ValidationError as error:
        raise _explained(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not valid JSON: {_printable(str(error))}") from None
    if is_deeper(body, MAX_DEPTH):
        raise InvalidRequest(f"the body is nested more than {MAX_DEPTH} levels deep")
    return value


async def _read(request: Request, max_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise RequestTooLarge(f"the body has {declared} bytes; the limit is {max_bytes}")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise RequestTooLarge(f"the body has more than {max_bytes} bytes")
    return bytes(body)


def _explained(message: str) -> InvalidRequest:
    """msgspec's message in the API's words, with the field's name."""
    matched = _PATH.match(message)
    what, path = (matched["what"], matched["path"] or "") if matched else (message, "")
    path = path.lstrip(".")
    if unknown := _UNKNOWN_FIELD.match(what):
        name = _joined(path, unknown["name"])
        return UnsupportedParameter(f"Unrecognized request argument supplied: {name}", param=name)
    if missing := _MISSING_FIELD.match(what):
        name = _joined(path, missing["name"])
        return InvalidRequest(f"Missing required parameter: {name}", param=name)
    field = _printable(path)
    return InvalidRequest(f"Invalid value for {field or 'the body'}: {_printable(what)}", param=field or None)


def _joined(path: str, name: str) -> str:
    return _printable(f"{path}.{name}" if path else name)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text[:300])
