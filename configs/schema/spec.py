"""One complete run: what flows from configs to planner, recipes and launch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from slipway.configs.schema.cluster import Cluster
from slipway.configs.schema.data import Data
from slipway.configs.schema.gpu import BLACKWELL, Gpu
from slipway.configs.schema.layout import Batch, Dispatcher, Layout
from slipway.configs.schema.legal import Between, FolderName
from slipway.configs.schema.levers import Levers
from slipway.configs.schema.model import Model
from slipway.configs.schema.optimizer import Optimizer
from slipway.configs.schema.precision import Precision
from slipway.configs.schema.run import Run
from slipway.configs.schema.task import Task

MOST_GPUS = 10_000_000


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One complete run."""

    name: Annotated[str, FolderName()]
    """Name of the run and of its folder."""

    gpus: Annotated[int, Between(1, MOST_GPUS)] = 8
    """Number of GPUs; ``nodes=`` states it in nodes."""

    software: str = ""
    """Software generation of the planner's constants; empty: the newest that the GPU was calibrated with."""

    model: Model
    """The architecture."""

    gpu: Gpu
    """The accelerator."""

    precision: Precision
    """The mixed-precision recipe."""

    layout: Layout = field(default_factory=Layout)
    """How the model is spread over the GPUs."""

    levers: Levers = field(default_factory=Levers)
    """What the run does for speed alone."""

    optim: Optimizer
    """Optimizer and schedule."""

    data: Data
    """Where training tokens come from."""

    task: Task = field(default_factory=Task)
    """What is trained of the model."""

    cluster: Cluster
    """Where the run goes."""

    run: Run = field(default_factory=Run)
    """How long the run trains, and what it keeps."""

    @property
    def seq_length(self) -> int:
        """Tokens per sequence."""
        return self.layout.seq_length or self.model.seq_length

    @property
    def gpus_per_node(self) -> int:
        """Ranks per node: the cluster's own number, else that of machines with this GPU."""
        return self.cluster.gpus_per_node or self.gpu.gpus_per_node

    @property
    def num_nodes(self) -> int:
        """Nodes that the GPUs fill."""
        return max(1, -(-self.gpus // self.gpus_per_node))

    @property
    def dp(self) -> int:
        """Data-parallel size of the dense layers, without context parallelism; 0 where the sizes do not divide the
        GPUs.
        """
        ranks = self.layout.tp * self.layout.pp * self.layout.cp
        return self.gpus // ranks if self.gpus % ranks == 0 else 0

    @property
    def dispatcher(self) -> Dispatcher:
        """How tokens travel to the ranks of their experts: the layout's, with ``auto`` resolved.

        As NeMo's DeepEPCallback, ``auto`` takes DeepEP on Ampere and Hopper; it needs several ranks that share the
        experts, and has no input of a fixed size, which padding and CUDA graphs ask for.
        """
        layout = self.layout
        if layout.dispatcher is not Dispatcher.auto:
            return layout.dispatcher
        fixed = layout.moe_pad_expert_input_to_capacity or layout.cuda_graphs
        shared = self.model.is_moe and layout.ep * layout.expert_tp > 1
        runs = shared and not fixed and self.gpu.compute_capability < BLACKWELL
        return Dispatcher.flex if runs else Dispatcher.alltoall

    @property
    def expert_dp(self) -> int:
        """Ranks that hold the same experts."""
        return max(1, self.gpus // (self.layout.pp * self.layout.ep * self.layout.expert_tp))

    @property
    def batch(self) -> Batch:
        """The batch that the layout and the number of GPUs give."""
        layout, dp = self.layout, max(self.dp, 1)
        return Batch(
            micro=layout.mbs,
            global_=layout.gbs,
            seq_length=self.seq_length,
            dp=dp,
            num_micro_batches=max(1, layout.gbs // (layout.mbs * dp)),
        )
