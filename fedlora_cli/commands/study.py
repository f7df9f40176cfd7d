"""`fedlora study`: many federations compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["study"]


def study(
    study_file: Annotated[
        Path, typer.Argument(metavar="STUDY", help="What to compare, for example study.toml.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Where results and page go. Default: a folder named after STUDY."),
    ] = None,
    work_dir: Annotated[
        Path | None,
        typer.Option(help="Where each cell has its folder. Default: runs/studies/<name>."),
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=0, help="Cells at a time; 0 for one a GPU, or one a core.")
    ] = 0,
    devices: Annotated[
        str,
        typer.Option(help="auto (all GPUs, or the CPU), all, cpu, or indices and UUIDs: 0,GPU-..."),
    ] = "auto",
    only: Annotated[
        list[str] | None, typer.Option(help="Run this variant only; may be repeated.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Run so many cells and stop; 0 runs all.")] = 0,
    page_only: Annotated[
        bool, typer.Option("--page-only", help="Run nothing: write the page of what there is.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the cells and leave.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of bars.")] = False,
) -> None:
    """Run a grid of federations and compare them: tables, significance, curves.

    Each cell is a whole federation in one process, with the server's code and the workers', and
    without RPC between them. Cells that have a result are not run again; stopped with Ctrl-C, the
    same command goes on. docs/studies.md explains STUDY.
    """
    from fedlora.errors import FedLoraError, Reason
    from fedlora.exit_codes import ExitCode
    from fedlora_cli.configuration import need_service
    from fedlora_cli.console import errors, output
    from fedlora_cli.study.cells import cells_of
    from fedlora_cli.study.design import read_study
    from fedlora_cli.study.display import StudyDisplay
    from fedlora_cli.study.page import write_page
    from fedlora_cli.study.results import Results
    from fedlora_cli.study.runner import StudyRunner

    need_service("aggregator_service", "aggregator")
    need_service("client_worker", "worker")
    design = read_study(study_file)
    cells = cells_of(design)
    names = {condition.variant for condition in design.conditions}
    if unknown := {*(only or ())} - names:
        raise FedLoraError(
            Reason.INVALID_CONFIG,
            f"--only {sorted(unknown)[0]}: expected one of {', '.join(sorted(names))}",
        )
    folder = out or study_file.with_suffix("")
    results = Results(folder / "results.jsonl")
    wanted = {
        cell.key: cell
        for cell in reversed(cells)
        if results.find(cell) is None and (not only or cell.condition.variant in only)
    }
    missing = list(reversed(wanted.values()))[: limit or None]
    console = output()
    if dry_run:
        for cell in cells:
            to_run = cell.key in {other.key for other in missing}
            state = "done" if results.find(cell) else ("to run" if to_run else "left out")
            console.print(f"{state:<9}{cell.label}", markup=False, highlight=False)
        return
    folder.mkdir(parents=True, exist_ok=True)
    code = ExitCode.OK
    runner = StudyRunner(
        design.config,
        results,
        work_dir=work_dir or Path("runs") / "studies" / design.name,
        jobs=jobs,
        devices=_devices(devices),
        display=StudyDisplay(missing, metric=design.metrics[0], plain=plain),
    )
    if missing and not page_only:
        with results.held():
            # Another process may have run some of them in the meantime.
            code = runner.run([cell for cell in missing if results.find(cell) is None])
    page = write_page(design, cells, results, folder, command=f"fedlora study {study_file}")
    for failure in runner.failures:
        errors().print(failure, markup=False, highlight=False, soft_wrap=True)
    if code is ExitCode.INTERRUPTED:
        errors().print("stopped; the same command goes on", highlight=False)
    found = [result for cell in cells if (result := results.find(cell)) is not None]
    for metric in design.metrics:
        if found and all(result.value(metric) is None for result in found):
            errors().print(f"no cell has measured {metric}", markup=False, highlight=False)
    console.print(f"page     {page}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"results  {len(found)} of {len(cells)} cells", highlight=False)
    raise typer.Exit(code)


def _devices(wanted: str) -> tuple[str, ...]:
    from fedlora.devices import NvmlDevices
    from fedlora.errors import FedLoraError, Reason
    from fedlora_cli.device_choice import select_places

    try:
        places = select_places("all" if wanted == "auto" else wanted, NvmlDevices())
    except FedLoraError as error:
        if wanted != "auto" or error.reason is not Reason.DEVICE_UNAVAILABLE:
            raise
        return ("cpu",)
    return tuple(place.worker_device for place in places)
