"""Facts as data, and the typed schema they must fit. Imports nothing of ours; no torch, no NeMo.

``load(name, overrides)`` composes one recipe into a :class:`Spec`; ``model(name)`` and ``gpu(name)`` read one fact file.
"""

from slipway.configs.errors import Refusal, nearest
from slipway.configs.load import (
    Resolved,
    cluster_names,
    gpu,
    gpu_names,
    gpu_of_device,
    headline,
    load,
    model,
    model_names,
    optimizer,
    precision,
    precision_names,
    recipe_names,
)
from slipway.configs.schema import (
    Batch,
    Calibration,
    Cluster,
    Data,
    Dispatcher,
    Fsdp,
    Gpu,
    Layout,
    Model,
    Optimizer,
    Precision,
    Recompute,
    Run,
    Spec,
)

__all__ = [
    "Batch",
    "Calibration",
    "Cluster",
    "Data",
    "Dispatcher",
    "Fsdp",
    "Gpu",
    "Layout",
    "Model",
    "Optimizer",
    "Precision",
    "Recompute",
    "Refusal",
    "Resolved",
    "Run",
    "Spec",
    "cluster_names",
    "gpu",
    "gpu_names",
    "gpu_of_device",
    "headline",
    "load",
    "model",
    "model_names",
    "nearest",
    "optimizer",
    "precision",
    "precision_names",
    "recipe_names",
]
