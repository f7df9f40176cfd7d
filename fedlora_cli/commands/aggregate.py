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

from fedlora.adapters.spec import AdapterKind
from fedlora.errors import FedLoraError, Reason
from fedlora_cli.console import errors, output, print_json

if TYPE_CHECKING:
    from aggregator_service.aggregation.base_weights import BaseWeights
    from aggregator_service.aggregation.cohort_files import Contribution
    from fedlora.adapters.peft_files import AdapterFolder
    from fedlora.runs.method import MethodSpec, OptionValue
    from fedlora.runs.report import Certificate, CertificateEntry
    from fedlora.tensors.manifest import DataType

__all__ = ["aggregate"]

REPORT_NAME = "aggregation.json"
"""the report's name inside the folder written"""

_WORST_LAYERS = 8


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
    from aggregator_service.aggregation.cohort_files import Contribution
    from aggregator_service.aggregation.driver import aggregate as combine
    from aggregator_service.aggregation.round_context import RoundContext, StoredAdapter
    from aggregator_service.aggregation.run_checks import check_kind
    from aggregator_service.aggregation.servable import servable_rank, write_servable
    from fedlora.adapters.peft_files import read_peft_folder, write_folder

    began = time.perf_counter()
    spec = _method(method, option or [], weighting=weighting, compression=compression, gauge=gauge)
    recipe = registry.create_recipe(spec)
    element, where = _data_type(dtype), _device(device)
    _check_target(out, [*adapters, *([start] if start else [])], overwrite=overwrite)
    folders = [read_peft_folder(folder) for folder in adapters]
    origin = read_peft_folder(start) if start else None
    _check_kin([*folders, *([origin] if origin else [])])
    kind = folders[0].kind
    check_kind(recipe, kind, has_base_weights=base_weights is not None)
    contributions = [
        Contribution(worker=str(f.folder), weight=w, path=f.weights, scaling=f.scaling)
        for f, w in zip(folders, _weights(weights, folders), strict=True)
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
    _print_certificate(certificate, with_change=origin is not None)
    output().print(
        f"[green]wrote[/] {out}  rank {result_rank}, lora_alpha {alpha:g}, "
        f"{len(certificate.modules)} layers, {size / 1e6:.1f} MB; "
        f"report {report or out / REPORT_NAME}",
        highlight=False,
        soft_wrap=True,
    )


# --- reading the command line --------------------------------------------------------------


def _method(
    name: str,
    given: Sequence[str],
    *,
    weighting: str = "",
    compression: str = "",
    gauge: str = "own",
) -> MethodSpec:
    """The method and its rules; an option with a rule's name before a dot is the rule's."""
    from fedlora.runs.method import Gauge, MethodSpec, RuleSpec

    if gauge not in {*Gauge}:
        raise FedLoraError(
            Reason.INVALID_ARGUMENT, f"--gauge: expected one of {', '.join(Gauge)}, got {gauge!r}"
        )
    rules = {"weighting": weighting, "compression": compression}
    own: dict[str, OptionValue] = {}
    of_rules: dict[str, dict[str, OptionValue]] = {rule: {} for rule in rules}
    for key, value in _options(given).items():
        rule, dot, rest = key.partition(".")
        if not dot:
            own[key] = value
        elif rules.get(rule):
            of_rules[rule][rest] = value
        else:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"--option {key}: expected a key of the method, or of a rule that is given",
                hint=f"Known rules: {', '.join(f'--{r}' for r in rules)}",
            )
    chosen = {
        rule: RuleSpec(name=value, options=of_rules[rule]) for rule, value in rules.items() if value
    }
    return MethodSpec(name=name, options=own, gauge=Gauge(gauge), **chosen)


def _frozen(path: Path | None, folder: AdapterFolder) -> AbstractContextManager[BaseWeights | None]:
    """The frozen weights, if they are given."""
    from aggregator_service.aggregation.base_weights import BaseWeights

    return BaseWeights(path, fan_in_fan_out=folder.fan_in_fan_out) if path else nullcontext()


def _options(given: Sequence[str]) -> dict[str, OptionValue]:
    """key=value pairs; a value that reads as a JSON number or boolean is one."""
    values: dict[str, OptionValue] = {}
    for pair in given:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT, f"--option: expected key=value, got {pair!r}"
            )
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        values[key.strip()] = value if isinstance(value, bool | int | float) else text
    return values


