"""Children come up, fail to, and leave; the fork server is replaced when it dies."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import pytest

from inference_server import errors
from inference_server.worker import protocol
from inference_server.worker.channel import encode
from inference_server.worker.launcher import ForkServer
from tests.worker.children import (
    fork_server,
    ignore_progress,
    is_alive,
    launcher_of,
    load_message,
    request,
    run,
    text_of,
    turns_later,
    until,
)


def children_of(pid: int | None) -> list[int]:
    """Live child processes."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [child for child in map(int, path.read_text(encoding="ascii").split()) if is_alive(child)]


def prepare_message(cache: Path, source: str) -> protocol.Prepare:
    return protocol.Prepare(source=source, revision=None, sha256=None, cache_dir=str(cache))


async def no_child_is_left(server: ForkServer) -> None:
    await until(lambda: children_of(server.pid) == [])


# ---------------------------------------------------------------- loading


def test_a_load_reports_its_progress(tmp_path: Path) -> None:
    async def check() -> None:
        async with fork_server() as server:
            seen: list[protocol.Progress] = []
            message = load_message(tmp_path, "load_ms=700")
            worker = await launcher_of(server).launch(message, seen.append)
            assert {progress.stage for progress in seen} == {"load"}
            assert len(seen) >= 2
            assert worker.ready.load_seconds >= 0.7
            await worker.stop()

    run(check())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("load_error=oom", errors.InsufficientMemory),
        ("load_error=failed", errors.ModelLoadFailed),
        ("unheard_of=1", errors.ModelLoadFailed),
    ],
)
def test_a_load_that_fails_says_why_and_leaves_no_process(
    tmp_path: Path, options: str, error: type[errors.HelixFlowError]
) -> None:
    async def check() -> None:
        async with fork_server() as server:
            with pytest.raises(error, match="scripted"):
                await launcher_of(server).launch(load_message(tmp_path, options), ignore_progress)
            await no_child_is_left(server)

    run(check())


def test_a_foreign_exception_is_named_without_its_text(tmp_path: Path) -> None:
    async def check() -> None:
        message = load_message(tmp_path)
        (Path(message.folder) / "config.json").write_text("{ no json, but a secret")
        async with fork_server() as server:
            with pytest.raises(errors.ModelLoadFailed) as caught:
                await launcher_of(server).launch(message, ignore_progress)
            assert "JSONDecodeError" in caught.value.message
            assert "secret" not in caught.value.message

    run(check())


def test_a_child_killed_while_loading_is_a_failed_load(tmp_path: Path) -> None:
    async def check() -> None:
        async with fork_server() as server:
            message = load_message(tmp_path, "load_ms=60000")
            loading = asyncio.create_task(launcher_of(server).launch(message, ignore_progress))
            await until(lambda: server.pid is not None and children_of(server.pid) != [])
            os.kill(children_of(server.pid)[0], signal.SIGKILL)
            with pytest.raises(errors.ModelLoadFailed, match="while loading"):
                await loading
            await no_child_is_left(server)

    run(check())


def test_a_load_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    async def check() -> None:
        async with fork_server() as server:
            launcher = launcher_of(server, load_timeout_s=0.3)
            with pytest.raises(errors.ModelLoadFailed, match="not loaded within"):
                await launcher.launch(load_message(tmp_path, "load_ms=60000"), ignore_progress)
            await no_child_is_left(server)

    run(check())


def test_a_cancelled_load_leaves_no_process(tmp_path: Path) -> None:
    async def check() -> None:
        async with fork_server() as server:
            message = load_message(tmp_path, "load_ms=60000")
            loading = asyncio.create_task(launcher_of(server).launch(message, ignore_progress))
            await until(lambda: server.pid is not None and children_of(server.pid) != [])
            loading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await loading
            await no_child_is_left(server)

    run(check())


@pytest.mark.parametrize("num_turns", range(4))
def test_a_load_that_is_cancelled_as_the_fork_server_becomes_ready_is_cancelled(
    tmp_path: Path, num_turns: int
) -> None:
    async def check() -> None:
        async with fork_server() as server:
            server.start()
            assert server._report is not None
            launch = asyncio.create_task(launcher_of(server).launch(load_message(tmp_path), ignore_progress))
            server._report.add_done_callback(lambda _: turns_later(num_turns, launch.cancel))
            with pytest.raises(asyncio.CancelledError):
                await launch
            await no_child_is_left(server)

    run(check())


# ---------------------------------------------------------------- preparing


def test_a_scripted_source_is_prepared(tmp_path: Path) -> None:
    async def check() -> None:
        async with fork_server() as server:
            message = prepare_message(tmp_path, "scripted:?reply=hi")
            prepared = await launcher_of(server).prepare(message, ignore_progress)
            assert (Path(prepared.folder) / "tokenizer.json").is_file()
            assert (Path(prepared.folder) / "config.json").is_file()
            await no_child_is_left(server)

    run(check())


def test_a_source_that_is_not_there_is_a_failed_fetch(tmp_path: Path) -> None:
    async def check() -> None:
        async with fork_server() as server:
            with pytest.raises(errors.FetchFailed):
                await launcher_of(server).prepare(
                    prepare_message(tmp_path, str(tmp_path / "nothing.gguf")), ignore_progress
                )

    run(check())


