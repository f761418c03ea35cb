"""Which command of a script starts the training program, with which arguments and on how many GPUs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from slipway.configs import gpu_names
from slipway.launch.foreign.shell.evaluate import Command, Shell
from slipway.launch.foreign.shell.text import Piece, Text, line_of, plain, unknown, words

SHELLS = ("bash", "sh", "zsh", "dash")
SCRIPT_SUFFIXES = (".sh", ".bash", ".sbatch", ".slurm")
_SBATCH = re.compile(r"^#SBATCH[ \t]+(.*)$", re.MULTILINE)
_TORCH = ("torchrun", "torch.distributed.run", "torch.distributed.launch", "torchrun.py")
LAUNCHERS = ("torchrun", "torch.distributed.run", "srun", "mpirun", "deepspeed", "accelerate")
"""What starts ranks, as a message names it."""

_ARRAY_SLURM = {
    "SLURM_NNODES": "nodes",
    "SLURM_JOB_NUM_NODES": "nodes",
    "SLURM_NTASKS": "ntasks",
    "SLURM_NTASKS_PER_NODE": "ntasks-per-node",
    "SLURM_GPUS_ON_NODE": "gpus-per-node",
    "SLURM_GPUS_PER_NODE": "gpus-per-node",
}
_SHORT = {"-N": "nodes", "-n": "ntasks", "-np": "ntasks", "-G": "gpus", "-C": "constraint"}
_MOST_NESTED = 5  # scripts and strings that a command passes on to a shell


@dataclass
class Launch:
    """The command that starts the training program."""

    program: str
    line: int
    arguments: list[Text]
    launcher: list[Text] = field(default_factory=list)
    """The words before the program."""


@dataclass
class Gpus:
    """How many GPUs a launcher starts ranks on."""

    count: int = 0
    """0: not said."""
    per_node: int = 0
    lacking: str = ""
    """The variable that the number needs, where only a shell could compute it."""
    line: int = 0
    gpu: str = ""
    launcher: str = ""
    """The launcher, where it is not one that is known."""


def sbatch_options(text: str) -> dict[str, str]:
    """The options of the #SBATCH lines, by their long names; GPUs of ``--gres`` as ``gpus-per-node``."""
    found: dict[str, str] = {}
    for row in _SBATCH.findall(text):
        found |= _options([(Piece(word, 0),) for word in row.split(" #")[0].split()])
    return found


def slurm_environment(options: dict[str, str]) -> dict[str, str]:
    """The variables that SLURM sets in a job with these options."""
    known = {name: options[key] for name, key in _ARRAY_SLURM.items() if options.get(key, "").isdigit()}
    if "SLURM_NTASKS" not in known and "SLURM_NNODES" in known and "SLURM_NTASKS_PER_NODE" in known:
        known["SLURM_NTASKS"] = str(int(known["SLURM_NNODES"]) * int(known["SLURM_NTASKS_PER_NODE"]))
    return known


def _options(launcher: Sequence[Text]) -> dict[str, str]:
    """A launcher's options by long name; a value that is not known is ``?NAME``."""
    found: dict[str, str] = {}
    for i, word in enumerate(launcher):
        text = plain(word)
        if not text.startswith("-"):
            continue
        name, equals, value = text.partition("=")
        if not equals and len(name) > 2 and name[:2] in _SHORT and name[2:].isdigit():
            name, value = name[:2], name[2:]
        elif not equals:
            following = launcher[i + 1] if i + 1 < len(launcher) else ()
            value = f"?{unknown(following)}" if unknown(following) else plain(following)
        elif lacking := unknown(word):
            value = f"?{lacking}"
        key = _SHORT.get(name) or name.lstrip("-").replace("_", "-")
        if key == "gres":
            key, value = "gpus-per-node", value.partition("gpu:")[2]
        if key in ("gpus-per-node", "gpus", "gpus-per-task") and ":" in value:
            found["constraint"], _, value = value.rpartition(":")
        found[key] = value
    return found


def launches(shell: Shell) -> list[Launch]:
    """Every start of a Python program that the script reaches, in order."""
    found: list[Launch] = []
    at = 0
    while at < len(shell.commands):
        found += _launches(shell, shell.commands[at], [], 0)
        at += 1
    return found


def _launches(shell: Shell, command: Command, outer: list[Text], depth: int) -> list[Launch]:
    """The programs that one command starts, directly or through shells that it starts."""
    if depth > _MOST_NESTED:
        return []
    for i, word in enumerate(command.words):
        name = PurePosixPath(plain(word)).name
        if name == "eval":
            return _inner(shell, _spaced(command.words[i + 1 :]), [*outer, *command.words[:i]], depth)
        if name in SHELLS:
            return _through_shell(shell, command, i, outer, depth)
        module = plain(command.words[i - 1]) == "-m" if i else False
        if (name.endswith(".py") or module) and plain(word) not in _TORCH:
            launcher = [*outer, *command.words[:i]]
            return [Launch(plain(word), line_of(word) or command.line, list(command.words[i + 1 :]), launcher)]
    for i, word in enumerate(command.words):
        if plain(word).endswith(SCRIPT_SUFFIXES):
            return _script(shell, word, [*outer, *command.words[:i]], depth)
    return []


