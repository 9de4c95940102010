"""Framing on a stream socket: a 4-byte little-endian length, then one msgpack message.

Used by both ends; knows nothing of what the messages mean.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

from inference_server.worker.protocol import FromChild, ToChild

MAX_FRAME_BYTES = 64 * 1024 * 1024
_LENGTH = struct.Struct("<I")
T = TypeVar("T")


class FrameDecoder(Generic[T]):
    """Turns received bytes into messages. One owner; not thread-safe."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[T]) -> None:
        self._decoder = decoder
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[T]:
        """Yield each message that `data` completes.

        Raises:
            ValueError: a frame is larger than `MAX_FRAME_BYTES` or does not decode; the stream is unusable.
        """
        self._buffer += data
        offset = 0
        try:
            while len(self._buffer) - offset >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._buffer, offset)
                if length > MAX_FRAME_BYTES:
                    raise ValueError(f"frame of {length} bytes exceeds {MAX_FRAME_BYTES}")
                end = offset + _LENGTH.size + length
                if len(self._buffer) < end:
                    break
                frame = bytes(self._buffer[offset + _LENGTH.size : end])
                offset = end
                yield self._decoder.decode(frame)
        finally:
            del self._buffer[:offset]


def frames_from_child() -> FrameDecoder[FromChild]:
    """A decoder for the server's end."""
    return FrameDecoder(msgspec.msgpack.Decoder(FromChild))


def encode(message: ToChild | FromChild) -> bytes:
    """One frame, ready to send."""
    payload = msgspec.msgpack.encode(message)
    return _LENGTH.pack(len(payload)) + payload


class ChildChannel:
    """The child's end: blocking sends under a lock (the heartbeat thread sends too), polled receives.

    Owner of receiving: the child's main thread.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._sock = sock
        self._frames: FrameDecoder[ToChild] = FrameDecoder(msgspec.msgpack.Decoder(ToChild))
        self._send_lock = threading.Lock()

    def fileno(self) -> int:
        """For `select`."""
        return self._sock.fileno()

    def send(self, message: FromChild) -> None:
        """Send one message, blocking while the server's buffer is full.

        Raises:
            OSError: the server is gone.
        """
        frame = encode(message)
        with self._send_lock:
            self._sock.sendall(frame)

    def receive(self) -> list[ToChild]:
        """Block until at least some bytes arrive and return the messages that they complete.

        Raises:
            EOFError: the server closed its end.
        """
        data = self._sock.recv(1 << 20)
        if not data:
            raise EOFError("the server closed the channel")
        return list(self._frames.feed(data))
