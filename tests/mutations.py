"""Flip a sign, drop a term, forget a mask: for each, the tests named beside it must go red. Run by hand, not collected.

    python tests/mutations.py [--every N] [--copies N] [words that a mutation's name must contain]

Every mutation of mutation_list.py is one replacement in one source line of a copy of the tree. The kernels are rebuilt for the
instruction set in use alone, without much optimisation. `--every N` takes each Nth mutation of those that are wanted, which bounds the
time; `--copies` is how many are tried at a time. The exit status is 1 if a mutation survives, or if the list no longer fits the sources.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Queue

from mutation_list import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[1]


def misfits() -> list[str]:
    """What of the list does not stand in its source exactly once."""
    counts = [(m, (ROOT / m.file).read_text().count(m.old)) for m in MUTATIONS]
    return [f"{m.name}: {m.file} holds {n} times: {m.old}" for m, n in counts if n != 1]


def copy_of_the_tree(folder: Path) -> Path:
    """Copy what building and testing need; built files too, with their times, so that only what changes is built again."""
    shutil.copytree(ROOT / "lucid", folder / "lucid", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy2(ROOT / name, folder / name)
    return folder


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "LUCID_OPTIMIZE": "-O1"}
    environment |= {"LUCID_ISA": instruction_set(), "LUCID_BUILD_ONLY": instruction_set(), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def instruction_set() -> str:
    from lucid import _ext

    return _ext.instruction_set


def build(folder: Path) -> None:
    built = run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], folder)
    if built.returncode:
        raise RuntimeError(f"the mutated kernels do not build:\n{built.stderr[-2000:]}")


def test(folder: Path, tests: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header", *tests], folder)


@contextmanager
def changed(folder: Path, mutation: Mutation) -> Iterator[None]:
    """Apply a mutation, build it, and put sources and built kernels back."""
    path = folder / mutation.file
    touched = [path, *(folder / "lucid" / "_ext").glob(f"_kernels_{instruction_set()}.*.so")] if path.suffix == ".pyx" else [path]
    kept = {file: (file.read_bytes(), file.stat()) for file in touched}
    text = path.read_text()
    try:
        path.write_text(text.replace(mutation.old, mutation.new))
        if path.suffix == ".pyx":
            build(folder)
        yield
    finally:
        for file, (content, stat) in kept.items():
            file.unlink()  # the kernels' inode may be mapped by a process that is ending
            file.write_bytes(content)
            os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def try_one(mutation: Mutation, copies: Queue[Path]) -> tuple[Mutation, bool, str, float]:
    """Return whether the tests went red, what they said, and the seconds it took."""
    folder, begin = copies.get(), time.monotonic()
    try:
        with changed(folder, mutation):
            result = test(folder, mutation.tests)
        if result.returncode not in (0, 1) and result.returncode > 0:
            raise RuntimeError(f"pytest did not run the tests of {mutation.name}:\n{result.stdout[-2000:]}{result.stderr[-2000:]}")
        found = re.search(r"^FAILED (?:tests/)?(\S+)", result.stdout, re.MULTILINE)
        said = found[1] if found else f"signal {-result.returncode}" if result.returncode < 0 else "nothing"
        return mutation, result.returncode != 0, said, time.monotonic() - begin
    finally:
        copies.put(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("words", nargs="*", help="that a mutation's name must contain")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take each Nth mutation only")
    parser.add_argument("--copies", type=int, default=2, metavar="N", help="mutations at a time")
    args = parser.parse_args()
    wanted = [m for m in MUTATIONS if all(word in m.name for word in args.words)][:: args.every]
    wanted.sort(key=lambda m: not m.file.endswith(".pyx"))  # the slow ones first
    if wrong := misfits():
        print("\n".join(wrong))
        return 1
    with tempfile.TemporaryDirectory() as folder:
        copies: Queue[Path] = Queue()
        for n in range(args.copies):
            copies.put(copy_of_the_tree(Path(folder) / str(n)))
        for copy in list(copies.queue):
            build(copy)
        for tests in dict.fromkeys(m.tests for m in wanted):
            result = test(copies.queue[0], tests)
            if result.returncode:
                print(f"red without any mutation: {' '.join(tests)}\n{result.stdout[-3000:]}{result.stderr[-1000:]}")
                return 1
        print(f"{len(wanted)} mutations; the tests are green without them", flush=True)
        n_survivors, begin = 0, time.monotonic()
        with ThreadPoolExecutor(args.copies) as pool:
            for mutation, is_red, said, seconds in pool.map(lambda m: try_one(m, copies), wanted):
                n_survivors += not is_red
                print(f"{'red     ' if is_red else 'SURVIVED'} {seconds:5.0f} s  {mutation.name:<60} {said}", flush=True)
    print(f"{len(wanted) - n_survivors} of {len(wanted)} mutations were noticed, in {time.monotonic() - begin:.0f} s")
    return 1 if n_survivors else 0


if __name__ == "__main__":
    sys.exit(main())
