"""Facts as data, and the typed schema they must fit. Imports nothing of ours; no torch, no NeMo.

``load(name, overrides)`` composes one recipe into a :class:`Spec`; ``model(name)`` and ``gpu(name)`` read one fact
file.
"""

from slipway.configs.describe import GroupDescription, KeyDescription, describe, describe_groups
from slipway.configs.errors import Refusal, nearest
from slipway.configs.facts import gpu, gpu_of_device, headline, model, optimizer, precision, task
from slipway.configs.files import cluster_names, gpu_names, model_names, precision_names, recipe_names
from slipway.configs.load import Resolved, load
from slipway.configs.planned import planned_only_names
from slipway.configs.schema import (
    Adapter,
    Batch,
    Calibration,
    Call,
    Cluster,
    Data,
    Dispatcher,
    Fsdp,
    Gpu,
    Layout,
    Levers,
    Model,
    Optimizer,
    Precision,
    Recompute,
    Run,
    Schedule,
    Spec,
    Task,
)

__all__ = [
    "Adapter",
    "Batch",
    "Calibration",
    "Call",
    "Cluster",
    "Data",
    "Dispatcher",
    "Fsdp",
    "Gpu",
    "GroupDescription",
    "KeyDescription",
    "Layout",
    "Levers",
    "Model",
    "Optimizer",
    "Precision",
    "Recompute",
    "Refusal",
    "Resolved",
    "Schedule",
    "Run",
    "Spec",
    "Task",
    "cluster_names",
    "describe",
    "describe_groups",
    "gpu",
    "gpu_names",
    "gpu_of_device",
    "headline",
    "load",
    "model",
    "model_names",
    "nearest",
    "optimizer",
    "planned_only_names",
    "precision",
    "precision_names",
    "recipe_names",
    "task",
]
