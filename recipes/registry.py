"""The ``nemo_run.cli`` entry point: puts our factories where ``nemo llm pretrain --factory NAME`` looks.

Factories of one (target, name) overwrite each other, and the order of entry points is not ours to choose: importing
``nemo.collections.llm`` first means that its own are registered by then, whoever comes first, and never again after.
"""

from __future__ import annotations

import os

# Before anything touches CUDA: without it the allocator fragments, and runs that fit die of it.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import nemo_run as run
from nemo.collections import llm

from slipway.recipes import deepseek, gpt3, llama2, llama3, mixtral, nemotron4, qwen3
from slipway.recipes.factory import FACTORIES, at_front_door

FAMILIES = (llama2, llama3, mixtral, gpt3, nemotron4, qwen3, deepseek)


def register() -> None:
    """Register every factory as ``--factory NAME`` of NeMo's ``llm pretrain``."""
    for name, function in FACTORIES.items():
        run.cli.factory(at_front_door(function), target=llm.pretrain, name=name)


register()
