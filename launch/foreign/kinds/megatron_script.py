"""A launch script of Megatron-LM: bash, SLURM batch, or a file of shell variables that hold arguments."""

from __future__ import annotations

from slipway.configs import Refusal
from slipway.launch.foreign.megatron.arguments import Unknown, definitions, needs, parse
from slipway.launch.foreign.megatron.read import reading_of
from slipway.launch.foreign.megatron.run import Machines
from slipway.launch.foreign.reading import NO_RUN, File, Reading, Request, require_whole
from slipway.launch.foreign.shell.evaluate import Shell
from slipway.launch.foreign.shell.launcher import (
    LAUNCHERS,
    SCRIPT_SUFFIXES,
    Launch,
    best,
    gpus_of,
    launches,
    option_words,
    sbatch_options,
    slurm_environment,
)
from slipway.launch.foreign.shell.text import Piece, Text, plain

NAME = "Megatron-LM launch script"
_MODEL_FLAGS = ("--num-layers", "--encoder-num-layers", "--hidden-size", "--micro-batch-size")
_FEWEST_FLAGS = 3  # of Megatron-LM, that a command must have to be taken for its launch
_LARGEST_INCLUDED = 1 << 20  # bytes of a script that another one reads


def recognizes(file: File) -> bool:
    """Whether the file is a shell script."""
    return file.path.suffix in SCRIPT_SUFFIXES or (file.text.startswith("#!") and "sh" in file.text.split("\n", 1)[0])


def read(file: File, request: Request) -> Reading:
    """The run that the script launches."""
    require_whole(file)
    sbatch = sbatch_options(file.text)
    beside: list[str] = []

    def included(name: str) -> str | None:
        text = _beside(file, name)
        beside.extend([text] if text else [])
        return text

    shell = Shell(file.name, settings=request.settings, environment=slurm_environment(sbatch), included=included)
    shell.follow((Piece(file.text, 1),))
    found = launches(shell)
    launch = best(found, lambda found: _score(found.arguments))
    assumed = list(shell.assumed)
    if launch is None:
        launch = _from_variables(shell)
    if launch is None:
        raise _no_launch(file, shell, found)
    for text in beside:
        sbatch |= sbatch_options(text)
    machines = _machines(file, request, launch, sbatch, shell)
    args = parse(launch.arguments, file.name)
    return reading_of(NAME, file, request, args, machines, assumed)


def _score(arguments: list[Text]) -> int:
    """How many flags of Megatron-LM a command has; 0 where it has too few of them."""
    flags = [plain(word).partition("=")[0] for word in arguments]
    known = sum(flag in definitions() for flag in flags)
    return known if known >= _FEWEST_FLAGS and any(flag in flags for flag in _MODEL_FLAGS) else 0


def _from_variables(shell: Shell) -> Launch | None:
    """The arguments of a script that only defines them, in variables that another script passes on."""
    held = {name: option_words(value) for name, value in shell.variables.items()}
    holding = {name: words for name, words in held.items() if _score(words)}
    if not holding:
        return None
    largest = max(holding.values(), key=len)
    return Launch("", 1, largest)


def _machines(file: File, request: Request, launch: Launch, sbatch: dict[str, str], shell: Shell) -> Machines:
    """What starts the ranks."""
    environment = {
        name: plain(value[0]) for name, value in shell.variables.items() if name == "PYTORCH_CUDA_ALLOC_CONF" and value
    }
    if not launch.program:
        return Machines(environment=environment)
    gpus = gpus_of(launch, sbatch)
    overridden = any(key.startswith(("gpus=", "nodes=")) for key in request.overrides)
    if gpus.launcher and not gpus.lacking and not overridden:
        raise Refusal(
            f"{file.name} line {gpus.line}: how many ranks {gpus.launcher} starts is not known; launchers that are: "
            f"{', '.join(LAUNCHERS)}, python",
            "Give gpus=, for example gpus=64.",
        )
    if not gpus.count and not overridden:
        refusal = needs(file.name, Unknown(gpus.lacking, gpus.line), "the number of GPUs")
        raise Refusal(refusal.message, f"{refusal.fix.rstrip('.')}, or gpus=64.")
    return Machines(gpus.count, gpus.per_node, gpus.gpu, launch.program, environment)


def _no_launch(file: File, shell: Shell, found: list[Launch]) -> Refusal:
    """Why no launch of Megatron-LM was found."""
    if shell.ended:
        return Refusal(
            f"{file.name} ends on {shell.ended}, before it launches Megatron-LM",
            "Give what it asks for with --set NAME=VALUE.",
        )
    if found:
        names = ", ".join(dict.fromkeys(f"{launch.program} (line {launch.line})" for launch in found[:3]))
        return Refusal(
            f"{file.name} launches {names}, without arguments of Megatron-LM that describe a model",
            "Give the script that has them.",
            NO_RUN,
        )
    fix = "Give the script that starts the training program."
    return Refusal(f"{file.name} launches no Python program", fix, NO_RUN)


def _beside(file: File, name: str) -> str | None:
    """The text of another script by its path, from the script's own folder; None where it is not there."""
    path = file.path.parent / name
    if name.startswith("/") or path.suffix not in SCRIPT_SUFFIXES:
        return None
    try:
        if path.is_file() and path.stat().st_size <= _LARGEST_INCLUDED and path.resolve() != file.path.resolve():
            return path.read_text()
    except (OSError, ValueError):
        pass
    return None
