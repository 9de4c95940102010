"""models.yaml, environment and flags together."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference_server.config.configuration import Configuration, check_certificate, load_configuration
from inference_server.config.settings import Settings
from inference_server.errors import ConfigError
from tests.server.certificates import make_certificate

TEXT = """
memory: {gpu: 80%}
defaults: {keep_alive: 10m}
models:
  small: {source: org/small, aliases: [tiny], preload: true}
  large: {source: org/large, dtype: float16, preload: true}
server:
  port: 9000
  max_num_seqs: 8
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models.yaml").write_text(TEXT)
    return tmp_path


def load(folder: Path, env: dict[str, str] | None = None, **flags: object) -> Configuration:
    return load_configuration(env=env or {}, flags=flags, folder=folder)


def test_the_file_in_the_folder_is_read(folder: Path) -> None:
    found = load(folder)
    assert found.settings.config == str(folder / "models.yaml")
    assert (found.settings.port, found.settings.max_num_seqs) == (9000, 8)
    assert set(found.catalog.models) == {"small", "large"}
    assert found.settings_origins == {"port": "models.yaml, line 8", "max_num_seqs": "models.yaml, line 9"}
    assert found.memory_origins == {"gpu": "models.yaml, line 2"}


def test_without_a_file_there_are_no_models(tmp_path: Path) -> None:
    found = load(tmp_path)
    assert found.settings == Settings()
    assert found.catalog.models == {}


def test_a_file_that_is_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--config: no such file"):
        load(tmp_path, config="other.yaml")
    with pytest.raises(ConfigError, match="HELIXFLOW_CONFIG: no such file"):
        load(tmp_path, {"HELIXFLOW_CONFIG": "other.yaml"})


def test_the_flag_names_the_file_before_the_environment_does(folder: Path) -> None:
    (folder / "other.yaml").write_text("models: {other: {source: a/b}}")
    found = load(folder, {"HELIXFLOW_CONFIG": "models.yaml"}, config="other.yaml")
    assert set(found.catalog.models) == {"other"}


def test_a_wrong_server_section_is_refused_with_its_line(folder: Path) -> None:
    (folder / "models.yaml").write_text("models: {}\nserver:\n  prot: 1\n")
    with pytest.raises(ConfigError, match=r"models.yaml, line 3: unknown key `server.prot`"):
        load(folder)
    (folder / "models.yaml").write_text("server: 5")
    with pytest.raises(ConfigError, match="server: expected"):
        load(folder)


def test_memory_settings_and_the_memory_section_are_the_same_setting(folder: Path) -> None:
    found = load(folder, {"HELIXFLOW_HOST_MEMORY": "1GiB"}, gpu_memory_utilization="0.5")
    assert found.catalog.memory.gpu_fraction == 0.5
    assert found.catalog.memory.host_bytes == 1024**3
    assert found.memory_origins == {"gpu": "--gpu-memory-utilization", "host": "HELIXFLOW_HOST_MEMORY"}


def test_without_a_model_model_settings_change_every_model(folder: Path) -> None:
    found = load(folder, dtype="float32")
    assert {spec.dtype for spec in found.catalog.models.values()} == {"float32"}
    assert found.model_origins["large"]["dtype"] == "--dtype"


def test_with_a_model_they_change_that_model_only(folder: Path) -> None:
    found = load(folder, model="tiny", dtype="bfloat16", trust_remote_code=True)
    models = found.catalog.models
    assert (models["small"].dtype, models["large"].dtype) == ("bfloat16", "float16")
    assert (models["small"].trust_remote_code, models["large"].trust_remote_code) == (True, False)
    assert found.model_origins["small"]["dtype"] == "--dtype"
    assert found.model_origins["large"]["dtype"] == "models.yaml, line 6"


def test_model_settings_do_not_stay_in_the_settings_where_they_would_reach_other_models(folder: Path) -> None:
    settings = load(folder, model="small", dtype="float32", device="cpu", trust_remote_code=True).settings
    assert (settings.dtype, settings.device, settings.trust_remote_code) == (None, None, False)


def test_with_a_model_only_that_one_is_preloaded(folder: Path) -> None:
    models = load(folder, model="small").catalog.models
    assert {name for name, spec in models.items() if spec.preload} == {"small"}
    assert load(folder, model="small").model_origins["large"]["preload"] == "MODEL"


def test_a_source_without_an_entry_makes_a_temporary_model(folder: Path) -> None:
    found = load(folder, model="acme/Other-Model", max_model_len="512")
    spec = found.catalog.models["other-model"]
    assert (spec.source, spec.preload, spec.max_model_len) == ("acme/Other-Model", True, 512)
    assert found.catalog.resolve("acme/Other-Model") is spec
    assert found.model_origins["other-model"] == {
        "source": "MODEL",
        "preload": "MODEL",
        "max_model_len": "--max-model-len",
    }


def test_the_source_of_an_entry_finds_the_entry(folder: Path) -> None:
    found = load(folder, model="org/large")
    assert set(found.catalog.models) == {"small", "large"}
    assert found.catalog.models["large"].preload


def test_a_relative_folder_becomes_absolute(tmp_path: Path) -> None:
    spec = load(tmp_path, model="./My-Model").catalog.models["my-model"]
    assert spec.source == str(tmp_path / "My-Model")


def test_a_temporary_model_may_take_the_place_of_an_entry_with_its_name(folder: Path) -> None:
    found = load(folder, model="else/small")
    assert found.catalog.models["small"].source == "else/small"
    assert found.model_origins["small"]["source"] == "MODEL"


def test_a_name_that_is_neither_entry_nor_source_is_refused_with_the_nearest_name(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"MODEL: The model 'smal' does not exist; did you mean 'small'\?"):
        load(folder, model="smal")


def test_a_served_name_replaces_the_name_and_keeps_the_old_ones(folder: Path) -> None:
    found = load(folder, model="small", served_model_name="gpt-4")
    spec = found.catalog.models["gpt-4"]
    assert spec.aliases == ("small", "tiny")
    assert "small" not in found.catalog.models
    assert found.model_origins["gpt-4"]["name"] == "--served-model-name"
    assert found.model_origins["gpt-4"]["source"] == "models.yaml, line 5"


def test_a_served_name_cannot_be_that_of_another_model(folder: Path) -> None:
    with pytest.raises(ConfigError, match="'large' belongs to another model"):
        load(folder, model="small", served_model_name="large")


def test_tls_files_must_exist(folder: Path) -> None:
    (folder / "key.pem").write_text("")
    with pytest.raises(ConfigError, match=r"--ssl-certfile: no such file: cert.pem"):
        load(folder, ssl_keyfile="key.pem", ssl_certfile="cert.pem")


def test_a_certificate_and_its_key_are_looked_into(folder: Path) -> None:
    make_certificate(folder)
    (folder / "other").mkdir()
    make_certificate(folder / "other")
    check_certificate(load(folder, ssl_keyfile="tls.key", ssl_certfile="tls.crt"), folder)
    check_certificate(load(folder), folder)
    (folder / "no.pem").write_text("no certificate")
    pairs = (("no.pem", "tls.key"), ("tls.crt", "no.pem"), ("tls.crt", "other/tls.key"))
    for certificate, key in pairs:
        found = load(folder, ssl_keyfile=key, ssl_certfile=certificate)  # enough for who serves nothing
        with pytest.raises(ConfigError, match=r"--ssl-certfile: .* are not a certificate chain"):
            check_certificate(found, folder)
