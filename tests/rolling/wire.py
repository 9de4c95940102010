"""The few protobuf messages of Envoy's ext_proc protocol that an endpoint picker reads and writes.

Only the wire format's varints and byte strings (https://protobuf.dev/programming-guides/encoding).
Field numbers: envoy/service/ext_proc/v3/external_processor.proto and google/protobuf/struct.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

DESTINATION = "x-gateway-destination-endpoint"  # of the endpoint picker protocol, as header and as metadata
NAMESPACE = "envoy.lb"
MAX_CHUNK_BYTES = 60 * 1024
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_OVERWRITE = 2


@dataclass(frozen=True, slots=True)
class HttpEvent:
    """What Envoy tells of a request: its headers (`body` is None), or a piece of its body."""

    body: bytes | None
    is_last: bool


def read_request(message: bytes) -> HttpEvent | None:
    """A ProcessingRequest; None if it is about trailers or an answer."""
    found = dict(fields(message))
    if 2 in found:
        return HttpEvent(None, bool(dict(fields(_as_bytes(found[2]))).get(3)))
    if 4 in found:
        piece = dict(fields(_as_bytes(found[4])))
        return HttpEvent(_as_bytes(piece.get(1, b"")), bool(piece.get(2)))
    return None


def go_to(endpoint: str) -> bytes:
    """The answer to the headers: send the request to this `address:port`."""
    header = _field(1, DESTINATION.encode()) + _field(3, endpoint.encode())
    option = _field(1, header) + _field(3, _OVERWRITE)
    common = _field(2, _field(1, option))
    inner = _struct(DESTINATION, _field(3, endpoint.encode()))
    return _field(1, _field(1, common)) + _field(8, _struct(NAMESPACE, _field(5, inner)))


def go_anywhere() -> bytes:
    """The answer to the headers: no replica is better than another."""
    return _field(1, _field(1, b""))


def body_as_it_was(body: bytes) -> Iterator[bytes]:
    """The answers to the body's pieces: the same bytes, in pieces that Envoy takes."""
    for start in range(0, max(1, len(body)), MAX_CHUNK_BYTES):
        piece = body[start : start + MAX_CHUNK_BYTES]
        is_last = start + MAX_CHUNK_BYTES >= len(body)
        streamed = _field(1, piece) + (_field(2, 1) if is_last else b"")
        yield _field(3, _field(1, _field(3, _field(3, streamed))))


def _struct(key: str, value: bytes) -> bytes:
    """A google.protobuf.Struct with one entry; `value` is an encoded google.protobuf.Value."""
    return _field(1, _field(1, key.encode()) + _field(2, value))


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3 | _VARINT) + _varint(value)
    return _varint(number << 3 | _BYTES) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of any message, as they come."""
    place = 0
    while place < len(message):
        tag, place = _read_varint(message, place)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, place = _read_varint(message, place)
            yield number, value
            continue
        if kind == _BYTES:
            length, place = _read_varint(message, place)
        else:
            length = {_FIXED64: 8, _FIXED32: 4}[kind]
        yield number, message[place : place + length]
        place += length


def _read_varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7


def _as_bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError(f"expected bytes, got {value}")
    return value
