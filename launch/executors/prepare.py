"""Check a launch before it is submitted: what would fail in the queue is refused here, in one sentence."""

from __future__ import annotations

import itertools
import re
import shlex
from dataclasses import replace

from slipway import configs, planner
from slipway.configs import Refusal, Spec
from slipway.configs.schema import Accelerator
from slipway.launch.executors.protocol import Launch
from slipway.launch.executors.select import executor_named, validate
from slipway.recipes.factory import absolute, check_data, gpu_here, trains_on_cpu
from slipway.recipes.runtime import source as code


def spread(overrides: list[str]) -> list[tuple[str, list[str]]]:
    """Every combination of the values that ``key=a,b`` lists: (suffix of the run's name, overrides) of each.

    Raises:
        Refusal: no override lists several values.
    """
    parts = [override.partition("=") for override in overrides]
    many = [(key, value.split(",")) for key, _, value in parts if "," in value and not value.startswith(tuple("[{\"'"))]
    if not many:
        raise Refusal(
            "-m was given, but no override lists several values",
            "Write them with commas: -m precision=bf16,fp8_current.",
        )
    single = [override for override in overrides if override.partition("=")[0] not in dict(many)]
    combinations = []
    for values in itertools.product(*(listed for _, listed in many)):
        chosen = [f"{key}={value}" for (key, _), value in zip(many, values, strict=True)]
        suffix = "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", value) for value in values)
        combinations.append((suffix, single + chosen))
    return combinations


def prepare(name: str, overrides: list[str], *, suffix: str = "", allow_dirty: bool = False) -> Launch:
    """Check everything that can be checked before submitting.

    Raises:
        Refusal: an illegal or too-large recipe, an unsafe or incomplete cluster, uncommitted changes, missing data, or
            a run folder that holds another run.
    """
    resolved = configs.load(name, overrides)
    spec, chosen_by = planner.choose_layout(resolved)
    if suffix:
        spec = replace(spec, name=f"{spec.name}-{suffix}")
    spec = with_accelerator(absolute(spec))
    planner.require_legal(spec)
    if spec.cluster.accelerator == "gpu":
        planner.require_fit(spec, f"slipway check {name} shows the nearest layout that fits.")
    validate(spec)
    if not executor_named(spec.cluster.executor).runs_here:
        require_chosen_data(resolved)
    check_data(spec)
    require_shipped(spec)
    if not allow_dirty:
        require_committed()
    from slipway.launch.runs.outlook import outlook
    from slipway.recipes import build as builder

    provenance = resolved.provenance | ({} if resolved.layout_given else {"layout": chosen_by})
    own_name = [f"name={spec.name}"] if suffix else []
    command = shlex.join(["slipway", "launch", name, *overrides, *own_name])
    will = outlook(builder.run_dir(spec), spec)
    return Launch(spec, provenance, will, allow_dirty, resolved=resolved, command=command)


def require_chosen_data(resolved: configs.Resolved) -> None:
    """Require that a job on a cluster trains on files, or on random tokens because the user says so.

    Raises:
        Refusal: no files, and no ``data=mock``.
    """
    if resolved.spec.data.kind == "mock" and not resolved.given & {"data", "data.kind"}:
        raise Refusal(
            f"{resolved.spec.name} has no data, and a job on cluster={resolved.spec.cluster.name} would train on "
            "random tokens",
            "Give data.paths=[PREFIX] and data.tokenizer=FOLDER, or data=mock if random tokens are meant.",
        )


def with_accelerator(spec: Spec) -> Spec:
    """``spec`` with ``cluster.accelerator`` decided: gpu or cpu.

    Raises:
        Refusal: a model too large for CPU ranks, or no GPU on the machine that must have one.
    """
    asked = spec.cluster.accelerator
    executor = executor_named(spec.cluster.executor)
    small = trains_on_cpu(spec)
    if asked is Accelerator.auto:
        on_cpu = small and executor.falls_back_to_cpu and not gpu_here()
        asked = Accelerator.cpu if on_cpu else Accelerator.gpu
    if asked is Accelerator.cpu and not small:
        raise Refusal(
            f"{spec.name} is too large to train on CPU ranks, and cluster={spec.cluster.name} has no GPUs",
            "Use a toy: llama3_tiny.",
        )
    if asked is Accelerator.gpu and executor.runs_here and not gpu_here():
        raise Refusal(
            f"{spec.name} needs {spec.gpus} GPUs and this machine has none",
            "Send it to a cluster with cluster=YOURS.yaml, or rehearse it here with slipway rehearse.",
        )
    return replace(spec, cluster=replace(spec.cluster, accelerator=asked))


def require_shipped(spec: Spec) -> None:
    """Require that the ranks of a job find Slipway: in the code that travels with it, or in its image.

    Raises:
        Refusal: neither holds it, as far as this machine can tell.
    """
    image = spec.cluster.container_image
    if not image or spec.cluster.image_has_slipway or "slipway" in image.rpartition("/")[2]:
        return
    root = code.repository()
    if root and code.in_commit(root, SHIPPED):
        return
    brings = f"the last commit of {root} holds no Slipway" if root else "no code travels with the job"
    raise Refusal(
        f"{brings}, and by its name the image {image} holds none either",
        "Use Slipway's own image (make image), launch from a checkout of Slipway, or say image_has_slipway: true in "
        "the cluster's file.",
    )


SHIPPED = "slipway/__init__.py"  # in the root of the archive, which is first on the path of every rank


def require_committed() -> None:
    """Require that the repository around the current folder has no uncommitted changes.

    Raises:
        Refusal: it has; it names the first file.
    """
    root = code.repository()
    changed = code.uncommitted(root) if root else []
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise Refusal(
            f"{root} has changes that are not committed ({changed[0]}{more}), and a job runs committed code",
            "Commit them, or launch the last commit without them: --allow-dirty.",
        )
