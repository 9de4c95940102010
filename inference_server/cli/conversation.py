"""One conversation with a model: its history, and a turn of it streamed to the terminal.

The history is in memory only. It knows no flags and no slash commands.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing

from inference_server.cli.client import End, Event, Notice, ServerClient, Text
from inference_server.cli.failures import ServerError
from inference_server.cli.terminal import Terminal


class Conversation:
    """Owns the messages exchanged with one model."""

    def __init__(
        self,
        client: ServerClient,
        terminal: Terminal,
        model: str,
        options: Mapping[str, object],
        system: str | None,
    ) -> None:
        self._client = client
        self._terminal = terminal
        self._model = model
        self._options = options
        self._opening = [{"role": "system", "content": system}] if system else []
        self.messages: list[dict[str, str]] = list(self._opening)

    def clear(self) -> None:
        """Forgets all but the system message."""
        self.messages = list(self._opening)

    def say(self, text: str) -> bool:
        """Sends one message and prints the answer as it comes; whether it came to an end of its own.

        Ctrl-C stops the answer only. What was said of it stays in the history; a message that got no
        answer at all leaves it, so that it can be tried again.
        """
        self.messages.append({"role": "user", "content": text})
        pieces: list[str] = []
        complete = False
        try:
            self._stream(pieces)
            complete = True
        except KeyboardInterrupt:
            self._end_line(pieces)
            self._terminal.hint("stopped")
        except ServerError as error:
            self._end_line(pieces)
            self._terminal.error(error.message)
            if error.code == "context_length_exceeded" and len(self.messages) > len(self._opening) + 1:
                self._terminal.hint("the conversation has grown too long: /clear forgets it")
        self._remember("".join(pieces), complete)
        return complete

    def _stream(self, pieces: list[str]) -> None:
        with closing(self._client.chat(self._model, self.messages, self._options)) as events:
            for event in events:
                self._show(event, pieces)

    def _show(self, event: Event, pieces: list[str]) -> None:
        if isinstance(event, Notice):
            if not pieces:
                self._terminal.status(event.text)
            return
        if not pieces:
            self._terminal.status("")
        if isinstance(event, Text):
            pieces.append(event.text)
            self._terminal.print(self._terminal.foreign(event.text), end="")
        if isinstance(event, End):
            self._end_line(pieces)
            if event.reason == "length":
                self._terminal.hint("cut short: the answer has reached its length limit")

    def _end_line(self, pieces: list[str]) -> None:
        self._terminal.status("")
        if pieces and not pieces[-1].endswith("\n"):
            self._terminal.print()

    def _remember(self, answer: str, complete: bool) -> None:
        if answer or complete:
            self.messages.append({"role": "assistant", "content": answer})
        else:
            self.messages.pop()
