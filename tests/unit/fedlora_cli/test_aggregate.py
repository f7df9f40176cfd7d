"""`fedlora aggregate` on real folders, against peft and the dense mean of products."""

from __future__ import annotations

import json
import math

import pytest
import torch
import typer
from safetensors.torch import load_file
from support.builders import MODULES, write_folder
from support.peft_models import adapted, causal_lm, classifier, delta_weights, gpt2, logits
from typer.testing import CliRunner

from fedlora.adapters.names import Factor, lora_key
from fedlora.adapters.peft_files import read_peft_folder
from fedlora.errors import FedLoraError, Reason
from fedlora_cli.commands.aggregate import REPORT_NAME, aggregate


def run(*arguments):
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(aggregate)
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments):
    with pytest.raises(FedLoraError) as caught:
        run(*arguments)
    return caught.value


def products(folder):
    adapter = read_peft_folder(folder)
    tensors = load_file(adapter.weights)
    return {
        path: s
        * tensors[lora_key(path, Factor.LORA_B)].double()
        @ tensors[lora_key(path, Factor.LORA_A)].double()
        for path, s in adapter.scaling.items()
    }


def mean_of(deltas, weights):
    total = sum(weights)
    return {
        p: sum(w / total * d[p] for w, d in zip(weights, deltas, strict=True)) for p in deltas[0]
    }


def test_adapters_of_different_rank_alpha_dtype_and_scale_are_combined_exactly_in_peft(tmp_path):
    from peft import PeftModel

    settings = [
        {"r": 2, "lora_alpha": 8},
        {"r": 4, "lora_alpha": 3, "use_rslora": True},
        {"r": 3, "lora_alpha": 1.5, "rank_pattern": {"layer.1.attention.self.query": 5}},
    ]
    deltas, heads = [], []
    for i, setting in enumerate(settings):
        wrapped = adapted(
            classifier(),
            seed=i,
            task_type="SEQ_CLS",
            target_modules=["query", "dense"],
            exclude_modules=["classifier"],
            **setting,
        )
        if i == 1:
            wrapped = wrapped.to(torch.bfloat16).float()
        wrapped.save_pretrained(tmp_path / f"in-{i}")
        deltas.append(delta_weights(wrapped))
        heads.append(wrapped.base_model.model.classifier.modules_to_save.default.weight.detach())
    inputs = [tmp_path / f"in-{i}" for i in range(3)]
    run(*inputs, "--weights", "3,1,2", "--rank", 12, "--out", tmp_path / "out")

    merged = PeftModel.from_pretrained(classifier(), tmp_path / "out").eval()
    expected = mean_of(deltas, [3, 1, 2])
    found = delta_weights(merged)
    assert found.keys() == expected.keys()
    for path, delta in expected.items():
        # rank 12 holds the sum 2 + 4 + 5, and float32 rounds both factors
        torch.testing.assert_close(found[path], delta, rtol=0, atol=1e-6)
    head = (3 * heads[0] + heads[1] + 2 * heads[2]) / 6
    kept = merged.base_model.model.classifier.modules_to_save.default.weight
    torch.testing.assert_close(kept, head, rtol=0, atol=1e-6)
    assert not torch.equal(logits(merged), logits(classifier()))
    out = read_peft_folder(tmp_path / "out")
    assert (out.r, out.lora_alpha, out.use_rslora) == (12, 12, False)
    assert set(out.ranks.values()) == {12}


def test_conv1d_models_are_combined_in_the_orientation_of_their_factors(tmp_path):
    from peft import PeftModel

    deltas = []
    for i in range(2):
        wrapped = adapted(
            gpt2(), seed=i, r=2, lora_alpha=4, target_modules=["c_attn"], fan_in_fan_out=True
        )
        wrapped.save_pretrained(tmp_path / f"{i}")
        deltas.append(delta_weights(wrapped))
    run(tmp_path / "0", tmp_path / "1", "--rank", 4, "--out", tmp_path / "out")
    merged = PeftModel.from_pretrained(gpt2(), tmp_path / "out").eval()
    for path, delta in mean_of(deltas, [1, 1]).items():
        torch.testing.assert_close(delta_weights(merged)[path], delta, rtol=0, atol=1e-6)