def test_a_folder_that_would_run_code_is_refused_as_a_matter_of_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "x", "auto_map": {"AutoModel": "code.Model"}}')
    (tmp_path / "tokenizer.json").write_text("{}")

    async def check() -> None:
        async with fork_server() as server:
            with pytest.raises(errors.ConfigError, match="trust_remote_code"):
                await launcher_of(server).prepare(
                    prepare_message(tmp_path / "cache", str(tmp_path)), ignore_progress
                )

    run(check())


# ---------------------------------------------------------------- the fork server


def test_a_fork_server_that_was_killed_is_replaced_and_its_workers_live_on(tmp_path: Path) -> None:
    async def check() -> None:
        async with fork_server() as server:
            launcher = launcher_of(server)
            first = await launcher.launch(load_message(tmp_path), ignore_progress)
            old_pid = server.pid
            assert old_pid is not None
            os.kill(old_pid, signal.SIGKILL)
            await until(lambda: server.pid != old_pid)
            assert len(await text_of(first, request("a", 3))) == 3
            second = await launcher.launch(load_message(tmp_path), ignore_progress)
            assert server.pid != old_pid
            assert len(await text_of(second, request("b", 3))) == 3
            for worker in (first, second):
                await worker.stop()

    run(check())


def test_a_fork_server_that_dies_while_it_starts_fails_the_load_and_the_next_one_works(
    tmp_path: Path,
) -> None:
    async def check() -> None:
        async with fork_server() as server:
            launcher = launcher_of(server)
            server.start()
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            with pytest.raises(errors.ModelLoadFailed, match="fork server"):
                await launcher.launch(load_message(tmp_path), ignore_progress)
            worker = await launcher.launch(load_message(tmp_path), ignore_progress)
            await worker.stop()

    run(check())


def test_stopping_the_fork_server_ends_it(tmp_path: Path) -> None:
    async def check() -> None:
        server = ForkServer(preload_torch=False)
        server.start()
        pid = server.pid
        assert pid is not None
        await server.stop()
        assert not is_alive(pid)
        assert server.pid is None

    run(check())


def test_one_fork_server_brings_up_several_workers_at_once(tmp_path: Path) -> None:
    async def check() -> None:
        async with fork_server() as server:
            launcher = launcher_of(server)
            workers = await asyncio.gather(
                *(launcher.launch(load_message(tmp_path), ignore_progress) for _ in range(3))
            )
            assert len({worker.pid for worker in workers}) == 3
            await asyncio.gather(*(worker.stop() for worker in workers))

    run(check())


# ---------------------------------------------------------------- a child alone


def leave_after(sent: bytes, tmp_path: Path) -> None:
    async def check() -> None:
        async with fork_server() as server:
            pid, pidfd, sock = await server.fork()
            os.close(pidfd)
            sock.setblocking(True)
            sock.sendall(sent)
            if sent:
                await asyncio.to_thread(sock.recv, 1)  # it is at work
            assert is_alive(pid)
            sock.shutdown(socket.SHUT_RDWR)
            sock.close()
            await until(lambda: not is_alive(pid))

    run(check())


def test_a_child_without_work_leaves_when_its_channel_closes(tmp_path: Path) -> None:
    leave_after(b"", tmp_path)


def test_a_child_that_is_loading_leaves_when_its_channel_closes(tmp_path: Path) -> None:
    leave_after(encode(load_message(tmp_path, "load_ms=600000")), tmp_path)


def test_a_child_inside_a_step_leaves_when_its_channel_closes(tmp_path: Path) -> None:
    submit = protocol.Submit(request=request())
    load = encode(load_message(tmp_path, "hang_step=1"))

    async def check() -> None:
        async with fork_server() as server:
            pid, pidfd, sock = await server.fork()
            os.close(pidfd)
            sock.setblocking(True)
            sock.sendall(load)
            await asyncio.to_thread(sock.recv, 4096)  # it is ready, or nearly so
            sock.sendall(encode(submit))
            await asyncio.sleep(0.1)
            assert is_alive(pid)
            sock.close()
            await until(lambda: not is_alive(pid))

    run(check())


def test_a_first_message_that_comes_in_pieces_is_understood(tmp_path: Path) -> None:
    frame = encode(load_message(tmp_path))

    async def check() -> None:
        async with fork_server() as server:
            _, pidfd, sock = await server.fork()
            os.close(pidfd)
            with sock:
                sock.setblocking(True)
                for part in (frame[:3], frame[3:40], frame[40:]):
                    sock.sendall(part)
                    await asyncio.sleep(0.05)
                assert b"Ready" in await asyncio.to_thread(sock.recv, 4096)

    run(check())


def test_a_child_that_ends_by_a_bug_writes_a_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    async def check() -> None:
        async with fork_server() as server:
            pid, pidfd, sock = await server.fork()
            os.close(pidfd)
            with sock:
                sock.sendall((3).to_bytes(4, "little") + b"\xc1\xc1\xc1")
                await until(lambda: not is_alive(pid))

    run(check())
    assert "Traceback" in capfd.readouterr().err
