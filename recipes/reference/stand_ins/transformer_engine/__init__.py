"""Transformer Engine's interface in plain PyTorch, for CPU ranks: what Megatron-Core 0.15 and NeMo 2.7 use of it.

With this package installed, Megatron-Core builds its models from the layers that it builds on a GPU, with the same
parameters and the same names in checkpoints. The signatures are those of Transformer Engine 2.9, so that an argument
which the real package does not take fails here too; what cannot be computed on a CPU raises NotImplementedError.

Raises:
    ImportError: a GPU is visible. The real Transformer Engine belongs there.
"""

import torch

__version__ = "2.9.0+slipway.cpu"

if torch.cuda.is_available():
    raise ImportError(
        "this transformer_engine computes on CPU ranks only, and this machine has a GPU: "
        "install NVIDIA's with pip install 'transformer-engine[pytorch]==2.9.0'"
    )

from . import common, pytorch

__all__ = ["common", "pytorch"]
