"""Malformed input for every command that needs no NeMo: seeded cases, run in one process.

A case is a command line and the files that it names. Whatever it holds, the command ends with exit code 0, or with 2
and one sentence, within the time limit. A longer campaign::

    python -m tests.launch.fuzz --cases 20000 --seed 7
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from slipway import configs
from slipway.configs.convert import leaves
from slipway.configs.load import record_of
from slipway.configs.schema import Spec
from slipway.launch.cli.app import main
from slipway.recipes.runtime.run_files import FAILURE, RECORD

LIMIT_S = 10.0  # CPU seconds of one case; the slowest take about one
ROOT = Path(configs.__file__).parent
RECIPES = ("llama3_8b", "llama3_tiny", "mixtral_8x7b", "deepseek_v3", "nemotron3_nano_30b_a3b")
LAYOUT = ("layout.tp=2", "layout.pp=1")

TEXTS = (
    "",
    " ",
    "${nope}",
    "${oc.env:HOME}",
    "${",
    "[bold]x[/bold]",
    "[/]",
    "<script>alert(1)</script>",
    "'",
    '"',
    "a,b",
    "²",
    "٣",
    "１",
    "nan",
    "-nan",
    "inf",
    "-inf",
    "NaN",
    ".nan",
    "-0",
    "0",
    "0.0",
    "-1",
    "1e400",
    "-1e400",
    "1e-400",
    "1e308",
    "0x10",
    "1_000",
    "9" * 30,
    "-" + "9" * 30,
    "9" * 5000,
    "9" * 400 + ".5",
    "true",
    "false",
    "null",
    "none",
    "None",
    "{}",
    "[]",
    "[1]",
    "[[1]]",
    "{a: 1}",
    "[a,b",
    "{a",
    "a" * 300,
    "a/" * 3000,
    "x" * 70_000,
    "/",
    "..",
    ".",
    "../../x",
    "/dev/null",
    "/dev/full",
    "/proc/self/mem",
    "~",
    "\n",
    "a\nb",
    "\t",
    "\r",
    "\x1b[31m",
    "\x7f",
    "\u202e",
    "\ud800",
    "é",
    "日本",
    "!!python/object:os.system",
    "*",
    "?",
    "$(id)",
    "`id`",
    "; rm",
    "--help",
    "-",
    "--",
    "=",
    "a=b",
    "1.5",
    "3e0",
    "7",
    "2",
    "1e3",
    "15T",
    "0T",
    "99999999T",
    "x until y",
    "gpu",
    "fp8",
    "fp32",
    "bf16",
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -0.0,
    -1,
    1,
    3,
    10**30,
    -(10**30),
    10**400,
    1e308,
    1e-320,
    float("nan"),
    float("inf"),
    float("-inf"),
    [],
    {},
    [[]],
    [None],
    {"a": {}},
    {"": ""},
    [1, "a"],
    {"name": 1},
    *TEXTS,
)
BYTES = (
    b"",
    b"\x00",
    b"\xff\xfe\x00",
    b"\x80abc",
    b"{",
    b"[",
    b"null",
    b"1",
    b'"text"',
    b"- a\n- b",
    b"a: 1\na: 2\n",
    b"a: b: c",
    b"!!python/object/apply:os.system [id]",
    b"!tag x",
    b"&a [*a]",
    b"a: &x {b: *x}",
    b"<<: 1",
    b"? [a]\n: b",
    b"{1: 2}",
    b"\t: x",
    b"[" * 10_000,
    b"{a: " * 5_000,
    b'{"a":' * 10_000,
    b"%YAML 9",
    b"--- a\n--- b",
    b"'",
    b"x" * 100_000,
    b"2026-99-99",
    b"a: 2026-99-99",
    b"9" * 5000,
    b"a: " + b"9" * 5000,
    b"name: 0b11111111",
    b"gpu,gpus\n1",
    b"a,b\n1,2,3\n",
    b"#!/bin/bash\ntorchrun pretrain_gpt.py --num-layers 9" + b"9" * 5000,
    b"#!/bin/sh\n$(",
    b"\xef\xbb\xbfa: 1",
)


@dataclass(frozen=True)
class Case:
    """A command line, and the files that it names, by their path below the case's folder."""

    words: list[str]
    files: dict[str, bytes] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


