"""Megatron-LM's model_config.yaml: ``MODEL_ARGS`` with a value for each argument, as its functional tests keep them."""

from __future__ import annotations

import re
from typing import Any

import yaml

from slipway.configs import Refusal
from slipway.launch.foreign.megatron.arguments import definitions, parse
from slipway.launch.foreign.megatron.read import fewest_gpus, reading_of
from slipway.launch.foreign.megatron.run import Machines
from slipway.launch.foreign.reading import File, Reading, Request, require_whole, yaml_of
from slipway.launch.foreign.shell.characters import quoted_word
from slipway.launch.foreign.shell.evaluate import Shell
from slipway.launch.foreign.shell.text import Piece, Text, plain

NAME = "Megatron-LM model_config.yaml"
_ARGUMENTS = re.compile(r"^MODEL_ARGS\s*:", re.MULTILINE)
_KEY = re.compile(r"^\s+(--[\w-]+)\s*:", re.MULTILINE)


class _Text(yaml.SafeLoader):
    """YAML whose scalars stay as they are written."""

    yaml_implicit_resolvers: dict[str, Any] = {"<": [("tag:yaml.org,2002:merge", re.compile("^<<$"))]}


def recognizes(file: File) -> bool:
    """Whether the file is YAML with MODEL_ARGS."""
    return file.path.suffix in (".yaml", ".yml") and bool(_ARGUMENTS.search(file.text))


def read(file: File, request: Request) -> Reading:
    """The run that the arguments describe. The file does not say on how many GPUs: one node, unless gpus= is given."""
    require_whole(file)
    content = yaml_of(file, _Text)
    given = content.get("MODEL_ARGS")
    if not isinstance(given, dict) or not given:
        raise Refusal(f"{file.path} has no arguments under MODEL_ARGS", "Give a file that has them.")
    lines = {found[1]: file.text.count("\n", 0, found.start(1)) + 1 for found in _KEY.finditer(file.text)}
    environment = {str(k): str(v) for k, v in (content.get("ENV_VARS") or {}).items()}
    shell = Shell(file.name, settings=request.settings, environment=environment)
    words: list[Text] = []
    for key, value in given.items():
        words += _words(str(key), value, lines.get(str(key), 1), shell)
    assumed: list[str] = []
    args = parse(words, file.name)
    machines = Machines(environment=environment)
    if not any(key.startswith(("gpus=", "nodes=")) for key in request.overrides):
        machines.gpus = fewest_gpus(args)
        assumed.append(
            f"{machines.gpus} GPUs, the whole nodes that its parallel sizes fill; gpus= gives another number"
        )
    return reading_of(NAME, file, request, args, machines, assumed)


def _words(flag: str, value: Any, line: int, shell: Shell) -> list[Text]:
    """One argument as words: true is a switch, [a b] and a list are several values."""
    if isinstance(value, dict):
        raise Refusal(f"{shell.where} line {line}: {flag} holds a mapping", "Give it one value.")
    head: Text = (Piece(flag, line),)
    if value == "true":
        return [head]
    if value in ("false", None, "", "null"):
        return []
    if isinstance(value, str) and re.fullmatch(r"\[[^\[\]]*\]", value):
        value = value[1:-1].split()
    items = [str(item) for item in value] if isinstance(value, list) else [str(value)]
    made = definitions().get(flag)
    if made and made.nargs and len(items) == 1:
        items = items[0].split()
    return [head, *(_expanded(item.replace("\\", ""), line, shell) for item in items)]


def _expanded(text: str, line: int, shell: Shell) -> Text:
    """A value with its variables."""
    value = shell.joined(quoted_word((Piece(text, line),), shell.where)) if "$" in text else (Piece(text, line),)
    return value if plain(value) else (Piece(text, line),)