def _through_shell(shell: Shell, command: Command, at: int, outer: list[Text], depth: int) -> list[Launch]:
    """What ``bash -c STRING``, ``bash FILE`` or ``bash <<EOF`` starts."""
    outer, rest = [*outer, *command.words[:at]], command.words[at + 1 :]
    for i, word in enumerate(rest):
        text = plain(word)
        if re.fullmatch(r"-[a-z]*c", text) and i + 1 < len(rest):
            return _inner(shell, rest[i + 1], outer, depth)
        if not text.startswith("-"):
            return _script(shell, word, outer, depth)
    return _inner(shell, command.stdin, outer, depth) if command.stdin else []


def _script(shell: Shell, name: Text, outer: list[Text], depth: int) -> list[Launch]:
    """What another script starts, where its text is at hand."""
    file = plain(name)
    if file in shell.files:
        return _inner(shell, shell.files[file], outer, depth)
    text = shell.included(file) if file.endswith(SCRIPT_SUFFIXES) else None
    return _inner(shell, (Piece(text, 1),), outer, depth) if text is not None else []


def _inner(shell: Shell, text: Text, outer: list[Text], depth: int) -> list[Launch]:
    """The programs that a string of shell starts, in the state that the script has reached."""
    start = len(shell.commands)
    shell.deeper(lambda: shell.follow(text))
    inner = shell.commands[start:]
    del shell.commands[start:]
    return [launch for command in inner for launch in _launches(shell, command, outer, depth + 1)]


def _spaced(parts: Sequence[Text]) -> Text:
    return tuple(piece for text in parts for piece in (*text, Piece(" ", line_of(text))))


def gpus_of(launch: Launch, sbatch: dict[str, str]) -> Gpus:
    """On how many GPUs a launch starts its ranks, and on which."""
    given = _options(launch.launcher)
    names = {PurePosixPath(plain(word)).name for word in launch.launcher}
    merged = sbatch | given
    torch = bool(names & set(_TORCH))
    if torch:
        per_node = _first(given, "nproc-per-node", default=sbatch.get("gpus-per-node", "1"))
        if per_node in ("gpu", "auto"):
            per_node = sbatch.get("gpus-per-node", "?the GPUs of a node")
        nodes = _first(given, "nnodes", default=_first(merged, "nodes", default="1") if "srun" in names else "1")
        nodes = nodes.rpartition(":")[2]
    elif "deepspeed" in names:
        nodes, per_node = _first(given, "num-nodes", default="1"), _first(given, "num-gpus", default="?--num_gpus")
    elif "accelerate" in names:
        nodes, per_node = "1", _first(given, "num-processes", default="?--num_processes")
    elif names & {"mpirun", "mpiexec"}:
        nodes, per_node = "1", _first(given, "ntasks", "np", "n", default="?-np")
    elif "srun" in names:
        nodes, per_node = _of_srun(merged)
    elif any(name.startswith("python") for name in names):
        nodes, per_node = "1", "1"
    else:
        first = launch.launcher[0] if launch.launcher else ()
        return Gpus(lacking=unknown(first), launcher=plain(first) or launch.program, line=launch.line)
    return _counted(nodes, per_node, merged, launch.line)


def _first(options: dict[str, str], *keys: str, default: str) -> str:
    return next((options[key] for key in keys if options.get(key)), default)


def _of_srun(options: dict[str, str]) -> tuple[str, str]:
    """The nodes, and the tasks per node, of ranks that srun starts one by one."""
    nodes = _first(options, "nodes", default="1").rpartition("-")[2]
    per_node = _first(options, "ntasks-per-node", default="")
    tasks = _first(options, "ntasks", default="")
    if not per_node and tasks.isdigit() and nodes.isdigit():
        per_node = str(max(int(tasks) // int(nodes), 1))
    return nodes, per_node or _first(options, "gpus-per-node", default="1")


def _counted(nodes: str, per_node: str, options: dict[str, str], line: int) -> Gpus:
    gpu = next((name for name in gpu_names() if name in options.get("constraint", "").lower()), "")
    for text in (nodes, per_node):
        if not text.isdigit() or not int(text):
            return Gpus(lacking=text.lstrip("?") or "the number of GPUs", line=line, gpu=gpu)
    return Gpus(int(nodes) * int(per_node), int(per_node), line=line, gpu=gpu)


def best(found: list[Launch], score: Callable[[Launch], int]) -> Launch | None:
    """The launch with the highest score; of several, the first. None where no launch scores."""
    scored = [(score(launch), -i, launch) for i, launch in enumerate(found)]
    top = max(scored, default=(0, 0, None), key=lambda item: item[:2])
    return top[2] if top[0] else None


def option_words(variable: Sequence[Text]) -> list[Text]:
    """The words that a variable's elements divide into."""
    return [word for element in variable for word in words(element)]
