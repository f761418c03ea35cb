"""The CUDA calls that NeMo and Megatron-Core make unconditionally, answered on a CPU. Entered once, by :func:`enter`.

Nothing here computes a model: streams, events and memory counters become no-ops, tensors asked for on ``cuda`` land
on the
CPU, and the collectives that NCCL has and Gloo has not are made from those that it has. Each stub says who needs it.
"""

from __future__ import annotations

import collections
import contextlib
import functools
from typing import Any

import torch
import torch.distributed as dist

_entered = False


def enter() -> None:
    """Make this process able to train on CPU ranks. Does nothing the second time; refuses on a machine with a GPU.

    Raises:
        RuntimeError: a GPU is visible; there the real calls must be made.
    """
    global _entered
    if _entered:
        return
    if torch.cuda.is_available():
        raise RuntimeError("the CPU emulation must not be entered on a machine with a GPU")
    _entered = True
    torch.compiler.set_stance("force_eager")  # a toy is trained before its fused functions are compiled
    _cuda_runtime()
    _device_arguments()
    _gloo_collectives()
    _megatron()
    _nemo()


# --- torch.cuda -----------------------------------------------------------------------------------------------------


class _Stream:
    """A stream that is always idle: CPU work is done when the call returns."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def wait_stream(self, *args: Any) -> None: ...

    def wait_event(self, *args: Any) -> None: ...

    def synchronize(self) -> None: ...

    def record_event(self, *args: Any) -> _Event:
        return _Event()

    def query(self) -> bool:
        return True


class _Event:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def record(self, *args: Any) -> None: ...

    def wait(self, *args: Any) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: _Event) -> float:
        return 0.0


class _Generators:
    """torch.cuda.default_generators: Megatron's RNG tracker reads entry [current_device]."""

    def __getitem__(self, index: object) -> torch.Generator:
        return torch.default_generator

    def __len__(self) -> int:
        return 1


def _cuda_runtime() -> None:
    def nothing(*args: Any, **kwargs: Any) -> None: ...

    stand_ins: dict[str, Any] = {
        # Megatron's DDP, pipeline schedule and data iterators order their work with streams and events
        "Stream": _Stream,
        "Event": _Event,
        "stream": lambda s: contextlib.nullcontext(),
        "current_stream": lambda *a, **k: _Stream(),
        "default_stream": lambda *a, **k: _Stream(),
        "synchronize": nothing,
        # Lightning and Megatron place the model by these
        "current_device": lambda: torch.device("cpu"),
        "set_device": nothing,
        "set_stream": nothing,
        "device_count": lambda: 1,
        "_lazy_init": nothing,
        "_lazy_call": lambda fn, **k: fn(),
        # Megatron's RNG tracker forks and restores the device generator for dropout and initialisation
        "get_rng_state": lambda *a, **k: torch.get_rng_state(),
        "set_rng_state": lambda state, *a, **k: torch.set_rng_state(state),
        "manual_seed": lambda seed: torch.manual_seed(seed),
        "default_generators": _Generators(),
        # NeMo's memory callbacks
        "empty_cache": nothing,
        "reset_peak_memory_stats": nothing,
        "memory_stats": lambda *a, **k: {},
        **dict.fromkeys(
            ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"), lambda *a, **k: 0
        ),
        # distrib_optimizer and the gradient buffers compare tensor type names
        **{
            f"{kind}Tensor": getattr(torch, f"{kind}Tensor")
            for kind in ("Float", "Int", "Long", "Half", "BFloat16", "Double", "Byte")
        },
    }
    for name, stand_in in stand_ins.items():
        setattr(torch.cuda, name, stand_in)
    torch.cuda.random.get_rng_state = torch.cuda.get_rng_state
    torch.cuda.random.set_rng_state = torch.cuda.set_rng_state
    torch.Tensor.cuda = lambda self, *a, **k: self  # type: ignore[method-assign, assignment]
    torch.nn.Module.cuda = lambda self, *a, **k: self  # type: ignore[method-assign, assignment]