def _data_type(name: str) -> DataType:
    from fedlora.tensors.manifest import FLOATS

    for dtype in FLOATS:
        if dtype == name:
            return dtype
    raise FedLoraError(
        Reason.INVALID_ARGUMENT, f"--dtype: expected one of {', '.join(FLOATS)}, got {name!r}"
    )


def _device(name: str) -> str:
    from aggregator_service.engine import resolve_device

    try:
        return str(resolve_device(name))
    except FedLoraError as error:
        text = error.message.replace("server.device", "--device")
        raise FedLoraError(error.reason, text, hint=error.hint) from error


def _weights(text: str, folders: Sequence[AdapterFolder]) -> list[float]:
    if not text:
        return [1.0] * len(folders)
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise FedLoraError(
            Reason.INVALID_ARGUMENT, f"--weights: expected numbers such as 3,1,2, got {text!r}"
        ) from error
    if len(values) != len(folders):
        raise FedLoraError(
            Reason.INVALID_ARGUMENT,
            f"--weights: expected one for each of {len(folders)} folders, got {len(values)}",
        )
    return values


def _check_target(out: Path, inputs: Sequence[Path], *, overwrite: bool) -> None:
    if any(out.resolve() == folder.resolve() for folder in inputs):
        raise FedLoraError(
            Reason.INVALID_ARGUMENT, f"--out {str(out)!r} is one of the adapters to combine"
        )
    if out.exists() and not (out.is_dir() and (overwrite or not any(out.iterdir()))):
        raise FedLoraError(
            Reason.ALREADY_EXISTS,
            f"--out {str(out)!r} is there already",
            hint="Name another folder, or add --overwrite to replace this one",
        )


def _check_kin(folders: Sequence[AdapterFolder]) -> None:
    """One base model, one task, one layout of weights; modules and shapes are compared later."""
    paths = [f.folder.resolve() for f in folders]
    if len(set(paths)) != len(paths):
        raise FedLoraError(
            Reason.INVALID_ARGUMENT,
            "an adapter folder is named twice",
            hint="Give it a larger weight with --weights instead",
        )
    first = folders[0]
    for other in folders[1:]:
        for what, mine, theirs in (
            ("kind of adapter", first.kind.value, other.kind.value),
            ("base_model_name_or_path", first.base_model, other.base_model),
            ("revision", first.revision, other.revision),
            ("task_type", first.task_type, other.task_type),
            ("modules_to_save", first.modules_to_save, other.modules_to_save),
            ("fan_in_fan_out", first.fan_in_fan_out, other.fan_in_fan_out),
        ):
            if mine != theirs:
                reason = Reason.LAYOUT_MISMATCH
                if what in ("base_model_name_or_path", "revision"):
                    reason = Reason.BASE_MISMATCH
                raise FedLoraError(
                    reason,
                    f"{what} is {mine!r} in {str(first.folder)!r} and {theirs!r} in "
                    f"{str(other.folder)!r}",
                    hint="Only adapters trained on one base model, in one way, can be combined",
                )


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


# --- what is shown -------------------------------------------------------------------------


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


def _print_certificate(certificate: Certificate, *, with_change: bool) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("layer", header_style="bold", overflow="fold")
    for name in ("error", "A,B mean", "bound", "gap closed", *(["vs change"] * with_change)):
        table.add_column(name, header_style="bold", justify="right", no_wrap=True)
    table.add_row(*_cells(certificate.overall, with_change), style="bold cyan")
    worst = sorted(certificate.modules, key=lambda e: (-e.relative_error, e.module))
    for entry in worst[:_WORST_LAYERS]:
        table.add_row(*_cells(entry, with_change))
    table.caption_justify = "left"
    left_out = len(worst) - _WORST_LAYERS
    table.caption = (
        "error: of the result against the exact mean of the products; A,B mean: of averaging the "
        "factors; bound: least possible at this rank"
        + (f"; the worst {_WORST_LAYERS} of {len(worst)} layers" if left_out > 0 else "")
        + ("; estimates, good to about 2 %" if certificate.overall.is_estimate else "")
    )
    output().print(table)


def _cells(entry: CertificateEntry, with_change: bool) -> list[str]:
    cells = [
        entry.module or "all layers",
        f"{entry.relative_error:.3g}",
        f"{entry.factor_mean_error:.3g}",
        f"{entry.lower_bound:.3g}",
        "–" if math.isnan(entry.gap_closed) else f"{entry.gap_closed:.1%}",
    ]
    return cells + ([f"{entry.relative_error_vs_change:.3g}"] if with_change else [])
