"""Bytes of one rank of each pipeline stage, by what they hold, and whether they fit."""

from slipway.planner.memory.activations import Saved, saved_by_layer
from slipway.planner.memory.estimate import (
    FRAGMENTATION,
    GIB,
    REAL_EXPERT_LOAD,
    WORKSPACE_GIB,
    Memory,
    StageMemory,
    expert_load_that_fits,
    has_room,
    in_flight,
    memory,
    stage_memory,
    workload_expert_load,
    workload_memory,
)

__all__ = [
    "FRAGMENTATION",
    "GIB",
    "REAL_EXPERT_LOAD",
    "WORKSPACE_GIB",
    "Memory",
    "Saved",
    "StageMemory",
    "expert_load_that_fits",
    "has_room",
    "in_flight",
    "memory",
    "saved_by_layer",
    "stage_memory",
    "workload_expert_load",
    "workload_memory",
]