def test_a_gauge_changes_the_factors_and_not_the_product(tmp_path):
    folders = [write_folder(tmp_path / f"{i}", seed=i) for i in range(3)]
    run(*folders, "-m", "fedit", "--out", tmp_path / "own")
    run(*folders, "-m", "fedit", "--gauge", "orthonormal_a", "--out", tmp_path / "out")
    assert json.loads((tmp_path / "out" / REPORT_NAME).read_text())["gauge"] == "orthonormal_a"
    own = products(tmp_path / "own")
    for path, product in products(tmp_path / "out").items():
        torch.testing.assert_close(product, own[path], rtol=0, atol=1e-5)
        a = load_file(read_peft_folder(tmp_path / "out").weights)[lora_key(path, Factor.LORA_A)]
        torch.testing.assert_close(a @ a.T, torch.eye(len(a)), rtol=0, atol=1e-5)


def test_a_gauge_that_there_is_not_is_answered_with_all_that_there_are(tmp_path):
    folder = write_folder(tmp_path / "0", seed=0)
    error = refused(folder, folder, "--gauge", "nearest", "--out", tmp_path / "out")
    assert "--gauge: expected one of own, balanced" in error.message


@pytest.mark.parametrize("use_rslora", [False, True])
def test_settings_that_all_inputs_share_are_kept(use_rslora, tmp_path):
    for i in range(2):
        write_folder(tmp_path / f"{i}", seed=i, rank=4, lora_alpha=32, use_rslora=use_rslora)
    run(tmp_path / "0", tmp_path / "1", "-m", "fedit", "--out", tmp_path / "out")
    out = read_peft_folder(tmp_path / "out")
    assert (out.r, out.lora_alpha, out.use_rslora) == (4, 32, use_rslora)
    assert set(out.scaling.values()) == {32 / (2 if use_rslora else 4)}
    tensors = [load_file(tmp_path / n / "adapter_model.safetensors") for n in ("0", "1", "out")]
    for key in tensors[2]:
        mean = (tensors[0][key].double() + tensors[1][key].double()) / 2
        torch.testing.assert_close(tensors[2][key].double(), mean, rtol=0, atol=1e-6)


def test_the_report_holds_the_error_of_every_layer(tmp_path):
    for i in range(3):
        write_folder(tmp_path / f"{i}", seed=i)
    inputs = [tmp_path / f"{i}" for i in range(3)]
    run(*inputs, "-m", "flora_na", "--option", "random_starts=4", "--out", tmp_path / "out")
    report = json.loads((tmp_path / "out" / REPORT_NAME).read_text())
    assert report["options"]["random_starts"] == 4
    assert [i["weight"] for i in report["inputs"]] == [1.0, 1.0, 1.0]
    expected, found = mean_of([products(i) for i in inputs], [1, 1, 1]), products(tmp_path / "out")
    assert [e["module"] for e in report["certificate"]["modules"]] == sorted(MODULES)
    squares = [0.0, 0.0]
    for entry in report["certificate"]["modules"]:
        target = expected[entry["module"]]
        error = found[entry["module"]] - target
        assert entry["relative_error"] == pytest.approx(
            float(error.norm() / target.norm()), rel=1e-3
        )
        assert entry["measurements"]["starts"] == 6.0
        # without --start nothing is known of the change, and JSON has no NaN
        assert entry["change_norm"] is None
        squares = [squares[0] + float(error.norm()) ** 2, squares[1] + float(target.norm()) ** 2]
    overall = report["certificate"]["overall"]
    assert overall["relative_error"] == pytest.approx(math.sqrt(squares[0] / squares[1]), rel=1e-3)
    assert overall["lower_bound"] < overall["relative_error"] < overall["factor_mean_error"]