class TooSlow(BaseException):
    """The case took more than its time."""


# --- cases


def _override(rng: random.Random) -> str:
    keys = [*leaves(Spec), *configs.files.GROUPS, "nodes", "tokens", "price", "base", "peft"]
    key = rng.choice(keys) if rng.random() < 0.95 else rng.choice(TEXTS)
    if rng.random() < 0.05:
        key = rng.choice([key + ".x", "." + key, key.upper(), "+" + key, key[:-1]])
    return f"{key}={rng.choice(TEXTS)}"


def _recipe(rng: random.Random) -> list[str]:
    return [rng.choice(RECIPES), *(LAYOUT if rng.random() < 0.9 else ())]


def overrides(rng: random.Random) -> Case:
    """Malformed values of every key."""
    command = rng.choice(["check"] * 6 + ["show", "goodput"])
    return Case([command, *_recipe(rng), *(_override(rng) for _ in range(rng.choice([1, 1, 1, 2, 3])))])


def searches(rng: random.Random) -> Case:
    """Malformed values and options of the commands that search."""
    words = [rng.choice(["plan", "advise"]), rng.choice(RECIPES[:3]), "gpus=8", _override(rng)]
    if words[0] == "plan" and rng.random() < 0.5:
        option = rng.choice(["--precisions", "--gpus", "--deadline", "--goal", "--top"])
        words += [option, rng.choice([*TEXTS, "8..16", "8,16", "30d", "all"] if option == "--gpus" else TEXTS)]
    return Case(words)


_OPTIONS = {
    "check": ("--plot", "--set"),
    "plan": ("--plot", "--top", "--precisions", "--gpus", "--deadline", "--goal"),
    "show": ("--plot", "--levers", "--schedule"),
    "goodput": ("--plot", "--deadline"),
    "report": ("--out", "--entropy"),
    "compare": ("--out",),
    "validate": ("--out",),
    "doctor": ("--only",),
    "list": ("--all",),
    "status": (),
    "explain": (),
    "weights export": ("--out", "--dtype", "--adapter"),
    "weights import": ("--out",),
    "data prepare": ("--tokenizer", "--out", "--workers", "--pattern", "--field", "--format", "--skip-bad"),
    "data tokenizer": ("--out", "--vocab-size"),
}


def command_lines(rng: random.Random) -> Case:
    """Words and options that no command expects."""
    command = rng.choice([*_OPTIONS])
    words = command.split()
    if rng.random() < 0.7 and words[0] in ("check", "plan", "show", "goodput"):
        words += [rng.choice(RECIPES[:2]), "gpus=8", *LAYOUT]
    else:
        words += rng.sample(TEXTS, rng.randint(0, 2))
    for option in rng.sample(_OPTIONS[command], min(len(_OPTIONS[command]), rng.randint(0, 2))):
        words += [option, rng.choice(TEXTS)]
    if rng.random() < 0.3:
        words.append(rng.choice(["--json", "-h", "--nope", "--json=1"]))
    return Case(words, {"file": b"x", "run/slipway": b"a file where a folder should be"})


def _cluster(rng: random.Random) -> bytes:
    if rng.random() < 0.25:
        return rng.choice(BYTES)
    lines = {
        "executor": "slurm",
        "gpu": "h100",
        "gpus_per_node": 8,
        "partition": "x",
        "time": "08:00:00",
        "env": {"A": "b"},
    }
    values: dict[str, Any] = dict(lines)
    for _ in range(rng.randint(1, 3)):
        key = rng.choice([name.removeprefix("cluster.") for name in leaves(Spec) if name.startswith("cluster.")])
        values[key] = rng.choice([*VALUES, {"A": rng.choice(VALUES)}, [rng.choice(VALUES)]])
    text = _as_yaml(values)
    if rng.random() < 0.3:
        text += rng.choice(
            ["\nexecutor: local", "\nenv: {A: b, A: c}", "\n!!set {a}", "\ntime: !x y", "\n? 1\n: 2", "\n- a"]
        )
    return text.encode("utf-8", "surrogatepass")


