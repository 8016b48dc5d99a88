"""The examples of README.md, docs/*.md and the other pages are run, and print what the pages say.

What a page needs to know of it:

- A ``python`` block is run; all blocks of a page share one namespace, in order. One whose first line is a comment with
  a file name, ``# name.py``, is written to that file and run by itself.
- A ``text`` block right after it is what it prints. If the block raises, the exception is the last line. Warnings are
  lines of their own. ``...`` stands for anything; the last digit of a number with a point may differ by one.
- A ``sh`` block with such an output is run if it is one line that begins with ``lucid``, or ends in ``&& lucid ...``.
- In a ``text`` block, a line that begins with ``$ `` is a command, and the lines up to the next one are its output:
  what is on stdout, then what is on stderr.
- ``<!-- not run: why -->`` above a block leaves it out, ``<!-- needs joblib -->`` does where a package is missing.

Blocks run in a folder with nothing in it but ``examples``, on the model that comes with lucid.
"""

import contextlib
import importlib.util
import io
import os
import re
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import pytest

import lucid

ROOT = Path(__file__).resolve().parents[1]
BESIDE_CODE = ("README.md", "examples/README.md", "recipes/builtin-en/README.md", "lucid/models/builtin_en/README.md")
PAGES = [*(ROOT / name for name in BESIDE_CODE), *sorted((ROOT / "docs").glob("*.md"))]


@dataclass
class Block:
    """A fenced block: its language, its text, the number of its first line, the comment above, and the output below."""

    language: str
    text: str
    line: int
    comment: str
    output: str | None = None


def blocks_of(page: str) -> list[Block]:
    """Give the fenced blocks of a page; one that is the output of another is only there."""
    blocks: list[Block] = []
    is_next_output = False
    comment, fence, lines, first = "", None, [], 0
    for number, line in enumerate(page.splitlines(), 1):
        if fence is not None:
            if line.strip() != "```":
                lines.append(line)
                continue
            text = "\n".join(lines) + "\n" if lines else ""
            if fence == "text" and is_next_output and not text.startswith("$ ") and not comment:
                blocks[-1].output = text
                is_next_output = False
            else:
                blocks.append(Block(fence, text, first, comment))
                is_next_output = fence in ("python", "sh")
            comment, fence = "", None
        elif found := re.fullmatch(r"```(\w*)", line.strip()):
            fence, lines, first = found[1], [], number + 1
        elif found := re.fullmatch(r"<!-- (.*) -->", line.strip()):
            comment = found[1]
        elif line.strip():
            comment, is_next_output = "", False
    assert fence is None, "a fenced block has no end"
    return blocks


NUMBER = re.compile(r"-?\d+\.\d+(?:e[+-]?\d+)?")


def difference(shown: str, printed: str) -> str | None:
    """Say where what was printed is not what is shown, or None."""
    shown, printed = ("\n".join(line.rstrip() for line in text.rstrip().splitlines()) for text in (shown, printed))
    pattern, numbers, end = "", [], 0
    for found in re.finditer(rf"\.\.\.|{NUMBER.pattern}", shown):
        pattern += re.escape(shown[end : found.start()])
        if found[0] == "...":
            pattern += r"[\s\S]*?"
        else:
            pattern += f"({NUMBER.pattern})"
            numbers.append(Decimal(found[0]))
        end = found.end()
    match = re.fullmatch(pattern + re.escape(shown[end:]), printed)
    if match:
        for want, got in zip(numbers, map(Decimal, match.groups()), strict=True):
            last_digit = Decimal((0, (1,), int(want.as_tuple().exponent)))
            if abs(want - got) > max(last_digit, abs(want) * Decimal("1e-4")):
                return f"shown {want}, printed {got}, in\n{printed}"
        return None
    return f"shown:\n{shown}\n\nprinted:\n{printed}"


