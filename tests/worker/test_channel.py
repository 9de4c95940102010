"""Frames survive any cutting of the byte stream, and damage is refused."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_server.types import EngineStats, FinishReason, GenerationRequest, SamplingParams, TokenDelta
from inference_server.worker import protocol
from inference_server.worker.channel import MAX_FRAME_BYTES, ChildChannel, encode, frames_from_child

DELTAS = st.builds(
    TokenDelta,
    request_id=st.text(max_size=8),
    token_ids=st.lists(st.integers(0, 2**31), max_size=5).map(tuple),
    finish_reason=st.sampled_from([None, *FinishReason]),
    num_cached_tokens=st.integers(0, 100),
)
MESSAGES = st.one_of(
    st.builds(
        protocol.StepOutput, deltas=st.lists(DELTAS, max_size=4).map(tuple), stats=st.just(EngineStats())
    ),
    st.builds(
        protocol.Progress, stage=st.text(max_size=8), fraction=st.none() | st.floats(0, 1, allow_nan=False)
    ),
    st.builds(protocol.Failed, code=st.text(max_size=8), message=st.text(max_size=20)),
)


@given(st.lists(MESSAGES, max_size=6), st.data())
def test_messages_arrive_whole_however_the_stream_is_cut(
    messages: list[protocol.FromChild], data: st.DataObject
) -> None:
    stream = b"".join(encode(message) for message in messages)
    frames = frames_from_child()
    received = []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        received += list(frames.feed(stream[:cut]))
        stream = stream[cut:]
    assert received == messages


def test_a_frame_that_claims_to_be_huge_is_refused_before_it_is_buffered() -> None:
    with pytest.raises(ValueError, match="exceeds"):
        list(frames_from_child().feed((MAX_FRAME_BYTES + 1).to_bytes(4, "little")))


def test_a_frame_that_is_no_message_is_refused() -> None:
    with pytest.raises(ValueError):
        list(frames_from_child().feed((3).to_bytes(4, "little") + b"\xc1\xc1\xc1"))


def test_the_childs_end_receives_what_the_server_sends_and_sees_it_leave() -> None:
    ours, theirs = socket.socketpair()
    channel = ChildChannel(theirs)
    request = GenerationRequest(
        request_id="r1", prompt_token_ids=(1, 2, 3), sampling=SamplingParams(max_tokens=4, seed=7)
    )
    load = protocol.Load(
        model="m",
        folder="/models/m",
        device="cpu",
        dtype="float32",
        quantization="none",
        max_model_len=64,
        kv_cache_tokens=128,
        max_num_seqs=4,
        max_num_batched_tokens=32,
    )
    messages = [load, protocol.Submit(request=request), protocol.Abort(request_ids=("r1",)), protocol.Stop()]
    ours.sendall(b"".join(encode(message) for message in messages))
    received: list[protocol.ToChild] = []
    while len(received) < len(messages):
        received += channel.receive()
    assert received == messages
    ours.close()
    with pytest.raises(EOFError):
        channel.receive()
    theirs.close()