def _as_yaml(values: Any) -> str:
    import yaml

    return str(yaml.safe_dump(values, allow_unicode=True))


def clusters(rng: random.Random) -> Case:
    """Cluster files of every shape."""
    name = f"c{rng.getrandbits(40)}"
    path = f"{name}.{rng.choice(['yaml', 'yml'])}"
    words = [rng.choice(["check", "doctor", "show", "goodput"]), rng.choice(RECIPES[:2]), *LAYOUT, f"cluster={path}"]
    if rng.random() < 0.2:
        words[-1] = f"cluster={name}"
        return Case(words, {f"clusters/{name}.yaml": _cluster(rng)}, {"SLIPWAY_CLUSTERS": "clusters"})
    return Case(words, {path: _cluster(rng)})


def own_files(rng: random.Random) -> Case:
    """Models, GPUs, recipes and precisions of the user's own."""
    group, base = rng.choice(
        [
            ("gpu", "h100"),
            ("model", "llama3_8b"),
            ("model", "deepseek_v3"),
            ("precision", "fp8_current"),
            ("recipe", "llama3_8b"),
            ("optim", "llama3"),
            ("task", "lora"),
            ("data", "mock"),
        ]
    )
    name = f"x{rng.getrandbits(40)}"
    if rng.random() < 0.15:
        content = rng.choice(BYTES)
    else:
        path = ROOT / group / f"{base}.yaml"
        values = configs.files.parse_yaml(path) if path.is_file() else {"name": base}
        values = copy.deepcopy(values) | {"name": name}
        for _ in range(rng.choice([1, 1, 2])):
            key = rng.choice([*values, "nope", "levers"])
            if rng.random() < 0.15:
                values.pop(key, None)
            else:
                values[key] = rng.choice(VALUES)
        content = _as_yaml(values).encode("utf-8", "surrogatepass")
    words = ["check", "llama3_8b", *LAYOUT, f"{group}={name}"]
    if group == "recipe":
        words = ["check", name, *LAYOUT]
    return Case(words, {f"own/{group}/{name}.yaml": content}, {"SLIPWAY_CONFIGS": "own"})


@functools.cache
def _record() -> dict[str, Any]:
    spec = record_of(configs.load("llama3_tiny").spec)
    device = {"device": "cuda:0", "device_name": "NVIDIA H100 80GB HBM3"}
    return {"spec": spec, "world_size": 2, **device, "source": {}, "unjudged": []}


@functools.cache
def _events() -> bytes:
    """An event file of a run of eight steps, written by TensorBoard."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    from slipway.launch.runs.series import LOSS, STEP_TIME

    with tempfile.TemporaryDirectory() as folder:
        writer = EventFileWriter(folder)
        for step, loss in enumerate(np.linspace(9.0, 8.0, 8)):
            for tag, value in ((LOSS, loss), (STEP_TIME, 0.5)):
                entry = Summary(value=[Summary.Value(tag=tag, simple_value=float(value))])
                writer.add_event(Event(step=step, wall_time=1e9 + step, summary=entry))
        writer.close()
        return next(Path(folder).iterdir()).read_bytes()


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*path, key)
            yield from _paths(item, (*path, key))


def _mutated(rng: random.Random, value: dict[str, Any]) -> str:
    """``value`` as JSON, with one or two of its fields replaced, removed or nested."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 2])):
        *parents, last = rng.choice(list(_paths(value)))
        holder = functools.reduce(lambda part, key: part[key] if isinstance(part, dict) else {}, parents, value)
        if not isinstance(holder, dict):
            continue
        if rng.random() < 0.2:
            holder.pop(last, None)
        else:
            holder[last] = rng.choice([*VALUES, "DEEP", "LIST"])
    text = json.dumps(value)
    text = text.replace('"DEEP"', '{"a":' * 10_000 + "1" + "}" * 10_000)
    return text.replace('"LIST"', "[" * 10_000 + "]" * 10_000)


