"""The typed schema of a training run: frozen dataclasses, one module a group, that every other package reads.

Field names are those of NeMo and Megatron-Core where they have one, so that a test can compare each fact with the
class that
trains. Units stand in the names (``_gib``, ``_tflops``, ``_gb_per_s``); GB is 10^9 bytes and GiB is 2^30 bytes. The
text under each field is its documentation: :func:`slipway.configs.describe` reads it.
"""

from slipway.configs.schema.calibration import Calibration
from slipway.configs.schema.cluster import Accelerator, Cluster
from slipway.configs.schema.data import Data, DataKind, Template, TooLong
from slipway.configs.schema.gpu import BLACKWELL, HOPPER, Gpu
from slipway.configs.schema.layers import HYBRID_SYMBOLS, FeedForward, LayerKind, LayerShape, Mixer, layer_kinds
from slipway.configs.schema.layout import (
    AttentionBackend,
    Batch,
    Dispatcher,
    Fsdp,
    Layout,
    Placement,
    Recompute,
    RecomputeMethod,
    Schedule,
)
from slipway.configs.schema.legal import Choice
from slipway.configs.schema.levers import CudaGraphScope, Levers
from slipway.configs.schema.model import (
    Activation,
    LoadBalancing,
    Model,
    Normalization,
    PositionEmbedding,
    RopeScaling,
    SoftmaxType,
)
from slipway.configs.schema.optimizer import Algorithm, LrSchedule, Moments, Optimizer
from slipway.configs.schema.precision import Fp8Format, Fp8Recipe, Gemm, Precision
from slipway.configs.schema.run import Resilience, Run
from slipway.configs.schema.spec import Spec
from slipway.configs.schema.stages import Changed, Shape, Unit
from slipway.configs.schema.task import Adapter, Call, Task

__all__ = [
    "BLACKWELL",
    "HOPPER",
    "HYBRID_SYMBOLS",
    "Accelerator",
    "Activation",
    "Adapter",
    "Algorithm",
    "AttentionBackend",
    "Batch",
    "Calibration",
    "Call",
    "Changed",
    "Choice",
    "Cluster",
    "CudaGraphScope",
    "Data",
    "DataKind",
    "Dispatcher",
    "FeedForward",
    "Fp8Format",
    "Fp8Recipe",
    "Fsdp",
    "Gemm",
    "Gpu",
    "LayerKind",
    "LayerShape",
    "Layout",
    "Levers",
    "LoadBalancing",
    "LrSchedule",
    "Mixer",
    "Model",
    "Moments",
    "Normalization",
    "Optimizer",
    "Placement",
    "PositionEmbedding",
    "Precision",
    "Recompute",
    "RecomputeMethod",
    "RopeScaling",
    "Resilience",
    "Run",
    "Schedule",
    "Shape",
    "SoftmaxType",
    "Spec",
    "Task",
    "Template",
    "TooLong",
    "Unit",
    "layer_kinds",
]
