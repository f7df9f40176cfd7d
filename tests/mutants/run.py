"""Puts each bug into a copy of the tree and runs the tests that must notice it.

    python tests/mutants/run.py                 all of them
    python tests/mutants/run.py NAME ...        some of them
    python tests/mutants/run.py --markdown      all, and writes docs/mutants.md

A test notices a bug by failing. One that cannot even be collected, because the bug is such that
nothing can be imported any more, has noticed nothing. All these tests must pass without any bug.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1]))

from mutants.mutant import Mutant
from mutants.mutants import MUTANTS

__all__ = ["Verdict", "judge", "markdown_of", "passes", "tree_of"]

ROOT = Path(__file__).parents[2]

PACKAGES = ("fedlora", "aggregator_service", "client_worker", "fedlora_cli")

AT_A_TIME = 2
"""bugs that are tried side by side"""

TEST_SECONDS = 60
"""a test that hangs for so long has noticed the bug"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the tests said of one bug."""

    mutant: Mutant
    silent: tuple[str, ...]
    """killers that did not fail"""
    seconds: float
    output: str

    @property
    def killed(self) -> bool:
        """Whether every killer has failed."""
        return not self.silent


# --- copies ----------------------------------------------------------------------------------


def tree_of(root: Path) -> list[Path]:
    """The files that git tracks, relative to the root; without git, all that nothing has made."""
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z"], capture_output=True, text=True, check=False
    )
    if listed.returncode == 0:
        names = [Path(name) for name in listed.stdout.split("\0") if name]
        return [name for name in names if (root / name).is_file()]
    found = (path.relative_to(root) for path in sorted(root.rglob("*")) if path.is_file())
    return [p for p in found if not any(x[0] == "." or x == "__pycache__" for x in p.parts)]


@contextmanager
def copied(root: Path, files: Sequence[Path]) -> Iterator[Path]:
    """A copy of the tree, gone when the block ends."""
    with tempfile.TemporaryDirectory(prefix="fedlora-mutant-") as folder:
        copy = Path(folder)
        for file in files:
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / file, copy / file)
        yield copy


# --- tests -----------------------------------------------------------------------------------


def run(copy: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in a copy; what that starts imports the copy too."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command],
        cwd=copy,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def tested(copy: Path, tests: Sequence[str], *options: str) -> subprocess.CompletedProcess[str]:
    """Runs tests by their ids."""
    quiet = ("-q", "-rf", "-p", "no:cacheprovider", "--timeout", str(TEST_SECONDS))
    return run(copy, "-m", "pytest", *quiet, *options, *tests)


def judge(mutant: Mutant, root: Path, files: Sequence[Path]) -> Verdict:
    """Tries one bug.

    Raises:
        ValueError: if the mutant's text is not where it says.
    """
    started = time.monotonic()
    with copied(root, files) as copy:
        path = copy / mutant.file
        path.write_text(mutant.applied_to(path.read_text()))
        said = tested(copy, mutant.killers, "--tb=line").stdout
    failed = [line.removeprefix("FAILED ") for line in said.splitlines() if line[:7] == "FAILED "]
    silent = [k for k in mutant.killers if not any(is_of(line, k) for line in failed)]
    seconds = time.monotonic() - started
    return Verdict(mutant=mutant, silent=tuple(silent), seconds=seconds, output=said)


def is_of(line: str, test: str) -> bool:
    """Whether a line of pytest's summary, or one of a parameter set, is about a test."""
    return line == test or line.startswith((f"{test} - ", f"{test}["))


def passes(mutants: Sequence[Mutant], root: Path, files: Sequence[Path]) -> str:
    """What is wrong with the tests before any bug is made; "" for nothing."""
    tests = sorted({killer for mutant in mutants for killer in mutant.killers})
    with copied(root, files) as copy:
        for package in PACKAGES:
            where = run(copy, "-P", "-c", f"import {package}; print({package}.__file__)").stdout
            if not where.startswith(str(copy)):
                return f"{package} is imported from {where.strip()}, not from the copy {copy}"
        done = tested(copy, tests, "-n", str(AT_A_TIME), "--tb=short")
    return "" if done.returncode == 0 else done.stdout


# --- what is shown ---------------------------------------------------------------------------


def line_of(verdict: Verdict) -> str:
    """One row of the table that a terminal shows, in rich's markup."""
    mark = "[green]killed  [/]" if verdict.killed else "[red]SURVIVED[/]"
    mutant = verdict.mutant
    return f"{mark} {verdict.seconds:4.0f} s  {mutant.name:<32} {mutant.sentence}"


def markdown_of(verdicts: Sequence[Verdict], seconds: float) -> str:
    """The page docs/mutants.md."""
    killed = sum(verdict.killed for verdict in verdicts)
    rows = [
        f"| {v.mutant.name} | {v.mutant.sentence} | `{v.mutant.file}` | "
        f"{'<br>'.join(_short(k) for k in v.mutant.killers)} | "
        f"{f'{v.seconds:.0f}' if v.killed else '**survived**'} |\n"
        for v in verdicts
    ]
    totals = (
        f"{len(verdicts)} mutants, {killed} killed, {len(verdicts) - killed} survived; "
        f"{seconds:.0f} s, {AT_A_TIME} at a time.\n"
    )
    return f"{_PAGE}{''.join(rows)}\n{totals}"


_PAGE = """\
# Bugs that the tests find

Generated by `python tests/mutants/run.py --markdown`. Each row is a bug that was put into a copy of
the tree, and the tests that failed because of it; without it they pass. `tests/mutants/` has the
bugs as replacements of text, and `make mutants` tries all of them again.

| mutant | what the program then does | in | killed by | seconds |
|---|---|---|---|---|
"""


def _short(test: str) -> str:
    file, *_, name = test.split("::")
    return f"`{Path(file).name}::{name}`"


def main() -> int:
    """The command; 1 if a bug survives, 2 if that cannot be said."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of mutants; none for all")
    parser.add_argument("--markdown", action="store_true", help="write docs/mutants.md")
    arguments = parser.parse_args()
    known = {mutant.name: mutant for mutant in MUTANTS}
    if unknown := sorted({*arguments.names} - {*known}):
        parser.error(f"no mutant {unknown[0]!r}; there are: {', '.join(known)}")
    if arguments.names and arguments.markdown:
        parser.error("--markdown shows all mutants: name none")
    mutants = [known[name] for name in arguments.names or known]
    console, started, files = (
        Console(soft_wrap=True, highlight=False),
        time.monotonic(),
        tree_of(ROOT),
    )
    for mutant in mutants:
        mutant.applied_to((ROOT / mutant.file).read_text())
    console.print(f"{len(mutants)} mutants; first their tests without any of them ...")
    if wrong := passes(mutants, ROOT, files):
        console.print(wrong, markup=False)
        return 2
    verdicts: dict[str, Verdict] = {}
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        for future in as_completed([pool.submit(judge, m, ROOT, files) for m in mutants]):
            verdict = future.result()
            verdicts[verdict.mutant.name] = verdict
            console.print(line_of(verdict))
    ordered = [verdicts[mutant.name] for mutant in mutants]
    seconds = time.monotonic() - started
    for verdict in ordered:
        for test in verdict.silent:
            console.print(f"[red]{verdict.mutant.name}[/] is not noticed by {test}")
            console.print(verdict.output, markup=False)
    if arguments.markdown:
        (ROOT / "docs" / "mutants.md").write_text(markdown_of(ordered, seconds))
    survived = sum(not verdict.killed for verdict in ordered)
    console.print(f"{len(ordered) - survived} killed, {survived} survived, {seconds:.0f} s")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
