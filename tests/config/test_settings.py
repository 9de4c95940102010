"""Settings: order of sources, strictness, and the rules between them."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference_server.config.setting_keys import SETTINGS, env_name
from inference_server.config.settings import Settings, is_loopback, resolve_settings, resolve_with_origins
from inference_server.errors import ConfigError


def problem(file: dict[str, object] | None = None, env: dict[str, str] | None = None, **flags: object) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve_settings(file or {}, env or {}, flags)
    return caught.value.message


def test_every_field_has_a_key_and_every_key_a_field() -> None:
    assert set(SETTINGS) == set(Settings.__struct_fields__)


def test_every_default_passes_its_own_check() -> None:
    defaults = Settings()
    for name, setting in SETTINGS.items():
        value = getattr(defaults, name)
        if value is not None and value != "":
            assert setting.key.kind.parse(value) == value


def test_without_any_source_all_is_default() -> None:
    assert resolve_settings({}, {}, {}) == Settings()


def test_file_beats_default_environment_beats_file_and_flag_beats_environment() -> None:
    file: dict[str, object] = {"port": 1, "max_num_seqs": 2, "log_level": "debug"}
    env = {"HELIXFLOW_PORT": "3", "HELIXFLOW_MAX_NUM_SEQS": "4"}
    resolved = resolve_with_origins(file, env, {"port": "5", "host": None})
    assert (resolved.settings.port, resolved.settings.max_num_seqs, resolved.settings.log_level) == (
        5,
        4,
        "debug",
    )
    assert resolved.origins == {
        "port": "--port",
        "max_num_seqs": "HELIXFLOW_MAX_NUM_SEQS",
        "log_level": "server section",
    }


def test_text_from_the_environment_becomes_the_right_type() -> None:
    env = {
        "HELIXFLOW_LOG_JSON": "1",
        "HELIXFLOW_ENABLE_PREFIX_CACHING": "false",
        "HELIXFLOW_HOST_MEMORY": "16GiB",
        "HELIXFLOW_GPU_MEMORY_UTILIZATION": "80%",
        "HELIXFLOW_REQUEST_TIMEOUT": "5m",
        "HELIXFLOW_SHUTDOWN_TIMEOUT": "0",
        "HELIXFLOW_MAX_BODY_BYTES": "1MiB",
        "HELIXFLOW_PREFILL_SLOWDOWN": "1.5",
    }
    settings = resolve_settings({}, env, {})
    assert settings.log_json is True
    assert settings.enable_prefix_caching is False
    assert settings.prefill_slowdown == 1.5
    assert settings.host_memory == 16 * 1024**3
    assert settings.gpu_memory_utilization == pytest.approx(0.8)
    assert (settings.request_timeout, settings.shutdown_timeout) == (300.0, 0.0)
    assert settings.max_body_bytes == 1024**2


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_every_setting_has_an_environment_variable(name: str) -> None:
    assert "unknown" not in problem(env={env_name(name): "\n"})  # no setting accepts a line break
    assert env_name(name) in problem(env={env_name(name): "\n"})


def test_an_empty_variable_counts_as_not_set() -> None:
    assert resolve_settings({}, {"HELIXFLOW_PORT": "", "HELIXFLOW_API_KEY": ""}, {}) == Settings()


# ---------------------------------------------------------------- strictness


def test_an_unknown_setting_is_refused_with_its_source_and_the_nearest_key() -> None:
    assert problem({"prot": 1}) == "server section: unknown key `server.prot`; did you mean `port`?"
    assert problem(env={"HELIXFLOW_PROT": "1"}) == (
        "environment: unknown variable HELIXFLOW_PROT; did you mean `HELIXFLOW_PORT`?"
    )
    assert "did you mean `max_num_seqs`?" in problem(max_num_seq="1")


def test_a_wrong_value_is_refused_with_its_source() -> None:
    assert problem({"port": "x"}).startswith(
        "server section: server.port: expected a whole number from 0 to 65535"
    )
    assert problem(env={"HELIXFLOW_PORT": "70000"}).startswith("HELIXFLOW_PORT: expected a whole number")
    assert problem(port="-1").startswith("--port: expected a whole number")


def test_all_wrong_settings_are_told_at_once() -> None:
    assert len(problem({"port": "x"}, {"HELIXFLOW_LOG_LEVEL": "loud"}, max_num_seqs="0").splitlines()) == 3


@pytest.mark.parametrize("name", ["api_key"])
def test_a_secret_appears_in_no_message(name: str) -> None:
    message = problem(**{name: "hunter2 with blanks"})
    assert "hunter2" not in message
    assert "not shown" in message


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("gpu_memory_utilization", "`memory.gpu`"),
        ("host_memory", "`memory.host`"),
        ("dtype", "`defaults:`"),
        ("config", "command line"),
        ("trust_remote_code", "at the model"),
    ],
)
def test_a_setting_with_another_place_in_the_file_is_refused_in_the_server_section(
    name: str, hint: str
) -> None:
    assert hint in problem({name: "1"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("request_timeout", "-1"),
        ("request_timeout", "0"),
        ("hang_timeout", "nan"),
        ("max_body_bytes", "10"),
        ("root_path", "llm"),
        ("root_path", "/a/../b"),
        ("log_level", "INFO!"),
        ("host", "a b"),
        ("gpu_memory_utilization", "1.5"),
        ("quantization", "q4"),
        ("device", "gpu"),
        ("insecure_no_auth", "perhaps"),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: str) -> None:
    assert problem(**{name: value}).startswith(f"--{name.replace('_', '-')}: ")


# ---------------------------------------------------------------- environments of others


def test_variables_that_kubernetes_sets_for_a_service_named_helixflow_are_ignored() -> None:
    env = {
        "HELIXFLOW_SERVICE_HOST": "10.0.0.1",
        "HELIXFLOW_SERVICE_PORT": "8000",
        "HELIXFLOW_SERVICE_PORT_HTTP": "8000",
        "HELIXFLOW_PORT": "tcp://10.0.0.1:8000",
        "HELIXFLOW_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "HELIXFLOW_PORT_8000_TCP_ADDR": "10.0.0.1",
        "HELIXFLOW_GATEWAY_SERVICE_HOST": "10.0.0.2",
        "HELIXFLOW_GATEWAY_PORT": "tcp://10.0.0.2:80",
        "HELIXFLOW_BASE_URL": "http://10.0.0.1:8000",
        "PATH": "/bin",
    }
    assert resolve_settings({}, env, {}) == Settings()


def test_the_cache_folder_can_be_named_in_two_ways_and_the_long_one_wins() -> None:
    assert resolve_settings({}, {"HELIXFLOW_CACHE": "/a"}, {}).cache_dir == "/a"
    assert resolve_settings({}, {"HELIXFLOW_CACHE": "/a", "HELIXFLOW_CACHE_DIR": "/b"}, {}).cache_dir == "/b"
    assert resolve_settings({}, {}, {"cache_dir": "~/x"}).cache_dir == str(Path.home() / "x")
    assert Settings().cache_dir == str(Path.home() / ".cache" / "helixflow")


# ---------------------------------------------------------------- rules


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_loopback_addresses_need_no_key(host: str) -> None:
    assert is_loopback(host)
    assert resolve_settings({}, {}, {"host": host}).host == host


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.4", "example.org", "localhost.example.org", "0"]
)
def test_other_addresses_need_a_key_or_an_explicit_waiver(host: str) -> None:
    assert "refusing to listen on" in problem(host=host)
    assert resolve_settings({}, {"HELIXFLOW_API_KEY": "k"}, {"host": host}).api_key == "k"
    assert resolve_settings({}, {}, {"host": host, "insecure_no_auth": True}).insecure_no_auth


def test_a_key_and_its_waiver_contradict_each_other() -> None:
    message = problem(env={"HELIXFLOW_API_KEY": "k"}, insecure_no_auth=True)
    assert message.startswith("--insecure-no-auth: contradicts the API key from HELIXFLOW_API_KEY")


def test_a_second_key_is_of_use_beside_any_first_one_only() -> None:
    env = {"HELIXFLOW_INFERENCE_API_KEY": "i"}
    assert "of no use alone" in problem(env=env)
    assert resolve_settings({}, env, {"api_key_file": "keys.yaml"}).inference_api_key == "i"
    assert resolve_settings({}, env, {"api_key": "k"}).inference_api_key == "i"


def test_the_grace_is_part_of_the_time_to_shut_down() -> None:
    message = problem(shutdown_timeout="2s", shutdown_grace="3s")
    assert message.startswith("--shutdown-grace: shutdown_grace (3 s) is part of shutdown_timeout (2 s)")
    assert "must not be longer" in problem({"shutdown_timeout": "0"}, {"HELIXFLOW_SHUTDOWN_GRACE": "1s"})
    assert resolve_settings({}, {}, {"shutdown_grace": "30s"}).shutdown_grace == 30.0


def test_tls_needs_key_and_certificate() -> None:
    assert "--ssl-certfile" in problem(ssl_keyfile="k.pem")
    assert "--ssl-keyfile" in problem(ssl_certfile="c.pem")


@pytest.mark.parametrize(("name", "value"), [("served_model_name", "x"), ("trust_remote_code", True)])
def test_settings_about_one_model_need_a_model(name: str, value: object) -> None:
    assert "helixflow serve MODEL" in problem(**{name: value})
    assert getattr(resolve_settings({}, {}, {name: value, "model": "a/b"}), name) == value


def test_each_running_sequence_needs_a_token_per_step() -> None:
    assert "must be at least max_num_seqs (1024)" in problem(max_num_seqs="1024")
