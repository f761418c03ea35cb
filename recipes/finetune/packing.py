"""Several examples in one sequence, none attending to another. Imports neither torch nor NeMo."""

from __future__ import annotations

import bisect

import numpy as np
import numpy.typing as npt

_OPEN = 4096  # packs that are still looked at: placing an example then takes microseconds


def pack(lengths: npt.NDArray[np.int64], size: int, seed: int) -> list[npt.NDArray[np.int64]]:
    """Which examples share a sequence: each goes, in a random order, where it leaves the least space.

    Args:
        lengths: of the examples, none above ``size``.
        size: of a sequence.
        seed: of the order.

    Returns:
        The indices of the examples of each pack.
    """
    packs: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # (what is left, pack), sorted
    for example in np.random.default_rng(seed).permutation(len(lengths)):
        length = int(lengths[example])
        at = bisect.bisect_left(spaces, (length, 0))
        if at == len(spaces):
            packs.append([])
            left, into = size, len(packs) - 1
        else:
            left, into = spaces.pop(at)
        packs[into].append(int(example))
        if left > length:
            bisect.insort(spaces, (left - length, into))
        if len(spaces) > _OPEN:
            spaces.pop(0)
    return [np.asarray(members, np.int64) for members in packs]
