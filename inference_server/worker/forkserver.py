"""The fork server: a program that imports torch and transformers once, then forks a child per request.

Run as `python -m inference_server.worker.forkserver FD [--preload-torch] [--log-json]`, never imported by the
server. It runs no tensor operation, starts no thread, and never touches CUDA: a child can only use CUDA if
its parent did not. It owns no worker: each child belongs to the server at the other end of its channel.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import signal
import socket
import sys
import time
import traceback

import msgspec

from inference_server.telemetry.logs import setup_logging

# Everything a text model's worker imports before it opens its first weight.
PRELOAD = (
    "torch",
    "transformers",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "safetensors.torch",
    "inference_server.engine.text_engine",
    "inference_server.execution.runner",
    "inference_server.loading.loader",
)
# These query the device when they are imported, which would initialise CUDA before the fork.
FORBIDDEN = ("bitsandbytes", "triton", "torchao")
# torch imports this one along with itself where it is installed, as CUDA builds of torch have it.
HIDDEN = "triton"
HIDDEN_FROM = (
    ("torch.utils._triton", "has_triton_package"),
    ("torch.utils._triton", "has_triton"),
    ("transformers.utils.import_utils", "is_triton_available"),
)
_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> int:
    """Serve forks until the server closes its end; returns the exit status."""
    control = socket.socket(fileno=int(argv[0]))
    _die_with_the_server()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    setup_logging("warning", json_lines="--log-json" in argv)
    started_s = time.monotonic()
    error = _preload() if "--preload-torch" in argv else None
    report = {"ready": error is None, "import_seconds": time.monotonic() - started_s, "error": error or ""}
    try:
        control.send(msgspec.msgpack.encode(report))
    except OSError:
        return 0
    if error is not None:
        return 1
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps; the server watches through pidfds
    _serve(control)
    return 0


def _serve(control: socket.socket) -> None:
    while True:
        try:
            data, fds, _, _ = socket.recv_fds(control, 64, 1)
        except OSError:
            return
        if not data or not fds:
            return
        problem = unsafe_to_fork()
        if problem is not None:
            os.close(fds[0])
            control.send(msgspec.msgpack.encode({"pid": 0, "error": problem}))
            return
        pid = os.fork()
        if pid == 0:
            control.close()
            _run_child(fds[0])
        os.close(fds[0])
        _report_child(control, pid)


def _report_child(control: socket.socket, pid: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        control.send(msgspec.msgpack.encode({"pid": pid, "error": "the child ended at once"}))
        return
    socket.send_fds(control, [msgspec.msgpack.encode({"pid": pid})], [pidfd])
    os.close(pidfd)


def _run_child(channel_fd: int) -> None:
    """Become a worker or a preparation job; never returns to the fork server's loop."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        from inference_server.worker.process import run

        status = run(socket.socket(fileno=channel_fd))
    except BaseException:
        traceback.print_exc()  # `os._exit` would swallow it
    finally:
        sys.stderr.flush()
        os._exit(status)


def unsafe_to_fork() -> str | None:
    """Why a fork now could give a broken child, or None."""
    num_tasks = len(os.listdir("/proc/self/task"))
    if num_tasks != 1:
        return f"the fork server has {num_tasks} threads, so a fork is not safe"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "CUDA is initialised in the fork server, so no child could use it"
    return None


def _preload() -> str | None:
    """Import what workers need; returns what went wrong, or None."""
    sys.modules[HIDDEN] = None  # type: ignore[assignment]  # to whoever imports it, it is not installed
    try:
        for module in PRELOAD:
            importlib.import_module(module)
    except Exception as error:
        return f"importing {module} failed: {type(error).__name__}: {error}"
    finally:
        _show_hidden()
    early = [module for module in FORBIDDEN if module in sys.modules]
    if early:
        return f"{', '.join(early)} was imported early and may have initialised CUDA"
    gc.collect()
    gc.freeze()  # children never copy these pages just to count references in a collection
    return unsafe_to_fork()


def _show_hidden() -> None:
    """Children may import what was hidden; these look for it once and must look again."""
    del sys.modules[HIDDEN]
    for module, function in HIDDEN_FROM:
        clear = getattr(getattr(sys.modules.get(module), function, None), "cache_clear", None)
        if clear is not None:
            clear()


def _die_with_the_server() -> None:
    """Ask the kernel to kill this process when the server dies, also while it is still importing."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the kernel was asked
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
