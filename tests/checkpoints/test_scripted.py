from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from inference_server.checkpoints.facts import model_facts, read_config
from inference_server.checkpoints.inspection import inspect_folder
from inference_server.checkpoints.scripted import byte_tokenizer_json, write_scripted_folder
from inference_server.checkpoints.sources import ScriptedSource

TOKENIZER = Tokenizer.from_str(byte_tokenizer_json())


@given(st.text(max_size=50))
def test_a_token_is_a_byte(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    if "<|" not in text:
        assert ids == list(text.encode())
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_special_tokens_follow_the_bytes() -> None:
    assert TOKENIZER.encode("<|bos|><|eos|><|im_start|><|im_end|>").ids == [256, 257, 258, 259]
    assert TOKENIZER.get_vocab_size() == 260


def test_the_folder_describes_a_model(tmp_path: Path) -> None:
    folder = write_scripted_folder(ScriptedSource((("reply", "hi"),)), tmp_path)
    inspect_folder(folder, allow_pickle=False, trust_remote_code=False)
    facts = model_facts(folder)
    assert (facts.model_type, facts.vocab_size, facts.eos_token_ids) == ("scripted", 260, {259})
    assert read_config(folder)["scripted"] == {"reply": "hi"}
    assert "<|im_start|>assistant" in (folder / "chat_template.jinja").read_text()


def test_the_package_is_small_to_import() -> None:
    program = (
        "import sys, inference_server.checkpoints.fetch, inference_server.checkpoints.footprint,"
        " inference_server.checkpoints.inspection\n"
        "heavy = {'torch', 'transformers', 'numpy', 'huggingface_hub', 'gguf'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