class _CudaToCpu(torch.overrides.TorchFunctionMode):
    """Rewrite ``device="cuda"`` (a literal in many of Megatron's allocations) and drop pinned memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.device:
            return torch.device("cpu") if args and str(args[0]).startswith("cuda") else func(*args, **kwargs)
        kwargs.pop("pin_memory", None)
        if "device" in kwargs:
            kwargs["device"] = _on_cpu(kwargs["device"])
        if func is torch.Tensor.to and len(args) > 1 and not isinstance(args[1], int):
            args = (args[0], _on_cpu(args[1]), *args[2:])
        if func is torch.Tensor.type:  # Megatron sorts gradient buffers by names such as torch.cuda.FloatTensor
            if len(args) == 1 and not kwargs:
                return func(*args).replace("torch.", "torch.cuda.")
            if isinstance(args[1], str):
                args = (args[0], args[1].replace("torch.cuda.", "torch."))
        return func(*args, **kwargs)


def _on_cpu(device: Any) -> Any:
    if isinstance(device, torch.device):
        return torch.device("cpu") if device.type == "cuda" else device
    if isinstance(device, str) and device.startswith("cuda"):
        return "cpu"
    return device


def _device_arguments() -> None:
    _CudaToCpu().__enter__()
    import torch.distributed.device_mesh as device_mesh

    init = device_mesh.DeviceMesh.__init__

    @functools.wraps(init)
    def on_cpu(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:  # NeMo loads optimizers on a cuda mesh
        init(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    device_mesh.DeviceMesh.__init__ = on_cpu  # type: ignore[method-assign, assignment]


# --- collectives that NCCL has and Gloo lacks -------------------------------------------------------------------------


def _gloo_collectives() -> None:
    gather, scatter = dist.all_gather, dist.reduce_scatter

    def all_gather(outputs: list[torch.Tensor], tensor: torch.Tensor, group: Any = None, async_op: bool = False) -> Any:
        """Uneven first dimensions (expert tokens under expert tensor parallelism) are padded to the longest."""
        rows = [t.shape[0] for t in outputs] if tensor.dim() else [1]
        if len(set(rows)) == 1:
            return gather(outputs, tensor, group=group, async_op=async_op)
        padded = tensor.new_zeros((max(rows), *tensor.shape[1:]))
        padded[: tensor.shape[0]] = tensor
        received = [torch.empty_like(padded) for _ in outputs]
        gather(received, padded, group=group)
        for out, part, count in zip(outputs, received, rows, strict=True):
            out.copy_(part[:count])
        return None

    def reduce_scatter(
        output: torch.Tensor,
        inputs: list[torch.Tensor],
        op: Any = dist.ReduceOp.SUM,
        group: Any = None,
        async_op: bool = False,
    ) -> Any:
        """Uneven shares: all-reduce the whole, keep our part."""
        rows = [t.shape[0] for t in inputs]
        if len(set(rows)) == 1:
            return scatter(output, inputs, op=op, group=group, async_op=async_op)
        whole = torch.cat(inputs).contiguous()
        dist.all_reduce(whole, op=op, group=group)
        output.copy_(whole.split(rows)[dist.get_rank(group)])
        return None

    dist.all_gather = all_gather
    dist.reduce_scatter = reduce_scatter


# --- Megatron-Core ----------------------------------------------------------------------------------------------------


def _megatron() -> None:
    """Replace what Megatron-Core cannot do on a CPU.

    Long because it is a list of independent replacements, each explained where it stands.
    """
    import megatron.core.dist_checkpointing.strategies.filesystem_async as checkpoint_writer
    import megatron.core.optimizer.distrib_optimizer as distributed_optimizer
    import megatron.core.pipeline_parallel.p2p_communication as p2p
    import megatron.core.tensor_parallel.layers as layers
    import megatron.core.timers as timers
    import megatron.core.transformer.moe.moe_utils as moe_utils
    import megatron.core.transformer.moe.token_dispatcher as dispatcher

    # The progress printer gathers timers over all ranks but is called on rank 0 only: NCCL tolerates it, Gloo hangs.
    timers.Timers.get_all_timers_string = lambda *a, **k: None

    # The schedule frees a stage's output as soon as its send is posted. A Gloo send still reads it: keep both alive.
    in_flight: collections.deque[Any] = collections.deque(maxlen=512)
    send = p2p._p2p_ops

    def keep_until_sent(**kwargs: Any) -> Any:
        for name in ("tensor_send_prev", "tensor_send_next"):
            if kwargs[name] is not None:
                kwargs[name] = kwargs[name].detach()
        requests = send(**kwargs)
        in_flight.append((requests, kwargs))
        return requests

    p2p._p2p_ops = keep_until_sent

    # Split sizes are turned into lists only for CUDA tensors; Gloo's all-to-all needs lists too.
    def splits(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        return tensor.numpy() if torch.is_tensor(tensor) and as_numpy else tensor

    moe_utils.maybe_move_tensor_to_cpu = splits
    dispatcher.maybe_move_tensor_to_cpu = splits

    # A bias is added in place to a view made by a custom Function: autograd forbids it without the fused kernel.
    reduce_region = layers.reduce_from_tensor_model_parallel_region
    layers.reduce_from_tensor_model_parallel_region = lambda *a, **k: reduce_region(*a, **k).clone()

    load = distributed_optimizer.DistributedOptimizer._set_main_param_and_optimizer_states
    distributed_optimizer.DistributedOptimizer._set_main_param_and_optimizer_states = torch.no_grad()(load)

    # The checkpoint writer would spawn a manager process that imports this program again (20 s a rank): fork it.
    def results_queue() -> Any:
        if getattr(checkpoint_writer, "_results_queue", None) is None:
            import torch.multiprocessing as multiprocessing

            manager = multiprocessing.get_context("fork").Manager()
            checkpoint_writer._results_manager = manager
            checkpoint_writer._results_queue = manager.Queue()
        return checkpoint_writer._results_queue

    checkpoint_writer._get_write_results_queue = results_queue


def shutdown() -> None:
    """End the checkpoint writer's manager process, which would outlive a forked rank."""
    import megatron.core.dist_checkpointing.strategies.filesystem_async as checkpoint_writer

    manager = getattr(checkpoint_writer, "_results_manager", None)
    if manager is not None:
        manager.shutdown()
        checkpoint_writer._results_manager = checkpoint_writer._results_queue = None


# --- NeMo -------------------------------------------------------------------------------------------------------------


def _nemo() -> None:
    import nemo.lightning.io.pl as checkpoint_io

    # Asserts that CUDA is initialised before it moves tensors that are already where they belong.
    checkpoint_io._fix_tensors_device = lambda checkpoint: checkpoint

    # The loss of multi-token prediction is divided by the tokens of each context rank, and the sequence's last rank has
    # one fewer. This error, CP over the sequence length, is negligible at 4,096 tokens and hides everything else at a
    # toy's 64: here all ranks divide by one count.
    import megatron.core.models.gpt.gpt_model as gpt_model
    from megatron.core.transformer.multi_token_prediction import roll_tensor

    def counted_by_all(tensor: Any, shifts: int = -1, dims: int = -1, cp_group: Any = None) -> tuple[Any, Any]:
        rolled, total = roll_tensor(tensor, shifts, dims, cp_group)
        if cp_group is not None and cp_group.size() > 1:
            total = total.float()
            dist.all_reduce(total, group=cp_group)
            total /= cp_group.size()
        return rolled, total

    gpt_model.roll_tensor = counted_by_all
