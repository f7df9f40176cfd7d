"""Every method of the registry on saved adapters: what its row says of them is what happens."""

from __future__ import annotations

import json
import math

import pytest
import typer
from safetensors.torch import load_file, save_file
from support.builders import MODULES, write_folder
from typer.testing import CliRunner

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.registry import METHODS
from fedlora.adapters.peft_files import read_peft_folder
from fedlora.errors import FedLoraError, Reason
from fedlora_cli.commands.aggregate import aggregate
from fedlora_cli.method_words import saved


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Three adapters, the same three with one lora_A, and where they may have begun."""
    folder = tmp_path_factory.mktemp("adapters")
    apart = [write_folder(folder / f"apart-{u}", seed=u + 1) for u in range(3)]
    together = [write_folder(folder / f"together-{u}", seed=u + 1) for u in range(3)]
    first = load_file(together[0] / "adapter_model.safetensors")
    for one in together[1:]:
        file = one / "adapter_model.safetensors"
        own = load_file(file)
        save_file(
            {key: first[key] if "lora_A" in key else own[key] for key in own},
            file,
            metadata={"format": "pt"},
        )
    return {"apart": apart, "together": together, "start": write_folder(folder / "s", seed=9)}


def combined(name, adapters, out, *more):
    """The report of the result."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(aggregate)
    given = [*adapters, "--out", out, "--method", name, "--json", *more]
    result = CliRunner().invoke(app, [str(argument) for argument in given])
    if isinstance(result.exception, FedLoraError):
        raise result.exception
    assert result.exit_code == 0, result.output
    assert set(read_peft_folder(out).ranks) == set(MODULES)
    return json.loads(result.stdout)


def refusal(name, adapters, out, *more):
    with pytest.raises(FedLoraError) as caught:
        combined(name, adapters, out, *more)
    assert caught.value.reason is Reason.UNSUPPORTED_METHOD
    assert caught.value.hint
    assert not out.exists()
    return caught.value


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_combines_the_saved_adapters_that_its_row_names(name, cohort, tmp_path):
    row, apart, more = saved(METHODS[name]), cohort["apart"], ()
    adapters = apart
    match row.split(":")[0]:
        case "no":
            error = refusal(name, apart, tmp_path / "out", "--start", cohort["start"])
            missing = row.removeprefix("no: they lack ")
            assert missing in ("the metrics loss_reduction", "a core") or "score_mean" in missing
            assert f"needs {missing} with every update, and saved adapters" in error.message
            return
        case "those of one lora_A":
            error = refusal(name, apart, tmp_path / "out")
            assert f"{name} needs one lora_A for the whole cohort" in error.message
            adapters = cohort["together"]
        case "with --start":
            error = refusal(name, apart, tmp_path / "out")
            assert "needs the adapter that training began from" in error.message
            more = ("--start", cohort["start"])
        case other:
            assert other == "yes"
    found = combined(name, adapters, tmp_path / "out", *more)["certificate"]["overall"]
    assert math.isfinite(found["relative_error"])
    if compose(METHODS[name]).properties.exact:
        # Rounded to float32 when it is written.
        assert found["relative_error"] < 1e-6


def test_the_rows_are_of_all_four_kinds():
    assert {saved(method).split(":")[0] for method in METHODS.values()} == {
        "yes",
        "no",
        "with --start",
        "those of one lora_A",
    }


def test_a_rule_that_needs_metrics_is_refused_whatever_the_method(cohort, tmp_path):
    more = ("--weighting", "loss_reduction")
    error = refusal("optimal", cohort["apart"], tmp_path / "out", *more)
    assert "optimal with loss_reduction weights needs the metrics loss_reduction" in error.message
