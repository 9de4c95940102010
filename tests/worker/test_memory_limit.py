"""The cap on a worker's main memory: what is beyond it fails, and the process lives on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from inference_server import errors
from inference_server.config.catalog import ModelSpec
from inference_server.config.settings import Settings
from inference_server.model_manager.devices import cpu_flags
from inference_server.model_manager.plan import plan_model
from inference_server.worker.launcher import ForkServer
from tests.demo import demo_folder
from tests.worker.children import ignore_progress, launcher_of, run

MIB = 1 << 20
SCRIPT = """
import numpy
from inference_server.engine.memory_errors import is_out_of_memory
from inference_server.worker.memory_limit import limit_memory
limit_memory(64 << 20)
numpy.empty(48 << 20, dtype=numpy.uint8)
try:
    numpy.empty(80 << 20, dtype=numpy.uint8)
except Exception as error:
    assert is_out_of_memory(error)
    numpy.empty(48 << 20, dtype=numpy.uint8)
    print("lives on")
"""


def test_memory_beyond_the_limit_is_refused_and_what_is_within_it_is_not() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.stdout == "lives on\n", done.stderr


def test_the_limit_counts_from_what_the_process_has_already(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("VmPeak:\t 9 kB\nVmData:\t   2048 kB\n", encoding="ascii")
    script = (
        "import resource, sys, pathlib\n"
        "from inference_server.worker.memory_limit import limit_memory\n"
        "limit_memory(1 << 40, pathlib.Path(sys.argv[1]))\n"
        "print(resource.getrlimit(resource.RLIMIT_DATA)[0])\n"
    )
    command = [sys.executable, "-c", script, str(status)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) == (1 << 40) + 2 * MIB


@pytest.mark.model
def test_a_model_that_wants_more_fails_to_load_for_want_of_memory_and_one_within_it_loads() -> None:
    spec = ModelSpec(name="m", source="m", max_model_len=256)
    plan = plan_model(spec, demo_folder(), Settings(), {"cpu": 1 << 40}, cpu_flags())

    async def check() -> None:
        server = ForkServer(preload_torch=True)
        launcher = launcher_of(server)
        try:
            narrow = msgspec.structs.replace(plan.load, host_memory_limit=64 * MIB)
            with pytest.raises(errors.InsufficientMemory):
                await launcher.launch(narrow, ignore_progress)
            wide = msgspec.structs.replace(plan.load, host_memory_limit=4096 * MIB)
            worker = await launcher.launch(wide, ignore_progress)
            await worker.stop()
        finally:
            await server.stop()

    run(check())
