"""How often a schedule reads each source of a blend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slipway.configs import Refusal
from slipway.configs.blend import Source
from slipway.recipes.runtime.data_check import check_split, tokens_in

MANY_EPOCHS = 4.0
"""Repetitions of data that train about as well as new data: Muennighoff et al. 2023, arXiv:2305.16264."""


@dataclass(frozen=True)
class Reading:
    """How much of one source is read.

    Attributes:
        tokens: of its training share.
        share: of the tokens that are read, between 0 and 1.
        read: tokens.
    """

    prefix: str
    tokens: float
    share: float
    read: float

    @property
    def epochs(self) -> float:
        return self.read / self.tokens


def trained_tokens(blend: Sequence[Source], split: str) -> list[float]:
    """Tokens of each source that ``split`` leaves for training.

    Raises:
        Refusal: a source that is missing or damaged, or a split that leaves one of them nothing.
    """
    counts = [tokens_in(source.prefix) for source in blend]
    for source in blend:
        check_split(source.prefix, split)
    weights = [float(weight) for weight in split.split(",")]
    trained = [count * weights[0] / sum(weights) for count in counts]
    if not min(trained):
        raise Refusal(f"data.split={split} leaves no tokens for training", "Give it a first weight above 0.")
    return trained


def readings(blend: Sequence[Source], tokens: Sequence[float], needed: float) -> list[Reading]:
    """How often each source is read over ``needed`` tokens.

    Args:
        blend: without weights, each source is read in proportion to its size, as Megatron-Core does.
        tokens: of each source; all above 0.
    """
    total = sum(tokens)
    shares = [count / total if s.weight is None else s.weight for s, count in zip(blend, tokens, strict=True)]
    rows = zip(blend, tokens, shares, strict=True)
    return [Reading(source.prefix, count, share, needed * share) for source, count, share in rows]


def capped(rows: Sequence[Reading], most_epochs: float) -> list[Reading]:
    """The blend that is nearest to ``rows`` and reads no source more than ``most_epochs`` times.

    What a source cannot give is taken from the others in proportion to their shares.

    Raises:
        Refusal: all sources together do not have that many tokens, or a limit that is not above 0.
    """
    if not 0 < most_epochs < float("inf"):
        raise Refusal(f"--max-epochs {most_epochs:g} is not above 0", "Give how often a source may be read.")
    needed = sum(row.read for row in rows)
    available = sum(row.tokens for row in rows) * most_epochs
    if available < needed * (1 - 1e-9):
        raise Refusal(
            f"{most_epochs:g} epochs of all sources are {available:,.0f} tokens, and {needed:,.0f} are to be read",
            f"Give more data, fewer --tokens, or --max-epochs {needed / available * most_epochs:.3g} or more.",
        )
    full: set[int] = set()
    while True:
        left = needed - sum(rows[i].tokens for i in full) * most_epochs
        free = [i for i in range(len(rows)) if i not in full]
        shares = sum(rows[i].share for i in free)
        more = {i for i in free if left * rows[i].share / shares > rows[i].tokens * most_epochs * (1 + 1e-9)}
        if not more:
            break
        full |= more
    made = []
    for i, row in enumerate(rows):
        read = row.tokens * most_epochs if i in full else left * row.share / shares
        made.append(Reading(row.prefix, row.tokens, read / needed, read))
    return made
