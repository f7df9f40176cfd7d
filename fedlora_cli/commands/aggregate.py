"""`fedlora aggregate`: combines saved PEFT adapters, and says what that lost."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from fedlora.adapters.spec import AdapterKind
from fedlora_cli.aggregate_arguments import (
    check_kin,
    check_target,
    data_type,
    device_of,
    method_spec,
    weights_of,
)
from fedlora_cli.console import errors, output, print_json

if TYPE_CHECKING:
    from aggregator_service.aggregation.base_weights import BaseWeights
    from aggregator_service.aggregation.contribution import Contribution
    from fedlora.adapters.peft_files import AdapterFolder

__all__ = ["aggregate"]

REPORT_NAME = "aggregation.json"
"""the report's name inside the folder written"""


def aggregate(
    adapters: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="PEFT adapter folders to combine.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="PEFT adapter folder to write.")],
    method: Annotated[
        str, typer.Option("--method", "-m", help="Aggregation method; see `fedlora methods`.")
    ] = "optimal",
    weights: Annotated[
        str,
        typer.Option(
            "--weights", "-w", help="Comma-separated, one per folder, such as example counts."
        ),
    ] = "",
    rank: Annotated[
        int, typer.Option("--rank", "-r", min=0, help="Rank of the result; 0: the largest given.")
    ] = 0,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            help="key=value for the method, weighting.key=value or compression.key=value for a "
            "rule; may be repeated.",
        ),
    ] = None,
    weighting: Annotated[
        str, typer.Option("--weighting", help="Weighting rule; see `fedlora methods`.")
    ] = "",
    compression: Annotated[
        str, typer.Option("--compression", help="Compression rule; see `fedlora methods`.")
    ] = "",
    gauge: Annotated[
        str,
        typer.Option("--gauge", help="Factors of the result's product; see `fedlora methods`."),
    ] = "own",
    start: Annotated[
        Path | None,
        typer.Option(
            "--start",
            help="The adapter all of them started from: errors are then also given "
            "against what training changed.",
        ),
    ] = None,
    base_weights: Annotated[
        Path | None,
        typer.Option(
            "--base-weights",
            help="safetensors file or folder of the base model, for options that read it.",
        ),
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="f32, bf16 or f16.")] = "f32",
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda:N.")] = "auto",
    seed: Annotated[int, typer.Option("--seed", help="Of random starts and fillings.")] = 0,
    report: Annotated[
        Path | None,
        typer.Option("--report", help=f"JSON report; default {REPORT_NAME} in the folder."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report instead of a table.")
    ] = False,
) -> None:
    """Combine PEFT adapters (LoRA, DoRA or HiRA) of one base model into one, without any server.

    Ranks, lora_alpha, dtypes and rsLoRA may differ between the folders. The report gives, for
    every layer, the error of the result against the exact mean of the products, beside that of
    averaging A and B and the least error possible at its rank.
    """
    from aggregator_service.aggregation import registry
    from aggregator_service.aggregation.certify import certify
    from aggregator_service.aggregation.contribution import Contribution
    from aggregator_service.aggregation.driver import aggregate as combine
    from aggregator_service.aggregation.round_context import RoundContext, StoredAdapter
    from aggregator_service.aggregation.run_checks import check_kind, check_saved
    from aggregator_service.aggregation.servable import servable_rank, write_servable
    from fedlora.adapters.peft_files import read_peft_folder, write_folder
    from fedlora_cli.certificate_table import certificate_table

    began = time.perf_counter()
    spec = method_spec(
        method, option or [], weighting=weighting, compression=compression, gauge=gauge
    )
    recipe = registry.create_recipe(spec)
    check_saved(recipe, count=len(adapters), has_start=start is not None)
    element, where = data_type(dtype), device_of(device)
    check_target(out, [*adapters, *([start] if start else [])], overwrite=overwrite)
    folders = [read_peft_folder(folder) for folder in adapters]
    origin = read_peft_folder(start) if start else None
    check_kin([*folders, *([origin] if origin else [])])
    kind = folders[0].kind
    check_kind(recipe, kind, has_base_weights=base_weights is not None)
    contributions = [
        Contribution(worker=str(f.folder), weight=w, path=f.weights, scaling=f.scaling)
        for f, w in zip(folders, weights_of(weights, folders), strict=True)
    ]
    result_rank = rank or max(r for f in folders for r in f.ranks.values())
    alpha, rslora = _serving(folders, result_rank)

    def scaling(rank: int) -> float:
        return 1.0 if kind is AdapterKind.HIRA else alpha / (math.sqrt(rank) if rslora else rank)

    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch,
        _frozen(base_weights, folders[0]) as frozen,
    ):
        context = RoundContext(
            kind=kind,
            start=StoredAdapter(path=origin.weights, scaling=origin.scaling) if origin else None,
            base_weights=frozen,
        )
        file = Path(scratch) / "combined.safetensors"
        with _progress("combining", quiet=as_json) as progress:
            outcome = combine(
                contributions,
                recipe,
                output=file,
                context=context,
                rank=result_rank,
                output_scaling=scaling,
                dtype=element,
                device=where,
                seed=seed,
                progress=progress,
            )
        counted = [dataclasses.replace(c, weight=outcome.weights[c.worker]) for c in contributions]
        with _progress("measuring", quiet=as_json) as progress:
            certificate = certify(
                counted,
                recipe,
                published=StoredAdapter(path=file, scaling=scaling),
                context=context,
                measurements=outcome.measurements,
                device=where,
                progress=progress,
            )
        certificate = dataclasses.replace(certificate, seconds=time.perf_counter() - began)
        if whole := servable_rank(file, scaling):
            result_rank = whole
        else:
            folded = Path(scratch) / "servable.safetensors"
            result_rank = write_servable(file, folded, scaling=scaling)
            file = folded
        record = {
            "method": method,
            "options": dataclasses.asdict(recipe.method),  # type: ignore[call-overload]
            "weighting": recipe.weighting.name,
            "compression": recipe.compression.name,
            "gauge": recipe.gauge.value,
            "kind": kind.value,
            "rank": result_rank,
            "lora_alpha": alpha,
            "use_rslora": rslora,
            "dtype": element.value,
            "seed": seed,
            "inputs": [
                {**_input(f, c), "share": outcome.weights[c.worker]}
                for f, c in zip(folders, contributions, strict=True)
            ],
            "certificate": _jsonable(dataclasses.asdict(certificate)),
        }
        text = json.dumps(record, indent=2, allow_nan=False) + "\n"
        size = file.stat().st_size
        write_folder(
            out,
            config_json=_config(folders, result_rank, alpha, rslora=rslora),
            weights=file,
            extra={} if report else {REPORT_NAME: text},
        )
    if report:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(text, encoding="utf-8")
    if as_json:
        print_json(record)
        return
    output().print(certificate_table(certificate, with_change=origin is not None))
    output().print(
        f"[green]wrote[/] {escape(str(out))}  rank {result_rank}, lora_alpha {alpha:g}, "
        f"{len(certificate.modules)} layers, {size / 1e6:.1f} MB; "
        f"report {escape(str(report or out / REPORT_NAME))}",
        highlight=False,
        soft_wrap=True,
    )


