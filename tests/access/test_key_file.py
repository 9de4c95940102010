"""Key files: read whole or refused, with a message that shows no key."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference_server.access.configured import configured_keys
from inference_server.access.gate import Gate
from inference_server.access.key_file import read_key_file
from inference_server.access.keys import Key, digest_of
from inference_server.config.catalog import Catalog, ModelSpec
from inference_server.config.settings import Settings
from inference_server.errors import ConfigError

SECRET = "sk-0123456789abcdef"
NONE = Catalog(models={})


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "keys.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_an_entry_has_all_that_it_says(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        f"keys:\n- {{name: alice, key: {SECRET}, requests_per_minute: 60, models: [a]}}\n"
        f"- {{name: root, sha256: {digest_of(b'x').hex()}, scopes: [inference, admin]}}\n",
    )
    alice, root = read_key_file(path)
    assert alice.digest == digest_of(SECRET.encode())
    assert (alice.requests_per_minute, alice.may_administer) == (60, False)
    assert (alice.may_ask("a"), alice.may_ask("b"), root.may_ask("b")) == (True, False, True)
    assert (root.digest, root.may_administer) == (digest_of(b"x"), True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("keys: []", "length >= 1"),
        (f"keys: [{{name: a, key: {SECRET}, sha256: {'a' * 64}}}]", "either key or sha256"),
        ("keys: [{name: a}]", "either key or sha256"),
        ("keys: [{name: a, key: short}]", "length >= 16"),
        (f"keys: [{{name: 'a b', key: {SECRET}}}]", "matching regex"),
        (f"keys: [{{name: a, key: {SECRET}, scopes: [root]}}]", "scopes"),
        (f"keys: [{{name: a, key: {SECRET}, rpm: 3}}]", "unknown field"),
        (f"keys: [{{name: a, key: {SECRET}, requests_per_minute: 0}}]", "requests_per_minute"),
        (f"keys: [{{name: a, key: {SECRET}}}, {{name: a, key: {SECRET}2}}]", "name 'a'"),
        (f"keys: [{{name: a, key: {SECRET}}}, {{name: b, key: {SECRET}}}]", "same key"),
        ("keys: [", "not valid YAML"),
        ("[]", "wrong"),
    ],
)
def test_what_is_wrong_is_said_without_showing_a_key(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_key_file(write(tmp_path, text))
    assert words in refused.value.message
    assert SECRET not in refused.value.message
    assert str(tmp_path) not in refused.value.message


def test_keys_of_the_settings_and_of_the_file_must_differ(tmp_path: Path) -> None:
    path = write(tmp_path, f"keys: [{{name: a, key: {SECRET}}}]")
    both = Settings(api_key="main-key", inference_api_key="second", api_key_file=str(path))
    assert [key.name for key in configured_keys(both, NONE)] == ["api_key", "inference_api_key", "a"]
    with pytest.raises(ConfigError, match="settings have, too"):
        configured_keys(Settings(api_key=SECRET, api_key_file=str(path)), NONE)
    with pytest.raises(ConfigError, match="another name"):
        configured_keys(
            Settings(
                api_key="x", api_key_file=str(write(tmp_path, f"keys: [{{name: api_key, key: {SECRET}}}]"))
            ),
            NONE,
        )
    with pytest.raises(ConfigError, match="cannot be read"):
        configured_keys(Settings(api_key_file=str(tmp_path / "absent")), NONE)


def test_a_list_of_models_may_have_aliases_and_what_is_no_model_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = ModelSpec(name="small", source="scripted", aliases=("gpt-4",))
    large = ModelSpec(name="large", source="scripted")
    text = f"keys: [{{name: a, key: {SECRET}, models: [gpt-4, larje]}}, {{name: b, key: {SECRET}2}}]"
    settings = Settings(api_key_file=str(write(tmp_path, text)))
    alice, bob = configured_keys(settings, Catalog(models={"small": small, "large": large}))
    assert (alice.may_ask("small"), alice.may_ask("large"), bob.may_ask("large")) == (True, False, True)
    assert "the key a lists models that are not configured: larje" in caplog.text
    assert len(caplog.records) == 1


def test_a_key_that_stays_keeps_what_it_has_used(tmp_path: Path) -> None:
    key = Key("a", digest_of(b"a"), requests_per_minute=1)
    gate = Gate([key], clock=lambda: 0.0)
    caller = gate.caller(b"a")
    assert caller is not None
    with caller.admitted():
        pass
    gate.replace([key, Key("b", digest_of(b"b"))])
    again = gate.caller(b"a")
    assert again is not None
    assert dict(again.headers())[b"x-ratelimit-remaining-requests"] == b"0"
    gate.replace([Key("a", digest_of(b"a"), requests_per_minute=2)])
    changed = gate.caller(b"a")
    assert changed is not None
    assert dict(changed.headers())[b"x-ratelimit-remaining-requests"] == b"2"
