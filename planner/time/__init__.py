"""Seconds of a training step: operations and their prices (kernels, links), layers, the pipeline, the step."""