def _frozen(path: Path | None, folder: AdapterFolder) -> AbstractContextManager[BaseWeights | None]:
    """The frozen weights, if they are given."""
    from aggregator_service.aggregation.base_weights import BaseWeights

    return BaseWeights(path, fan_in_fan_out=folder.fan_in_fan_out) if path else nullcontext()


@contextmanager
def _progress(what: str, *, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    console = errors()
    if quiet or not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


# --- what is written -----------------------------------------------------------------------


def _serving(folders: Sequence[AdapterFolder], rank: int) -> tuple[float, bool]:
    """(lora_alpha, use_rslora): those of the inputs where all agree, else alpha = rank, s = 1."""
    kinds = {(f.r, f.lora_alpha, f.use_rslora) for f in folders}
    first = folders[0]
    if len(kinds) == 1 and first.r == rank and all(f.is_uniform for f in folders):
        return first.lora_alpha, first.use_rslora
    return float(rank), False


def _config(folders: Sequence[AdapterFolder], rank: int, alpha: float, *, rslora: bool) -> str:
    from fedlora.adapters.peft_files import folder_config_json

    first = folders[0]
    # Different words for the same layers: then each layer by its path.
    same = all(f.target_modules == first.target_modules for f in folders)
    return folder_config_json(
        kind=first.kind,
        base_model=first.base_model,
        revision=first.revision,
        task_type=first.task_type,
        target_modules=first.target_modules if same else sorted(first.ranks),
        modules_to_save=first.modules_to_save,
        r=rank,
        lora_alpha=alpha,
        use_rslora=rslora,
        fan_in_fan_out=first.fan_in_fan_out,
    )


def _input(folder: AdapterFolder, contribution: Contribution) -> dict[str, object]:
    return {
        "folder": str(folder.folder),
        "weight": contribution.weight,
        "r": folder.r,
        "lora_alpha": folder.lora_alpha,
        "use_rslora": folder.use_rslora,
        "ranks": sorted(set(folder.ranks.values())),
    }


def _jsonable(value: object) -> object:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
