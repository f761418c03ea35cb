"""The recipe's seed, for everything that is random."""

# Without postponed annotations: NeMo-Run's command line reads the types of the constructors' arguments.
import lightning.pytorch as pl
from nemo.lightning.megatron_init import _set_random_seed


class Seed(pl.Callback):
    """Seeds every rank before the model is built: NeMo's strategy seeds Megatron-Core with 1234, whatever the recipe
    says.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        _set_random_seed(self.seed)
