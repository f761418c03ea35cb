"""One complete run: what flows from configs to planner, recipes and launch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from slipway.configs.schema.cluster import Cluster
from slipway.configs.schema.data import Data
from slipway.configs.schema.gpu import Gpu
from slipway.configs.schema.layout import Batch, Layout
from slipway.configs.schema.legal import FolderName, Size
from slipway.configs.schema.model import Model
from slipway.configs.schema.optimizer import Optimizer
from slipway.configs.schema.precision import Precision
from slipway.configs.schema.run import Run
from slipway.configs.schema.task import Task


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One complete run."""

    name: Annotated[str, FolderName()]
    """Name of the run and of its folder."""

    gpus: Size = 8
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
