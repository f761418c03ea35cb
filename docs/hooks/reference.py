"""The reference pages, generated from the code when MkDocs builds the site: commands, keys, rules, recipes."""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # the site documents this checkout, not another installed version

WIDTH = 84  # columns of the commands' help


def on_files(files: Any, config: Any) -> Any:
    """MkDocs's hook: add the generated pages to the files of the site."""
    from mkdocs.structure.files import File

    for name, content in pages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    return files


def pages() -> dict[str, str]:
    """Each generated page's Markdown, by its name."""
    return {
        "commands": commands(),
        "keys": keys(),
        "rules": rules(),
        "recipes": recipes(),
        "levers": levers(),
        "failures": failures(),
    }


def cell(text: str) -> str:
    """Plain text that can stand in a Markdown table: nothing in it is markup."""
    parts = re.split(r"``(.+?)``", " ".join(text.split()))  # every second part is code
    return "".join(code(part) if i % 2 else _plain(part) for i, part in enumerate(parts))


def _plain(text: str) -> str:
    return re.sub(r"[|\[\]*_`]", lambda match: f"&#{ord(match[0])};", html.escape(text, quote=False))


def code(text: str) -> str:
    return f"<code>{_plain(text)}</code>" if text else ""


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


# Commands


def commands() -> str:
    """Every command by section, with its own help text."""
    import click

    from slipway.launch.cli.answer import COMMANDS, Section
    from slipway.launch.cli.app import app

    out = [
        "# Commands",
        "Every command takes `--help`, and every command that answers a question takes `--json`. Exit codes: 0 for "
        "success, 1 for a failure, 2 for a refusal, which is one sentence on standard error. Overrides (`KEY=VALUE`) "
        "are the same everywhere: see [Keys](keys.md).",
    ]
    top = click.Context(app, info_name="slipway", max_content_width=WIDTH, terminal_width=WIDTH)
    named = {name: app.get_command(top, name) for name in app.list_commands(top)}
    for section in Section:
        out.append(f"## {section.value}")
        for name, command in named.items():
            if COMMANDS[name].section is section and command is not None:
                out += _command(command, name, top, level=3)
    return "\n\n".join(out) + "\n"


def _command(command: Any, name: str, parent: Any, level: int) -> list[str]:
    import click

    context = click.Context(command, info_name=name, parent=parent, max_content_width=WIDTH, terminal_width=WIDTH)
    out = [f"{'#' * level} {context.command_path}", f"```text\n{command.get_help(context)}\n```"]
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            if found is not None:
                out += _command(found, inner, context, level + 1)
    return out


# Keys


def keys() -> str:
    """Every key of a recipe, and every key of the files that describe a model, a GPU or a cluster."""
    from slipway.configs.describe import describe_groups

    out = [
        "# Keys",
        "A recipe is a set of values. Each command takes any of them as `KEY=VALUE`, for example "
        "`slipway check llama3_8b gpus=16 layout.tp=2 layout.gbs=256`. `slipway show NAME` prints every value of a "
        "recipe and which file or override set it. A key such as `gpu`, `model` or `precision` without a dot chooses "
        "a file of that group: `gpu=h200`. In the factories for the `nemo` command, the most common keys have short "
        "names, for example `tp=2`.",
    ]
    for group in describe_groups():
        out.append(f"## {group.group or 'The run itself'}")
        if group.description:
            out.append(cell(group.description))
        out.append(
            table(
                ("key", "type", "default", "legal", "description"),
                (
                    (
                        code(key.key),
                        code(key.type if not key.choices else "choice"),
                        "required" if key.required else code(_default(key.default)),
                        ", ".join(code(choice) for choice in key.choices) or cell(key.legal),
                        cell(key.description),
                    )
                    for key in group.keys
                ),
            )
        )
    return "\n\n".join(out) + "\n"


