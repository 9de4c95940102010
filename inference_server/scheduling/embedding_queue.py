"""The inputs that wait to be embedded, and how much service each request has had. No clock, no tensors.

Owner: the embedding engine. Fair queueing (start-time fair, after Goyal et al., SIGCOMM 1996): virtual time
runs by the tokens served over the requests that share them, so a request of one input is not stuck behind one
of two thousand, and none waits for ever however many come.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

from inference_server.errors import ContextTooLong, InvalidRequest
from inference_server.scheduling.embedding import BatchLimits, WaitingInput, choose_inputs
from inference_server.types import EmbeddingRequest


class EmbeddingQueue:
    """Requests in, batches of inputs out."""

    def __init__(self, limits: BatchLimits, *, max_model_len: int) -> None:
        self._limits = limits
        self._max_model_len = max_model_len
        self._waiting: dict[str, list[WaitingInput]] = {}  # by request, those that wait
        self._num_arrivals = 0
        self._virtual_tokens = 0.0

    @property
    def num_waiting(self) -> int:
        """Inputs that wait."""
        return sum(map(len, self._waiting.values()))

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, request: EmbeddingRequest) -> None:
        """Queue every input of a request.

        Raises:
            InvalidRequest: it has no input, an empty one, or its id is in use.
            ContextTooLong: an input is longer than the model takes.
        """
        self._check(request)
        rank = self._virtual_tokens
        waiting = []
        for index, token_ids in enumerate(request.inputs):
            waiting.append(WaitingInput(rank, self._num_arrivals, index, request))
            rank += len(token_ids)
        self._num_arrivals += 1
        self._waiting[request.request_id] = waiting

    def abort(self, request_id: str) -> bool:
        """Forget what waits of a request; False if nothing does."""
        return self._waiting.pop(request_id, None) is not None

    def take(self) -> tuple[WaitingInput, ...]:
        """The inputs of the next step, which wait no longer; () if there are none."""
        chosen = choose_inputs([one for inputs in self._waiting.values() for one in inputs], self._limits)
        if chosen:
            self._virtual_tokens += sum(one.num_tokens for one in chosen) / len(self._waiting)
        self._remove(chosen)
        return chosen

    def _remove(self, chosen: Seq[WaitingInput]) -> None:
        taken: dict[str, set[int]] = {}
        for one in chosen:
            taken.setdefault(one.request.request_id, set()).add(one.index)
        for request_id, indices in taken.items():
            left = [one for one in self._waiting[request_id] if one.index not in indices]
            if left:
                self._waiting[request_id] = left
            else:
                del self._waiting[request_id]

    def _check(self, request: EmbeddingRequest) -> None:
        if request.request_id in self._waiting:
            raise InvalidRequest(f"request id {request.request_id!r} is already in use")
        if not request.inputs or not all(request.inputs):
            raise InvalidRequest("input must not be empty", param="input")
        longest = max(map(len, request.inputs))
        if longest > self._max_model_len:
            raise ContextTooLong(
                f"an input has {longest} tokens; the model takes {self._max_model_len}", param="input"
            )
