"""NeMo's Megatron strategy on CPU ranks: the one place where the emulation is entered."""

from __future__ import annotations

from typing import Any

from nemo import lightning as nl

from slipway.recipes.reference import emulation


class CpuStrategy(nl.MegatronStrategy):
    """:class:`nemo.lightning.MegatronStrategy` over Gloo, with the CUDA calls it makes answered on the CPU."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        emulation.enter()
        super().__init__(*args, **kwargs)

    def teardown(self) -> None:
        super().teardown()
        emulation.shutdown()