def test_with_a_start_errors_are_given_against_the_change(tmp_path):
    for i in range(3):
        write_folder(tmp_path / f"{i}", seed=i)
    out = run(tmp_path / "0", tmp_path / "1", "--start", tmp_path / "2", "--out", tmp_path / "out")
    assert "vs change" in out
    report = json.loads((tmp_path / "out" / REPORT_NAME).read_text())
    overall = report["certificate"]["overall"]
    assert overall["change_norm"] > 0
    ratio = overall["relative_error_vs_change"] / overall["relative_error"]
    assert ratio == pytest.approx(overall["ideal_norm"] / overall["change_norm"])


def test_the_table_names_the_result_and_the_layers(tmp_path):
    for i in range(2):
        write_folder(tmp_path / f"{i}", seed=i)
    report = tmp_path / "reports" / "r.json"
    out = run(tmp_path / "0", tmp_path / "1", "--out", tmp_path / "out", "--report", report)
    assert "all layers" in out
    assert "encoder.1.dense" in out
    assert report.is_file()
    assert not (tmp_path / "out" / REPORT_NAME).exists()


def test_the_certificate_of_many_adapters_says_that_it_is_an_estimate(tmp_path):
    shape = {"encoder.0.query": (200, 160)}
    folders = [write_folder(tmp_path / f"{u:02}", seed=u, rank=8, modules=shape) for u in range(40)]
    out = tmp_path / "out"
    printed = run(*folders, "--method", "optimal", "--out", out)
    assert "estimates, good to about 2 %" in " ".join(printed.split())
    entry = json.loads((out / REPORT_NAME).read_text())["certificate"]["overall"]
    assert entry["is_estimate"]
    deltas = [products(folder) for folder in folders]
    exact = mean_of(deltas, [1.0] * 40)["encoder.0.query"]
    error = float((products(out)["encoder.0.query"] - exact).norm() / exact.norm())
    assert entry["relative_error"] == pytest.approx(error, rel=0.08)


def test_json_output_is_the_report(tmp_path):
    for i in range(2):
        write_folder(tmp_path / f"{i}", seed=i)
    out = run(tmp_path / "0", tmp_path / "1", "--out", tmp_path / "out", "--json")
    assert json.loads(out) == json.loads((tmp_path / "out" / REPORT_NAME).read_text())


def test_the_order_of_folders_changes_no_byte(tmp_path):
    for i in range(3):
        write_folder(tmp_path / f"{i}", seed=i)
    dirs = [tmp_path / f"{i}" for i in range(3)]
    run(*dirs, "-w", "1,2,3", "-m", "flora_na", "--out", tmp_path / "a")
    run(*dirs[::-1], "-w", "3,2,1", "-m", "flora_na", "--out", tmp_path / "b")
    one, other = ((tmp_path / n / "adapter_model.safetensors").read_bytes() for n in "ab")
    assert one == other


def test_a_folder_that_is_there_is_not_replaced_unasked(tmp_path):
    for i in range(2):
        write_folder(tmp_path / f"{i}", seed=i)
    command = (tmp_path / "0", tmp_path / "1", "--out", tmp_path / "out")
    run(*command)
    assert refused(*command).reason is Reason.ALREADY_EXISTS
    run(*command, "--overwrite")
    for out in (tmp_path / "0", tmp_path):
        assert "is or holds" in str(
            refused(tmp_path / "0", tmp_path / "1", "--out", out, "--overwrite")
        )
    assert (tmp_path / "1" / "adapter_config.json").is_file()


