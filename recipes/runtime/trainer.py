"""Lightning's trainer as recipes use it."""

from __future__ import annotations

import functools
from typing import Any

from nemo import lightning as nl

from slipway.configs.errors import exit_on_refusal
from slipway.recipes.factory import require_gpu


class Trainer(nl.Trainer):
    """:class:`nemo.lightning.Trainer` that asks for its GPUs in one sentence, in the ranks of a job too."""

    @functools.wraps(nl.Trainer.__init__)  # type: ignore[misc]  # NeMo-Run reads the arguments
    def __init__(self, *args: Any, **options: Any) -> None:
        with exit_on_refusal():
            require_gpu(options.get("accelerator", ""))
        super().__init__(*args, **options)
