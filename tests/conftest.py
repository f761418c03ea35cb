"""Shared fixtures. Everything that needs Megatron runs in forked children, so that one import serves all and none
leaks state.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")


@pytest.fixture(scope="session")
def in_child() -> Callable[[Callable[[], Any]], Any]:
    """Run a function in a forked process that has NeMo imported and the CPU emulation entered; return what it
    returns.
    """
    from slipway.launch.rehearsal import ranks
    from slipway.launch.rehearsal.rehearse import import_nemo

    import_nemo()

    def call(work: Callable[[], Any], timeout_s: float = 600.0) -> Any:
        def rank(_: int) -> Any:
            from slipway.recipes.reference import emulation

            emulation.enter()
            return work()

        try:
            return ranks.run(1, rank, timeout_s=timeout_s).results[0]
        except ranks.RankFailure as failure:
            pytest.fail(f"in the child: {failure.log[-3000:]}")

    return call