def _run_files(rng: random.Random, folder: str) -> dict[str, bytes]:
    files = {f"{folder}/{RECORD}": json.dumps(_record()).encode()}
    what = rng.random()
    if what < 0.6:
        files[f"{folder}/{RECORD}"] = _mutated(rng, _record()).encode()
    elif what < 0.75:
        files[f"{folder}/{RECORD}"] = rng.choice(BYTES)
    if what > 0.7:
        failure = {"step": 3, "rank": 1, "error": "ValueError", "message": "[/bold] <b> ${x}"}
        files[f"{folder}/{FAILURE}"] = rng.choice([_mutated(rng, failure).encode(), rng.choice(BYTES)])
    if rng.random() < 0.6:
        events = _events()
        if rng.random() < 0.3:
            at = rng.randrange(len(events))
            events = rng.choice([events[:at], events[:at] + b"\xff" + events[at + 1 :], rng.choice(BYTES)])
        files[f"{folder}/tensorboard/events.out.tfevents.1.x"] = events
    if rng.random() < 0.2:
        files[f"{folder}/slipway/launches.jsonl"] = rng.choice(BYTES)
    if rng.random() < 0.2:
        files[
            f"{folder}/checkpoints/{rng.choice(['a', 'x-step=3-last', 'step=' + '9' * 200, 'x--step=3'])}/weights/f"
        ] = b"x"
    return files


def run_records(rng: random.Random) -> Case:
    """Records, failures and events of runs, of every shape."""
    words = rng.choice(
        [
            ["report", "run"],
            ["status", "run"],
            ["compare", "run", "good"],
            ["explain", "run"],
            ["report", "run", "--json"],
            ["status", "run", "--json"],
            ["report", "."],
            ["status", "."],
            ["weights", "export", "run", "--out", "w"],
        ]
    )
    good = {f"good/{RECORD}": json.dumps(_record()).encode(), "good/tensorboard/events.out.tfevents.1.x": _events()}
    return Case(list(words), _run_files(rng, "run") | (good if "good" in words or "." in words else {}))


def texts(rng: random.Random) -> Case:
    """Files of other tools that are not what their name says."""
    name = rng.choice(["train.sh", "config.json", "model_config.yaml", "log.txt", "rows.csv", "args.txt", "x.bin", "d"])
    content = rng.choice(BYTES)
    if name == "config.json" and rng.random() < 0.7:
        known = {
            "model_type": "llama",
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "vocab_size": 32000,
            "num_key_value_heads": 8,
            "intermediate_size": 11008,
            "rope_theta": 1e4,
            "rope_scaling": {"type": "linear"},
            "architectures": ["LlamaForCausalLM"],
        }
        content = _mutated(rng, known).encode()
    if name == "train.sh" and rng.random() < 0.7:
        value = rng.choice(TEXTS).encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        option = rng.choice(
            ["--num-layers", "--hidden-size", "--num-attention-heads", "--tensor-model-parallel-size", "--lr"]
        )
        words = f"--num-layers 2 --hidden-size 8 {option} {value} --seq-length $N"
        content = f"N={value}\ntorchrun --nproc_per_node 8 pretrain_gpt.py {words}".encode()
    if name == "rows.csv" and rng.random() < 0.7:
        row = {
            "model": "llama3_8b",
            "gpu": "h100",
            "gpus": 8,
            "precision": "bf16",
            "tp": 1,
            "pp": 1,
            "cp": 1,
            "ep": 1,
            "mbs": 1,
            "gbs": 128,
            "seq_length": 8192,
            "tokens_per_s_per_gpu": 1000,
            "source": "x",
            "framework": "y",
        }
        row[rng.choice(list(row))] = rng.choice(TEXTS)
        content = (",".join(row) + "\n" + ",".join(map(str, row.values()))).encode("utf-8", "surrogatepass")
    path = f"{name}/x" if name == "d" else name
    command = rng.choice(["check", "check", "plan", "explain", "validate", "advise"])
    return Case([command, rng.choice([name, f"./{name}"])], {path: content})


