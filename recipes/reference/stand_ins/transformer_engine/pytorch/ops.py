"""The operations of which Transformer Engine composes fused blocks; CPU ranks use modules instead."""

import torch


class FusibleOperation(torch.nn.Module):
    """An operation of a fused block."""


class Sequential(torch.nn.Sequential):
    """A fused block."""
