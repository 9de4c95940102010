"""The folder of the built-in weightless model: a byte tokenizer, ChatML, and the options its engine reads.

It lets clients, load tests and our own tests run without weights. Nothing here knows how it generates.
"""

from __future__ import annotations

from pathlib import Path

from inference_server.checkpoints.cache import locked, new_folder, write_json
from inference_server.checkpoints.digest import text_key
from inference_server.checkpoints.sources import ScriptedSource

FORMAT_VERSION = 2
NUM_BYTES = 256
SPECIAL_TOKENS = ("<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>")  # ids 256 to 259
BOS_ID, IM_END_ID = 256, 259

_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def write_scripted_folder(source: ScriptedSource, cache_dir: Path) -> Path:
    """Return the folder for these options, written once."""
    key = f"v{FORMAT_VERSION}-{text_key(repr(source.options))}"
    folder = cache_dir / "scripted" / key
    with locked(cache_dir, f"scripted-{key}"):
        if not folder.is_dir():
            with new_folder(folder) as staging:
                _write(staging, source)
    return folder


def _write(folder: Path, source: ScriptedSource) -> None:
    write_json(folder / "config.json", _config(dict(source.options)))
    write_json(
        folder / "tokenizer_config.json",
        {"bos_token": "<|bos|>", "eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast"},
    )
    (folder / "chat_template.jinja").write_text(_CHAT_TEMPLATE)
    (folder / "tokenizer.json").write_text(byte_tokenizer_json())


def _config(options: dict[str, str]) -> dict[str, object]:
    return {
        "model_type": "scripted",
        "architectures": ["ScriptedModel"],
        "max_position_embeddings": 32768,
        "vocab_size": NUM_BYTES + len(SPECIAL_TOKENS),
        "num_hidden_layers": 1,  # it has none; every config must name a number
        "bos_token_id": BOS_ID,
        "eos_token_id": IM_END_ID,
        "is_matryoshka": True,  # what it embeds is noise at any length
        "scripted": options,
    }


def byte_tokenizer_json() -> str:
    """A tokenizer in which token id = byte value, followed by the special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocab = {_printable(byte): byte for byte in range(NUM_BYTES)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return str(tokenizer.to_str())


def _printable(byte: int) -> str:
    """GPT-2's alphabet: printable Latin-1 bytes stand for themselves, others for code points from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in plain:
        return chr(byte)
    return chr(256 + [b for b in range(NUM_BYTES) if b not in plain].index(byte))