class Runner:
    """Runs the blocks of a page in a folder."""

    def __init__(self, page: str, text: str, folder: Path) -> None:
        self.page, self.page_text, self.folder = page, text, folder
        self.names: dict[str, object] = {"__name__": "__main__"}
        self.wrong: list[str] = []

    def run_all(self) -> int:
        """Run the page, and return how many blocks there were to run; AssertionError if any is wrong."""
        n_run = sum(self.run(block) for block in blocks_of(self.page_text))
        assert not self.wrong, "\n\n".join(self.wrong)
        return n_run

    def run(self, block: Block) -> bool:
        """Run a block, and return whether there was anything to run."""
        if block.comment.startswith("not run: "):
            return False
        if block.comment.startswith("needs ") and not all(importlib.util.find_spec(name) for name in block.comment[6:].split()):
            return False
        if block.language == "python":
            script = re.match(r"# (\w+\.py)\n", block.text)
            if script:
                (self.folder / script[1]).write_text(block.text)
                self.compare(block, block.output or "", self.shell(f"python {script[1]}", block))
            else:
                self.python(block)
        elif block.language == "sh" and block.output is not None:
            command = block.text.strip().split(" && ")[-1]
            if not command.startswith("lucid ") or "\n" in command:
                return False
            self.compare(block, block.output, self.shell(command, block))
        elif block.language == "text" and block.text.startswith("$ "):
            for session in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
                command, _, output = session.partition("\n")
                self.compare(block, output, self.shell(command, block))
        else:
            return False
        return True

    def python(self, block: Block) -> None:
        """Run a block in this process."""
        printed = io.StringIO()
        with warnings.catch_warnings(record=True) as warned, contextlib.redirect_stdout(printed):
            warnings.simplefilter("ignore")
            warnings.filterwarnings("always", category=UserWarning, module="lucid")
            raised = None
            try:
                exec(compile("\n" * (block.line - 1) + block.text, ROOT / self.page, "exec"), self.names)
            except Exception as error:
                raised = error
        text = "".join(f"UserWarning: {warning.message}\n" for warning in warned) + printed.getvalue()
        if raised is not None:
            last = "".join(traceback.format_exception_only(raised))
            if block.output is None or not re.search(r"^[\w.]+(Error|Exception)\b.*\Z", block.output.strip(), re.MULTILINE):
                raise AssertionError(f"{self.page}:{block.line} raises {last}") from raised
            text += last
        elif block.output and re.search(r"^[\w.]+Error: .*\Z", block.output.strip(), re.MULTILINE):
            raise AssertionError(f"{self.page}:{block.line} raises nothing")
        if block.output is not None:
            self.compare(block, block.output, text)

    def shell(self, command: str, block: Block) -> str:
        """Run a command, and return what it printed."""
        bin_folder = self.folder / ".bin"
        bin_folder.mkdir(exist_ok=True)
        for name, call in (("lucid", "-m lucid.cli"), ("python", "")):
            (bin_folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {call} "$@"\n')
            (bin_folder / name).chmod(0o755)
        environment = {
            **os.environ,
            "PYTHONWARNINGS": "ignore::DeprecationWarning",  # of fork, from Python 3.12 on: the page tells of it
            "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "COLUMNS": "80",
            "TERM": "dumb",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        printed = done.stdout + done.stderr
        if "Traceback" in printed and "Traceback" not in (block.output or ""):
            raise AssertionError(f"{self.page}:{block.line}, {command}:\n{printed}")
        return printed

    def compare(self, block: Block, shown: str, printed: str) -> None:
        """Note it if a block did not print what is shown."""
        if wrong := difference(shown, printed):
            self.wrong.append(f"{self.page}:{block.line} prints something else. {wrong}")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Be in a folder where there is nothing but the examples."""
    for name in ("examples", "LICENSE"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LUCID_MODEL", raising=False)
    lucid.set_num_threads(1)  # no output depends on it, and a busy machine makes threads wait for each other
    yield tmp_path
    lucid.set_num_threads(None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_do_what_the_page_says(page: Path, folder: Path) -> None:
    Runner(str(page.relative_to(ROOT)), page.read_text(), folder).run_all()


GOOD = """
```python
x = 2.5
```

```python
print(x, "of many")
```

```text
2.5 of ...
```

```python
1 / 0
```

```text
ZeroDivisionError: division by zero
```

```python
# script.py
print("run by itself")
```

```text
run by itself
```

<!-- needs a_package_that_is_missing -->
```python
import a_package_that_is_missing
```

```text
$ printf 'a\\nb\\n'
a
b
```
"""

GOOD_COMMAND = """
```sh
true && lucid encode "no such folder" --model ./nowhere
```

```text
lucid: ...nowhere ...
```
"""


def _run(page: str, folder: Path) -> int:
    return Runner("page.md", page, folder).run_all()


def test_a_page_that_is_right(folder: Path) -> None:
    assert _run(GOOD, folder) == 5
    assert _run(GOOD_COMMAND, folder) == 1


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("x = 2.5", "x = 2.7"),
        ("2.5 of ...", "2.5 of"),
        ("x, ", "y, "),
        ("division by zero", "division by one"),
        ("1 / 0", "1 / 1"),
        ("ZeroDivisionError: division by zero", "0"),
        ("\n\n```text\nZeroDivisionError: division by zero\n```", ""),
        ('print("run by itself")', 'print("run")'),
        ("run by itself\n```\n\n<", "run by me\n```\n\n<"),
        ('print("run by itself")', "1 / 0"),
        ("<!-- needs a_package_that_is_missing -->", ""),
        ("\na\nb\n", "\na\n"),
        ("lucid: ", "lucid says: "),
        ("lucid encode", "lucid -m encode"),
    ],
)
def test_what_is_wrong_on_a_page_is_noticed(right: str, wrong: str, folder: Path) -> None:
    page = GOOD if right in GOOD else GOOD_COMMAND
    assert right in page
    with pytest.raises(AssertionError, match="page"):
        _run(page.replace(right, wrong), folder)


LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")


def _anchors(page: Path) -> set[str]:
    """Give the names by which headings are linked to."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


LINKED_PAGES = [*PAGES, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs" / "ops").glob("*.md"))]


@pytest.mark.parametrize("page", LINKED_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


def test_the_index_names_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    named = {(index.parent / link.partition("#")[0]).resolve() for link in LINK.findall(index.read_text())}
    assert {page for page in PAGES if page.parent == index.parent} - named == {index}
    assert "docs/README.md" in (ROOT / "README.md").read_text()