@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        ({"base_model_name_or_path": "other"}, Reason.BASE_MISMATCH, "'other'"),
        ({"task_type": "CAUSAL_LM"}, Reason.LAYOUT_MISMATCH, "task_type"),
        ({"modules": {"x": (3, 4)}}, Reason.LAYOUT_MISMATCH, "adapt different layers"),
        ({"use_dora": True}, Reason.LAYOUT_MISMATCH, "kind of adapter"),
    ],
)
def test_adapters_that_do_not_belong_together_are_refused(change, reason, words, tmp_path):
    write_folder(tmp_path / "0", seed=0)
    write_folder(tmp_path / "1", seed=1, **change)
    error = refused(tmp_path / "0", tmp_path / "1", "--out", tmp_path / "out")
    assert error.reason is reason
    assert words in str(error)
    assert not (tmp_path / "out").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--weights", "1"], "expected one for each of 2 folders, got 1"),
        (["--weights", "1,x"], "expected numbers"),
        (["--method", "fedlt"], "Did you mean 'fedit'"),
        (["--option", "sweeps"], "expected key=value"),
        (["--option", "core=lu"], "expected one of auto, qr, gram, randomised"),
        (["--dtype", "f8"], "expected one of f32, f16, bf16"),
        (["--device", "tpu9"], "tpu9"),
    ],
)
def test_a_mistyped_command_says_what_was_expected(arguments, words, tmp_path):
    for i in range(2):
        write_folder(tmp_path / f"{i}", seed=i)
    error = refused(tmp_path / "0", tmp_path / "1", "--out", tmp_path / "out", *arguments)
    assert words in str(error)


def test_one_folder_named_twice_is_refused(tmp_path):
    write_folder(tmp_path / "0", seed=0)
    error = refused(tmp_path / "0", tmp_path / "0" / ".", "--out", tmp_path / "out")
    assert "named twice" in str(error)


def test_a_causal_model_answers_with_the_combined_adapter(tmp_path):
    from peft import PeftModel

    for i in range(2):
        adapted(
            causal_lm(), seed=i, r=2, task_type="CAUSAL_LM", target_modules=r".*\.(q|v)_proj"
        ).save_pretrained(tmp_path / f"{i}")
    run(tmp_path / "0", tmp_path / "1", "-m", "fedit", "--out", tmp_path / "out")
    merged = PeftModel.from_pretrained(causal_lm(), tmp_path / "out").eval()
    assert read_peft_folder(tmp_path / "out").target_modules == r".*\.(q|v)_proj"
    assert not torch.equal(logits(merged), logits(causal_lm()))


def test_doras_magnitudes_fit_the_mean_weight_where_the_base_model_is_given(tmp_path):
    from peft import PeftModel
    from safetensors.torch import save_file

    frozen = classifier().state_dict()
    save_file({k: v.clone() for k, v in frozen.items()}, tmp_path / "base.safetensors")
    settings = {"r": 2, "lora_alpha": 4, "target_modules": ["query"], "use_dora": True}
    weights = []
    for i in range(2):
        wrapped = adapted(classifier(), seed=i, **settings)
        wrapped.save_pretrained(tmp_path / f"{i}")
        weights.append(merged_weights(wrapped))
    chosen = ["-m", "flora_na", "--option", "magnitudes=least_squares"]
    both = [tmp_path / "0", tmp_path / "1"]
    error = refused(*both, *chosen, "--out", tmp_path / "out")
    assert "--base-weights" in error.hint
    run(*both, *chosen, "--base-weights", tmp_path / "base.safetensors", "--out", tmp_path / "out")
    run(*both, "-m", "flora_na", "--out", tmp_path / "plain")
    errors = {}
    for name in ("out", "plain"):
        found = merged_weights(PeftModel.from_pretrained(classifier(), tmp_path / name).eval())
        mean = {path: (weights[0][path] + weights[1][path]) / 2 for path in found}
        errors[name] = {path: (found[path] - mean[path]).norm(dim=1) for path in found}
    for path, rows in errors["out"].items():
        # No row is farther from the clients' mean weight than with the mean magnitude.
        assert bool((rows <= errors["plain"][path] + 1e-6).all())
        assert float(rows.sum()) < 0.999 * float(errors["plain"][path].sum())


def merged_weights(wrapped):
    """Every adapted weight as peft serves it."""
    merged = wrapped.merge_and_unload()
    return {k: v.double() for k, v in merged.state_dict().items() if k.endswith("query.weight")}
