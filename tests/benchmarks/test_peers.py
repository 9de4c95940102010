"""The peers' runner as a whole, with scripted models in HelixFlow's rows, and its parts that make peers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize

from benchmarks.peers.__main__ import main
from benchmarks.peers.helixflow import helixflow_servers
from benchmarks.peers.requantize import write_q4_0
from benchmarks.peers.rounds import Plan, run_rounds
from benchmarks.peers.servers import Server, Started
from benchmarks.peers.workshop import REPOSITORY, Workshop
from inference_server.config.catalog import load_catalog

SMALL = ("--levels", "1", "2", "--requests-per-stream", "1", "--min-requests", "2", "--warmup-requests", "1")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A table of two configurations with scripted models."""
    for name in ("a", "b"):
        model = {"source": "scripted:?output_tokens=64", "preload": True, "max_model_len": 4096}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"models": {name: model}}))
    entries = [
        {"key": name, "name": name.upper(), "weights": "none", "config": f"{name}.yaml"} for name in "ab"
    ]
    file = tmp_path / "rows.yaml"
    file.write_text(yaml.safe_dump(entries))
    return file


def test_rounds_interleave_the_servers_and_everything_is_kept(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.json"
    arguments = [*SMALL, "--rows", str(rows), "--servers", "a", "b", "--rounds", "2"]
    assert main([*arguments, "--save-result", str(file), "--cache-dir", str(tmp_path / "cache")]) == 0
    table = capsys.readouterr().out
    assert (tmp_path / "result.md").read_text() == table
    assert "| A | none |" in table
    result = json.loads(file.read_text())
    assert [(run["key"], run["round"]) for run in result["runs"]] == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    for run in result["runs"]:
        assert run["first_answer_s"] > 0
        for level in ("1", "2"):
            assert run["levels"][level]["total_output_tokens"] == 2 * 64
    assert result["machine"]["cores"] >= 1


def test_a_server_that_does_not_come_up_is_a_failed_run_and_the_others_go_on() -> None:
    def broken(port: int) -> Started:
        return Started(("sh", "-c", "echo no luck; exit 3"), f"http://127.0.0.1:{port}", "m")

    server = Server("x", "X", "none", lambda workshop: broken)
    said: list[str] = []
    first, second = run_rounds([(server, broken), (server, broken)], Plan(), 1, said.append)
    assert first.error is not None
    assert "status 3" in first.error
    assert "no luck" in first.error
    assert not first.is_good
    assert second.key == "x"


def test_an_unknown_server_is_refused_with_those_that_are_known(rows: Path) -> None:
    with pytest.raises(SystemExit, match=r"no server vlm; known are: a, b, llama\.cpp, transformers, vllm"):
        main(["--rows", str(rows), "--servers", "vlm"])


def test_the_repositorys_rows_serve_the_weights_that_its_models_yaml_names() -> None:
    assert [server.key for server in helixflow_servers()] == ["helixflow", "helixflow-bf16"]
    plain = load_catalog(REPOSITORY / "models.yaml")
    unquantized = load_catalog(REPOSITORY / "benchmarks" / "peers" / "configs" / "bfloat16.yaml")
    [(name, model)] = unquantized.models.items()
    assert (model.source, model.sha256) == (plain.models[name].source, plain.models[name].sha256)
    assert (model.dtype, model.quantization) == ("bfloat16", "none")


def test_an_environment_is_made_once_and_again_when_its_requirements_change(tmp_path: Path) -> None:
    said: list[str] = []
    workshop = Workshop(tmp_path, REPOSITORY / "models.yaml", 1, said.append)
    finished: list[Path] = []
    folder = workshop.environment("p", ("pip",), finished.append)
    assert (folder / "bin" / "python").exists()
    assert workshop.environment("p", ("pip",), finished.append) == folder
    assert (len(said), finished) == (1, [folder])


def test_a_q4_0_copy_keeps_fields_and_shapes_and_stays_close_to_its_source(tmp_path: Path) -> None:
    source, target = tmp_path / "in.gguf", tmp_path / "out.gguf"
    weights = np.random.default_rng(0).standard_normal((8, 64), dtype=np.float32)
    writer = GGUFWriter(source, "llama")
    writer.add_string("general.name", "tiny")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_tensor("w", quantize(weights, GGMLQuantizationType.Q4_1), raw_dtype=GGMLQuantizationType.Q4_1)
    writer.add_tensor("n", weights[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    write_q4_0(source, target)
    reader = GGUFReader(target)
    assert reader.get_field("general.name").contents() == "tiny"
    assert reader.get_field("tokenizer.ggml.tokens").contents() == ["a", "b"]
    quantized, plain = reader.tensors
    assert (quantized.tensor_type, list(quantized.shape)) == (GGMLQuantizationType.Q4_0, [64, 8])
    found = dequantize(quantized.data, quantized.tensor_type).reshape(8, 64)
    assert np.abs(found - weights).max() < 0.5
    assert np.array_equal(plain.data, weights[0])
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
