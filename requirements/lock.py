"""Write requirements/lock.txt and requirements/cuda.txt: `make lock`.

lock.txt pins every package that the extras in pyproject.toml need, with the SHA-256 of every file published of that
version. A version that lock.txt already names is kept as long as pyproject.toml allows it; `make lock UPGRADE=1` takes
the newest version of everything.

torch is special. The wheel on the package index is built for CUDA and needs NVIDIA's libraries, several GiB; the
CPU build of the same version (2.13.0+cpu) needs none. lock.txt accepts the hashes of both, and cuda.txt holds the
libraries, which `make setup` installs with the CUDA build only.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
LOCK, CUDA, CPU = HERE / "lock.txt", HERE / "cuda.txt", HERE / "torch-cpu.txt"
EXTRAS = ("nemo", "data", "mlflow", "peers", "test", "docs")
CUDA_LIBRARY = re.compile(r"^(nvidia-|cuda-|triton$)")
TORCH = re.compile(r"^torch==", re.M)


def compile_lock(upgrade: bool) -> str:
    """uv's resolution of the extras: pins, hashes, and `# via` comments that say who needs a package."""
    command = [str(Path(sys.executable).with_name("uv")), "pip", "compile", "--quiet", "--no-header"]
    command += [
        "--generate-hashes",
        "--annotation-style",
        "line",
        "--output-file",
        str(LOCK),
        str(ROOT / "pyproject.toml"),
    ]
    for extra in EXTRAS:
        command += ["--extra", extra]
    # uv prefers the versions of an output file that exists.
    subprocess.run([*command, *(["--upgrade"] if upgrade else [])], check=True)
    return LOCK.read_text()


def blocks(text: str) -> dict[str, str]:
    """One block for each package: `name==version \\`, its hashes, its `# via` line."""
    found = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.M)
    return {block.split("==")[0]: block for block in found if "==" in block}


def needed_by(block: str) -> set[str]:
    via = re.search(r"# via (.*)", block)
    return {name.strip() for name in via[1].split(",")} if via else set()


def cuda_libraries(packages: dict[str, str]) -> set[str]:
    """NVIDIA's libraries that nothing but torch, or another of them, needs: those that a CPU build does without."""
    found: set[str] = set()
    while True:
        more = {
            name
            for name, block in packages.items()
            if name not in found and CUDA_LIBRARY.match(name) and needed_by(block) <= {"torch", *found}
        }
        if not more:
            return found
        found |= more


def cpu_wheel_hash(version: str) -> str:
    """The hash of torch's CPU wheel: of the file that pip finds, or else the one in torch-cpu.txt for this version."""
    folder = ROOT / "build" / "torch-cpu"
    download = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--dest",
        str(folder),
        f"torch=={version}+cpu",
    ]
    if subprocess.run(download, capture_output=True, check=False).returncode == 0:
        wheel = next(folder.glob(f"torch-{version}+cpu-*.whl"))
        return hashlib.sha256(wheel.read_bytes()).hexdigest()
    known = re.search(
        rf"torch=={re.escape(version)}\+cpu .*--hash=sha256:(\w+)", CPU.read_text() if CPU.is_file() else ""
    )
    if not known:
        sys.exit(
            f"pip finds no torch {version}+cpu: point PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL at a place that has it"
        )
    return known[1]


def strip_comments(block: str) -> str:
    return "".join(line + "\n" for line in block.splitlines() if not line.lstrip().startswith("#"))


def main() -> None:
    packages = blocks(compile_lock(upgrade="--upgrade" in sys.argv))
    libraries = cuda_libraries(packages)
    version = re.match(r"torch==(\S+)", packages["torch"])
    assert version
    cpu = cpu_wheel_hash(version[1])
    if cpu not in packages["torch"]:
        packages["torch"] = packages["torch"].replace(" \\\n", f" \\\n    --hash=sha256:{cpu} \\\n", 1)
    for path, names in ((LOCK, packages.keys() - libraries), (CUDA, libraries)):
        path.write_text("".join(strip_comments(packages[name]) for name in sorted(names)))
    CPU.write_text(f"torch=={version[1]}+cpu --hash=sha256:{cpu}\n")
    print(f"{len(packages) - len(libraries)} packages in lock.txt, {len(libraries)} CUDA libraries in cuda.txt")


if __name__ == "__main__":
    main()
