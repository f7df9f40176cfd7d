"""What is printed at the end of a local run: the rounds, and what to do with the result."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict
from pathlib import Path

from rich.syntax import Syntax

from fedlora.adapters.spec import AdapterSpec, TaskType
from fedlora_cli.console import output, print_json
from fedlora_cli.run_folder import RunFolder
from fedlora_cli.tables import rounds_table

__all__ = ["peft_snippet", "print_summary"]


def print_summary(folder: RunFolder, *, as_json: bool, headline: str) -> None:
    """The rounds table, where adapter and report are, and how to load the adapter."""
    run, rounds = folder.run(), folder.rounds()
    if run is None:
        raise AssertionError("a run is summed up once it has ended")
    if as_json:
        last = rounds[-1].metrics if rounds else {}
        summary = {
            "run": run.spec.name,
            "phase": run.phase.value,
            "rounds": len(rounds),
            "metrics": dict(last),
            "best": asdict(run.best) if run.best else None,
            "reason": run.reason,
            "adapter": str(folder.final_adapter),
            "report": str(folder.report_file),
        }
        print_json(summary)
        return
    console = output()
    console.print(rounds_table(rounds, title=f"{run.spec.name}: {headline}"))
    console.print()
    if run.reason:
        console.print(f"ended    {run.reason}", markup=False, highlight=False, soft_wrap=True)
    if best := run.best:
        console.print(
            f"best     round {best.round}, {best.metric} {best.value:.4g}", highlight=False
        )
    for what, place in (("adapter", folder.final_adapter), ("report ", folder.report_file)):
        console.print(f"{what}  {place}", markup=False, highlight=False, soft_wrap=True)
    console.print()
    snippet = peft_snippet(run.spec.adapter, folder.final_adapter)
    if console.is_terminal:
        console.print(Syntax(snippet, "python", background_color="default"))
    else:
        console.print(snippet, markup=False, highlight=False, soft_wrap=True)


def peft_snippet(spec: AdapterSpec, adapter: Path) -> str:
    """Python that loads the adapter with transformers and peft, and nothing of fedlora."""
    classifier = spec.task_type is TaskType.SEQUENCE_CLASSIFICATION
    model_class = f"AutoModelFor{'SequenceClassification' if classifier else 'CausalLM'}"
    labels = f", num_labels={len(spec.labels)}" if classifier else ""
    base = _base_folder(spec.base_model.model_id)
    return (
        "from peft import PeftModel\n"
        f"from transformers import {model_class}\n\n"
        f'base = {model_class}.from_pretrained("{base}"{labels})\n'
        f'model = PeftModel.from_pretrained(base, "{adapter}")'
    )


def _base_folder(model_id: str) -> str:
    """What transformers needs to be told: the folder within a package, or the id itself."""
    if model_id.startswith("random:"):
        return "<the base model: random weights, made by each worker>"
    if importlib.util.find_spec("client_worker") is None:
        return model_id
    from client_worker.adaptation.sources import find_source

    return find_source(model_id).location