def tokenizers(rng: random.Random) -> Case:
    """Tokenizers and corpora that are not what they should be."""
    content = rng.choice([*BYTES, b"{}", b'{"model": 1}', b'{"model": {"type": "BPE", "vocab": [], "merges": {}}}'])
    corpus = rng.choice([b"some text", *BYTES])
    name = rng.choice(["tok/tokenizer.json", "tok/tokenizer_config.json", "tok", "tok/tokenizer.json/x"])
    suffix = rng.choice(["txt", "jsonl", "json", "jsonl.gz", "jsonl.zst", "parquet", "csv", "bin"])
    words = ["data", "prepare", f"text.{suffix}", "--tokenizer", "tok", "--out", "out/x", "--workers", "1"]
    if rng.random() < 0.4:
        words = [
            "check",
            "llama3_tiny",
            *LAYOUT,
            "data.tokenizer=tok",
            f"data.paths=[{rng.choice(['a', 'out/x', 'tok'])}]",
        ]
    return Case(words, {name: content, f"text.{suffix}": corpus, "a.idx": rng.choice(BYTES), "a.bin": b""})


KINDS: tuple[tuple[Callable[[random.Random], Case], int], ...] = (
    (overrides, 8),
    (searches, 1),
    (command_lines, 3),
    (clusters, 3),
    (own_files, 4),
    (run_records, 4),
    (texts, 3),
    (tokenizers, 1),
)


def cases(count: int, seed: int) -> Iterator[Case]:
    """``count`` cases, the same for the same seed."""
    rng = random.Random(seed)
    kinds, weights = zip(*KINDS, strict=True)
    for _ in range(count):
        yield rng.choices(kinds, weights)[0](rng)


# --- running them


def _stop(*_: Any) -> None:
    raise TooSlow


def fault(case: Case, folder: Path) -> str:
    """What is wrong with how the command ended; empty where nothing is."""
    _write(case, folder)
    out, err = _Stream(), _Stream()
    before = signal.signal(signal.SIGPROF, _stop)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    try:
        with (
            contextlib.chdir(folder),
            mock.patch.dict(os.environ, case.environment),
            mock.patch.object(sys, "argv", ["slipway", *case.words]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            main()
    except SystemExit as stop:
        code = stop.code
    except TooSlow:
        return f"took more than {LIMIT_S:g} s"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    return _judge(case, code, err.getvalue())


class _Stream(io.StringIO):
    encoding = "utf-8"


def _judge(case: Case, code: Any, said: str) -> str:
    if "Traceback" in said:
        return "a traceback: " + said[said.rindex("Traceback") :][-1500:]
    if code in (0, 2) or (code == 1 and case.words[0] in ("explain", "status")):  # 1: what was examined is bad
        last = said.strip().splitlines()[-1:] or [""]
        if code == 2 and not last[0].startswith("slipway: "):
            return f"exit code 2 without a sentence: {said[-300:]!r}"
        return "" if len(last[0]) < 3000 else f"a sentence of {len(last[0])} characters"
    return f"exit code {code}: {said[-300:]!r}"


def _write(case: Case, folder: Path) -> None:
    for name, content in case.files.items():
        path = folder / name
        with contextlib.suppress(OSError):  # a file where another file of the case is
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def campaign(count: int, seed: int, folder: Path) -> Iterator[tuple[int, Case, str]]:
    """The cases that end badly, with their number."""
    for number, case in enumerate(cases(count, seed)):
        here = folder / str(number)
        here.mkdir()
        if wrong := fault(case, here):
            yield number, case, wrong
        shutil.rmtree(here, ignore_errors=True)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    found = 0
    with tempfile.TemporaryDirectory() as folder:
        for number, case, wrong in campaign(given.cases, given.seed, Path(folder)):
            found += 1
            words = " ".join(word if len(word) < 80 else word[:60] + f"...({len(word)})" for word in case.words)
            files = {name: content[:200] for name, content in case.files.items()}
            print(f"#{number} {words!r} {files}\n    {wrong}\n", flush=True)
    print(f"{given.cases} cases, {found} ended badly")


if __name__ == "__main__":
    _main()
