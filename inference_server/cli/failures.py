"""What ends a command with a message, beside the errors of `inference_server.errors`."""

from __future__ import annotations


class UsageError(Exception):
    """The command line is not one that `program` takes."""

    def __init__(self, message: str, program: str) -> None:
        super().__init__(message)
        self.message = message
        self.program = program


class ServerError(Exception):
    """The server refused, or is not there. `code` is the server's, or empty."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code
