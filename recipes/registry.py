"""The ``nemo_run.cli`` entry point: puts our factories where ``nemo llm pretrain --factory NAME`` finds them,
and ``nemo llm finetune``.

Factories of the same target and name overwrite each other, and the order of entry points is not ours to choose.
Importing ``nemo.collections.llm`` first registers NeMo's own factories before ours, and they are never registered
again. NeMo's factory NAME, which ours hides, stays reachable as ``nemo_NAME``.
"""

from __future__ import annotations

import os

# Before anything touches CUDA: without it the allocator fragments, and runs that fit run out of memory.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import catalogue
import nemo_run as run
from nemo.collections import llm
from nemo_run.config import get_type_namespace

from slipway import configs
from slipway.configs import Call
from slipway.recipes import front_door
from slipway.recipes.factory import at_front_door


def register() -> None:
    """Register the factory of every recipe as ``--factory NAME`` of NeMo's ``llm pretrain`` and ``llm finetune``."""
    for task, target in ((Call.pretrain, llm.pretrain), (Call.finetune, llm.finetune)):
        namespace = get_type_namespace(target)
        for name in configs.recipe_names():
            if catalogue.check_exists(namespace, name):
                run.cli.factory(catalogue._get((namespace, name)), target=target, name=f"nemo_{name}")
            run.cli.factory(at_front_door(name, task), target=target, name=name)


register()
front_door.install()
