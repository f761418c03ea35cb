"""Megatron-Core's notation of a pipeline: which layers stand in each model chunk.

``Et|(tt|)*30mL`` has 32 chunks, separated by ``|``: the embedding (E) and a decoder layer (t), 30 chunks of two layers,
and one that holds a layer of multi-token prediction (m) and the loss (L). ``*`` repeats a piece or a group; commas mean
nothing. With PP stages, the chunks go to the stages in turn: chunk i to stage i modulo PP.

Source: megatron-core 0.15.3, transformer.pipeline_parallel_layer_layout.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence

EMBEDDING, DECODER, PREDICTION, LOSS = "E", "t", "m", "L"
PIECES = {
    EMBEDDING: "the embedding",
    DECODER: "a decoder layer",
    PREDICTION: "multi-token prediction",
    LOSS: "the loss",
}
LONGEST = 100_000  # characters without repetitions: no model has as many layers
# Groups are repeated before single characters, once each: Megatron-Core does not nest them.
_REPETITIONS = (re.compile(r"\(([^)]+)\)\*(\d+)"), re.compile(r"(.)\*(\d+)"))


def _repeated(match: re.Match[str]) -> str:
    text, count = match[1], match[2]
    if len(count) > len(str(LONGEST)) or len(text) * int(count) > LONGEST:
        raise ValueError(f"repeats {text!r} {count if len(count) < 9 else 'very many'} times")
    return text * int(count)


@functools.lru_cache(maxsize=1024)
def chunks_of_text(text: str) -> tuple[str, ...]:
    """The pieces of each model chunk, in the order in which a micro-batch passes them.

    Raises:
        ValueError: the text is not in the notation; the message names what is wrong.
    """
    plain = text.replace(",", "")
    for repetition in _REPETITIONS:
        plain = repetition.sub(_repeated, plain)
        if len(plain) > LONGEST:
            raise ValueError("has more pieces than any model has layers")
    unknown = next((piece for piece in plain if piece not in PIECES and piece != "|"), None)
    if unknown is not None:
        legal = ", ".join(f"{piece} ({meaning})" for piece, meaning in PIECES.items())
        raise ValueError(f"has {unknown!r}: its pieces are {legal}, | ends a chunk, and *n repeats a piece or (...)")
    return tuple(plain.split("|"))


def text_of_chunks(chunks: Sequence[str]) -> str:
    """The shortest text for these chunks, with equal neighbours written once: the inverse of :func:`chunks_of_text`."""
    groups = [(_shortened(chunk), len(list(run))) for chunk, run in itertools.groupby(chunks)]
    words = []
    for index, (chunk, count) in enumerate(groups):
        last = index == len(groups) - 1
        followed = count - last  # by another chunk, and so by a separator
        words.append(f"({chunk}|)*{followed}" if followed > 1 else f"{chunk}|" * followed)
        words.append(chunk if last else "")
    return "".join(words)


def _shortened(chunk: str) -> str:
    runs = ((piece, len(list(run))) for piece, run in itertools.groupby(chunk))
    return "".join(f"{piece}*{count}" if count > 2 else piece * count for piece, count in runs)


def predicts_after_layers(text: str) -> bool:
    """Whether the last chunk has a decoder layer, before multi-token prediction; False where the text is not legal."""
    try:
        return DECODER in chunks_of_text(text)[-1]
    except ValueError:
        return False


def text_of_sizes(sizes: Sequence[int], predictions: int) -> str:
    """The text for chunks of so many decoder layers: the embedding is in the first chunk, the rest in the last."""
    chunks = [DECODER * size for size in sizes]
    chunks[0] = EMBEDDING + chunks[0]
    chunks[-1] += PREDICTION * predictions + LOSS
    return text_of_chunks(chunks)
