"""What torch's allocator says when it runs out of memory: what was asked for, what was free, and what held the rest."""

from __future__ import annotations

import re
from dataclasses import dataclass

_GIB = {"bytes": 2.0**-30, "KiB": 2.0**-20, "MiB": 2.0**-10, "GiB": 1.0, "TiB": 2.0**10, "EiB": 2.0**30}
_AMOUNT = r"([\d.]+) (bytes|[KMGTE]iB)"
_ASKED = re.compile(rf"Tried to allocate {_AMOUNT}")
_CAPACITY = (re.compile(rf"total capac\w+ of {_AMOUNT}"), re.compile(rf"{_AMOUNT} total capacity"))
_FREE = (re.compile(rf"of which {_AMOUNT} is free"), re.compile(rf"; {_AMOUNT} free"))
_ALLOCATED = (re.compile(rf"{_AMOUNT} is allocated by PyTorch"), re.compile(rf"; {_AMOUNT} already allocated"))
_UNUSED = re.compile(rf"{_AMOUNT} is reserved by PyTorch but unallocated")
_RESERVED = re.compile(rf"{_AMOUNT} reserved in total")
_IN_USE = re.compile(rf"this process has {_AMOUNT} memory in use")


@dataclass(frozen=True)
class Allocation:
    """A request that the allocator could not serve. All in GiB; None where the line does not say.

    Attributes:
        allocated: by tensors.
        unused: reserved by the allocator, and not allocated: fragments.
        in_use: by the whole process, CUDA's context and NCCL's buffers included.
    """

    asked: float
    capacity: float | None
    free: float | None
    allocated: float | None
    unused: float | None
    in_use: float | None

    @property
    def missing(self) -> float:
        """What was asked for beyond what was free."""
        return max(0.0, self.asked - (self.free or 0.0))

    @property
    def others(self) -> float | None:
        """What other processes hold on the GPU; None where the line does not say."""
        if self.capacity is None or self.free is None or self.in_use is None:
            return None
        return max(0.0, self.capacity - self.free - self.in_use)

    @property
    def fragmented(self) -> bool:
        """Whether the fragments together would have held the request."""
        return self.unused is not None and self.unused >= self.asked


def allocation_in(text: str) -> Allocation | None:
    """The request in a line of the allocator; None where the line is another's."""
    asked = _amount(text, _ASKED)
    if asked is None:
        return None
    allocated, unused = _amount(text, *_ALLOCATED), _amount(text, _UNUSED)
    reserved = _amount(text, _RESERVED)
    if unused is None and reserved is not None and allocated is not None:
        unused = max(0.0, reserved - allocated)
    return Allocation(
        asked, _amount(text, *_CAPACITY), _amount(text, *_FREE), allocated, unused, _amount(text, _IN_USE)
    )


def _amount(text: str, *patterns: re.Pattern[str]) -> float | None:
    for pattern in patterns:
        if found := pattern.search(text):
            return float(found[1]) * _GIB[found[2]]
    return None
