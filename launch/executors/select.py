"""Which executor a cluster names, and NeMo-Run's executor for a Spec."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from slipway.configs import Refusal, Spec
from slipway.launch.executors import backends
from slipway.launch.executors.cluster_check import check_cluster
from slipway.launch.executors.protocol import Executor

if TYPE_CHECKING:
    import nemo_run as run


def executor_named(name: str) -> Executor:
    """The executor that ``backends/NAME.py`` defines.

    Raises:
        Refusal: there is no such file.
    """
    names = sorted(module.name for module in pkgutil.iter_modules(backends.__path__))
    if name not in names:
        raise Refusal(f"cluster.executor={name} is unknown", f"Use {', '.join(names[:-1])} or {names[-1]}.")
    executor: Executor = importlib.import_module(f"{backends.__name__}.{name}").EXECUTOR
    return executor


def validate(spec: Spec) -> Executor:
    """The executor of ``spec``, after every check that needs no cluster.

    Raises:
        Refusal: a cluster file that is unsafe or incomplete, or ranks that its executor cannot start.
    """
    check_cluster(spec.cluster)
    ranks = min(spec.gpus, spec.gpus_per_node)
    if spec.gpus % ranks:
        raise Refusal(
            f"gpus={spec.gpus} is not a multiple of the {ranks} GPUs of a node of {spec.cluster.name}",
            f"Use nodes={spec.gpus // ranks} or {spec.gpus // ranks + 1}.",
        )
    executor = executor_named(spec.cluster.executor)
    executor.validate(spec)
    return executor


def for_spec(spec: Spec) -> run.Executor:
    """NeMo-Run's executor that starts exactly the ranks of ``spec``, by torchrun on each of its nodes."""
    return validate(spec).nemo_run_executor(spec)
