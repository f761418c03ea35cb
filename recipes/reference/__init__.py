"""Megatron-Core on CPU ranks over Gloo: what a machine without a GPU needs to run the real training loop.

``emulation`` stands in for the CUDA calls, ``reference`` for the kernels of Transformer Engine. Neither is imported
where a GPU is.
"""