def _default(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return "''" if value == "" else str(value)


# Rules


def rules() -> str:
    """Every rule of the planner, with its reason and its source."""
    from slipway.planner import RULES

    out = [
        "# Rules",
        "A layout, precision or batch is legal if it breaks none of these rules. `slipway check` names each broken "
        "rule and the smallest change that fixes it. Rules of the kind *advice* warn and refuse nothing.",
    ]
    return "\n\n".join([*out, *(_rule(rule) for rule in RULES)]) + "\n"


# What happens without the rule, by the phase in which the training stack would object.
PHASES = {
    "build": "NeMo or Megatron-Core refuses to build the model or its process groups.",
    "step": "Training fails in the first step, or goes on with wrong gradients.",
    "never": "NeMo builds a different model without an error.",
}

FRAMEWORKS = {
    "nemo": "these recipes, not files of Megatron-LM",
    "megatron_lm": "files of Megatron-LM, not these recipes",
}


def _rule(rule: Any) -> str:
    advice = rule.severity.value == "advice"
    effect = "Advice only: the run is legal, and `check` prints a warning." if advice else PHASES[rule.phase.value]
    return "\n\n".join(
        [
            f"### {rule.id}",
            f"{_sentence(rule.says)}",
            f"*Why:* {_sentence(rule.why)}",
            f"*If broken:* {effect}",
            *([f"*Holds for:* {FRAMEWORKS[rule.only_in.value]}."] if rule.only_in else []),
            f"*Source:* {cell(rule.source)}",
        ]
    )


def _sentence(text: str) -> str:
    """Text with a capital letter and a full stop; a first word such as `pp` in code style stays as it is."""
    text = text.strip()
    start = text if re.match(r"[a-z]+[_=\d]", text) else text[:1].upper() + text[1:]
    return cell(start) + ("" if start.endswith((".", "?")) else ".")


# Recipes


def recipes() -> str:
    """Every recipe with its model's size and the layout that it ships with or that the planner chooses."""
    from slipway import configs, planner

    rows = []
    for name in configs.recipe_names():
        spec = configs.load(name).spec
        counted = planner.parameters(spec)
        active = f"{counted.active / 1e9:.1f}" if counted.active != counted.total else ""
        rows.append(
            (
                code(name),
                f"{counted.total / 1e9:.2f}",
                active,
                str(spec.gpus),
                spec.gpu.name,
                f"{spec.seq_length:,}",
                f"{spec.layout.gbs:,}",
                cell(spec.model.source),
            )
        )
    return (
        "\n\n".join(
            [
                "# Recipes",
                "Each of these names works with every command and with `nemo llm pretrain --factory NAME`. GPU, "
                "sequence length and batch are the defaults; each can be overridden.",
                table(
                    (
                        "recipe",
                        "parameters, 1e9",
                        "active, 1e9",
                        "GPUs",
                        "GPU",
                        "sequence length",
                        "batch, sequences",
                        "source of the model's sizes",
                    ),
                    rows,
                ),
            ]
        )
        + "\n"
    )


# Levers

COMPARED = ("llama3_8b", "llama3_70b", "llama31_405b", "mixtral_8x7b", "qwen3_30b_a3b", "deepseek_v3")
COMPARED_ON = ("h100", "gb200")


def levers() -> str:
    """Our recipes' levers beside those of NVIDIA's performance recipes."""
    out = [
        "# Levers",
        "What makes a run fast and is not its layout: overlap, kernels, memory savers, the environment of a rank. Each "
        "is one key. A run takes over the levers of NVIDIA's own recipe for its model, GPU and precision where they "
        "change speed alone, are legal with its layout, and fit; a lever that you set stays as you set it. "
        "`slipway show NAME --levers` compares any run with NVIDIA's; below are some defaults in bf16.",
        "NVIDIA's values are those of the scripts and recipes that NeMo 2.7.3 installs "
        "(`python -m slipway.recipes.nvidia_levers` runs them and reads what they set), and where those leave a value "
        "to a table that is in no package, those of Megatron-Bridge v0.5.1. All are in configs/levers/nvidia.csv.",
    ]
    for name in COMPARED:
        for gpu in COMPARED_ON:
            out += _levers_of(name, gpu)
    return "\n\n".join(out) + "\n"


def _levers_of(name: str, gpu: str) -> list[str]:
    from slipway import configs, planner
    from slipway.planner import nvidia
    from slipway.planner.layout import describe

    resolved = configs.load(name, [f"gpu={gpu}"])
    spec = planner.complete(resolved)
    compared = nvidia.compare(spec, resolved.given)
    differ = [each for each in compared if each.why]
    same = [f"{code(each.key)} {cell(each.ours)}" for each in compared if each.theirs and not each.why]
    rows = [(code(each.key), cell(each.theirs), cell(each.ours), _sentence(each.why)) for each in differ]
    return [
        f"## {name} on {gpu.upper()}",
        cell(f"{spec.gpus} GPUs, {describe(spec)}."),
        "As NVIDIA's: " + (", ".join(dict.fromkeys(same)) or "none") + ".",
        table(("lever", "NVIDIA", "ours", "why"), rows) if rows else "",
    ]


# Failures

KINDS = {
    "cause": "Causes",
    "death": "Deaths of a process",
    "error": "Errors that no class names",
    "symptom": "Symptoms",
    "ending": "Endings by the scheduler",
    "echo": "Echoes",
}


def failures() -> str:
    """Every class of failure that `explain` and `status` know."""
    from slipway.launch.diagnosis.classes import failure_classes

    out = [
        "# Failures",
        "`slipway explain LOG|RUN` and `slipway status RUN` give a failed run one of these classes. Of all lines in "
        "the logs of a run, the most telling kind counts, in the order of this page, and of one kind the earliest "
        "line. What was followed by more steps did not end the run, and what is printed after the scheduler has ended "
        "the job follows from that. The table is configs/failures.yaml.",
    ]
    for kind, heading in KINDS.items():
        out.append(f"## {heading}")
        out += [_failure(known) for known in failure_classes().values() if known.kind.value == kind]
    return "\n\n".join(out) + "\n"


def _failure(known: Any) -> str:
    source = known.source if known.source.startswith("http") else cell(known.source)
    source = f"<{source}>" if source.startswith("http") else source
    return "\n\n".join(
        [
            f"### {known.name}",
            f"**{_sentence(known.title)}** {_sentence(known.meaning)}",
            f"*Do:* {_sentence(known.action)}",
            f"*For example:* {code(known.example)}",
            f"*Source:* {source}",
        ]
    )
