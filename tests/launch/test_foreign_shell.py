"""Shell scripts as data: what a script would pass to its training program is found without running anything."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from slipway.configs import Refusal
from slipway.launch.foreign.shell.arithmetic import NotArithmetic, compute
from slipway.launch.foreign.shell.evaluate import Shell
from slipway.launch.foreign.shell.launcher import gpus_of, launches, sbatch_options, slurm_environment
from slipway.launch.foreign.shell.text import Piece, line_of, plain, words

# Each prints its arguments with bash. They use what launch scripts use, and nothing that only a machine knows.
SCRIPTS = {
    "variables": 'A=1\nB="two words"\nrun $A "$B" $B ${A}x "${A}"y\n',
    "array": 'ARGS=(\n  --a 1 # a comment\n  --b "x y"\n)\nARGS+=(--c)\nrun "${ARGS[@]}" ${ARGS[@]} ${#ARGS[@]}\n',
    "elements are divided": 'A=("--split 1,2" "--x")\nrun ${A[@]}\n',
    "defaults": "run ${X:-8} ${X-} ${Y:=4} $Y ${Y:+set} ${Z:+set}\n",
    "arithmetic": "N=4\nrun $((N * 8)) $(( $N + ${N} )) $((17 / N)) $((17 % 5)) $((N > 3 ? 1 : 2))\n",
    "continuation": 'run --a \\\n  1 \\\n  --b\nX=" --c 1 \\\n --d 2"\nrun $X\n',
    "if": 'T=fp8\nif [ "$T" = bf16 ]; then\n A=1\nelif [[ $T == fp* && -n "$T" ]]; then\n A=2\nelse\n A=3\nfi\nrun $A',
    "numbers": 'N=9\nif [ $N -gt 8 ]; then run big; else run small; fi\n[ "$N" -eq 9 ] && run nine || run other\n',
    "case": 'M=8b\ncase "$M" in\n  "1b"|2b) L=1 ;;\n  8b) L=32;;\n  *) exit 1\nesac\nrun $L\n',
    "for": 'for i in 1 2 3; do\n A+=" --x$i"\ndone\nrun $A\n',
    "while": "I=0\nwhile [ $I -lt 3 ]; do I=$((I+1)); done\nrun $I\n",
    "function": 'go() {\n local n=$1\n run "$n" "$@"\n}\ngo a b\n',
    "here-document": "read -r -d '' OPTS <<EOF\n--a 1\n--b 2\nEOF\nrun $OPTS\n",
    "quotes": 'A=\'single $X\'\nrun "$A" \'b c\' d\\ e "f \\" g"\n',
    "cut": "F=/data/model.bin\nrun ${F##*/} ${F%.bin} ${F/data/other} ${F%%.*}\n",
    "echo": 'run $(echo a b) "$(basename /x/y.txt)" `echo c`\n',
    "eval": 'CMD="run --a 1"\neval $CMD\n',
    "subshell and braces": "(run a); { run b; }\nrun c > /dev/null 2>&1\n",
    "export": 'export A=1 B="x y"\nrun $A "$B"\n',
}
RUN = "run() { printf '<%s>' \"$@\"; echo; }\n"


def _ours(script: str) -> str:
    shell = Shell("script.sh")
    shell.follow((Piece(script, 1),))
    for command in shell.commands[:]:  # what eval passes on
        if plain(command.words[0]) == "eval":
            shell.commands.remove(command)
            shell.follow(tuple(piece for word in command.words[1:] for piece in (*word, Piece(" ", 1))))
    return "".join(
        "".join(f"<{plain(word)}>" for word in command.words[1:]) + "\n"
        for command in shell.commands
        if plain(command.words[0]) == "run"
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_words_are_those_that_bash_passes(name: str) -> None:
    bash = subprocess.run(
        ["bash", "-c", RUN + SCRIPTS[name].replace("> /dev/null 2>&1", "")], capture_output=True, text=True
    )
    assert bash.stdout and _ours(SCRIPTS[name]) == bash.stdout


def test_each_word_keeps_its_line_through_arrays_and_strings() -> None:
    shell = Shell("script.sh")
    shell.follow((Piece('A=(\n  --a 1\n  --b 2\n)\nB=" --c 3 \\\n  --d 4"\nrun ${A[@]} $B\n', 1),))
    lines = {plain(word): line_of(word) for word in shell.commands[0].words if plain(word).startswith("--")}
    assert lines == {"--a": 2, "--b": 3, "--c": 5, "--d": 6}


def test_words_of_several_lines_keep_their_lines() -> None:
    assert [(plain(word), line_of(word)) for word in words((Piece("--a 1\n\n--b", 5),))] == [
        ("--a", 5),
        ("1", 5),
        ("--b", 7),
    ]


def test_nothing_is_executed(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    shell = Shell("script.sh")
    shell.follow(
        (Piece(f"touch {marker}\nX=$(touch {marker})\n: `touch {marker}`\nif touch {marker}; then :; fi\n", 1),)
    )
    assert not marker.exists()


def test_a_value_that_a_command_computes_is_asked_for_by_its_variable() -> None:
    shell = Shell("script.sh")
    shell.follow((Piece("GPUS=$(nvidia-smi -L | wc -l)\nWORLD=$((GPUS * 2))\nrun --n $WORLD\n", 1),))
    assert [piece.unknown for piece in shell.commands[0].words[2]] == ["GPUS"]
    given = Shell("script.sh", settings={"GPUS": "8"})
    given.follow((Piece("GPUS=$(nvidia-smi -L | wc -l)\nWORLD=$((GPUS * 2))\nrun --n $WORLD\n", 1),))
    assert plain(given.commands[0].words[2]) == "16"


@pytest.mark.parametrize(
    "script",
    [
        "case x in\n  a;b) run;;\nesac\n",
        "for i in a & b; do run; done\n",
        "[[ a ;; b ]]\n",
        "A=(1;2)\n",
        "if [ 1 = 1 ]; then\n run\n",
        "run 'open\n",
        "A=(1 2\n",
        "cat <<EOF\nno end\n",
        "for i in 1; do run\n",
        "run ${A\n",
    ],
)
def test_half_a_script_is_one_sentence_with_its_line(script: str) -> None:
    with pytest.raises(Refusal, match=r"^script.sh line \d+: "):
        Shell("script.sh").follow((Piece(script, 1),))


def test_a_loop_without_end_is_refused() -> None:
    with pytest.raises(Refusal, match="does not end"):
        Shell("script.sh").follow((Piece("while true; do run; done\n", 1),))
    with pytest.raises(Refusal, match="calls itself"):
        Shell("script.sh").follow((Piece("f() { f; }\nf\n", 1),))


@pytest.mark.parametrize("expression", ["9**9**9**9", "1/0", "__import__('os')", "a.b", "1 <<"])
def test_arithmetic_is_bounded_and_calls_nothing(expression: str) -> None:
    with pytest.raises(NotArithmetic):
        compute(expression, lambda name: 1)


LAUNCHERS = {
    "torchrun --nproc_per_node 8 --nnodes=4 x.py": 32,
    "torchrun --nproc-per-node=4 x.py": 4,
    "python -m torch.distributed.run --nproc_per_node 2 --nnodes 3 x.py": 6,
    "#SBATCH --nodes=4\n#SBATCH --gpus-per-node=8\nsrun torchrun --nproc_per_node 8 --nnodes $SLURM_NNODES x.py": 32,
    "#SBATCH -N 2\n#SBATCH --ntasks-per-node=8\nsrun python x.py": 16,
    "#SBATCH --nodes=2\n#SBATCH --gres=gpu:h100:4\nsrun --ntasks-per-node=4 python x.py": 8,
    "srun -N2 -n 16 python x.py": 16,
    '#SBATCH --nodes=2\nCMD="torchrun --nnodes 2 --nproc_per_node 8 x.py"\nsrun bash -c "$CMD"': 16,
    "mpirun -np 24 python x.py": 24,
    "deepspeed --num_nodes 2 --num_gpus 8 x.py": 16,
    "python x.py": 1,
    "CUDA_DEVICE_MAX_CONNECTIONS=1 torchrun --nproc_per_node 8 x.py": 8,
}


@pytest.mark.parametrize("script", LAUNCHERS)
def test_the_number_of_gpus_is_what_the_launcher_starts(script: str) -> None:
    options = sbatch_options(script)
    shell = Shell("script.sh", environment=slurm_environment(options))
    shell.follow((Piece(script, 1),))
    (launch,) = launches(shell)
    assert gpus_of(launch, options).count == LAUNCHERS[script]
