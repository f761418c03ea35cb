"""Train a tokenizer on text, and load one. Needs ``tokenizers`` only."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from slipway.configs import Refusal
from slipway.configs.files import parse_json
from slipway.launch.data.documents import Format, find
from slipway.launch.data.reading import texts

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"
SMALLEST_VOCABULARY = 258  # every byte, and the two special tokens
# Names of the end-of-document token in published tokenizers, where tokenizer_config.json does not say
USUAL_ENDS = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>")


def train_tokenizer(
    inputs: Iterable[str],
    out: Path,
    vocab_size: int,
    *,
    pattern: str = "*",
    format: Format | None = None,
    field: str = "text",
    skip_bad: bool = False,
) -> int:
    """Train a byte-level BPE (arXiv:1508.07909) and write it as Hugging Face tokenizers and transformers read it.

    Args:
        inputs: files of text, .jsonl, parquet or arrow, or folders of them.
        format: of every file; guessed if not given.
        field: of the text, in a line or a table.
        out: the folder to write; it appears complete, or not at all.
        vocab_size: number of ids, the special tokens included.
        skip_bad: leave out documents that are not text instead of refusing them.

    Returns:
        The number of ids, which is below ``vocab_size`` where the text is too small for more.

    Raises:
        Refusal: a vocabulary that is too small, a folder that holds a tokenizer already, or inputs that cannot be read.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise Refusal(
            f"a byte-level vocabulary of {vocab_size} cannot hold the 256 bytes", "Use --vocab-size 512 or more."
        )
    if (out / "tokenizer.json").exists():
        raise Refusal(f"{out} already holds a tokenizer", "Give another --out, or remove it.")
    tokenizer = _trained(texts(find(inputs, pattern, format, field).sources, field, skip_bad), vocab_size)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    require_writable(partial)
    tokenizer.save(str(partial / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "pad_token": PADDING,
        "model_max_length": 1 << 20,
    }
    (partial / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    if out.exists():
        out.rmdir()
    partial.replace(out)
    return int(tokenizer.get_vocab_size())


def _trained(texts: Iterator[str], vocab_size: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def require_writable(folder: Path) -> None:
    """Make ``folder``, or refuse to write there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(f"{folder} cannot be made: {error.strerror}", "Give an --out that you may write to.") from None


def tokenizer_file(path: str) -> Path:
    """The tokenizer.json of a folder, or the file itself."""
    return Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)


def load_tokenizer(path: str) -> tuple[Any, int]:
    """The tokenizer of a folder or of a tokenizer.json, and the id of its end-of-document token.

    Raises:
        Refusal: there is no tokenizer, or its end-of-document token is unknown.
    """
    from tokenizers import Tokenizer

    file = tokenizer_file(path)
    if not file.is_file():
        raise Refusal(
            f"there is no tokenizer at {path}", "Train one with: slipway data tokenizer FILES... --out FOLDER"
        )
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust library raises this class itself
        raise Refusal(
            f"{file} is not a tokenizer: {error}", "Give the folder of a tokenizer that transformers saved."
        ) from None
    settings = file.with_name("tokenizer_config.json")
    names: list[Any] = list(USUAL_ENDS)
    if settings.is_file():
        end = parse_json(settings, "the settings of a tokenizer").get("eos_token")
        names.insert(0, end.get("content") if isinstance(end, dict) else end)
    for name in names:
        token = tokenizer.token_to_id(name) if name and isinstance(name, str) else None
        if token is not None:
            return tokenizer, token
    raise Refusal(f"the tokenizer {path} names no end-of-document token", "Add eos_token to its tokenizer_config.json.")
