from __future__ import annotations

import pytest

from client_worker.data.config import DataConfig
from fedlora.errors import FedLoraError, Reason


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"path": ""}, "data.path is empty"),
        ({"path": "a", "held_out_fraction": 1.0}, r"must lie in \[0, 1\), got 1.0"),
        ({"path": "a", "public_fraction": 1.0}, r"data.public_fraction must lie in \[0, 1\)"),
        ({"path": "a", "only_public": True}, "no row is public"),
        ({"path": "a", "max_examples": -1}, "max_examples must not be negative"),
        ({"path": "a", "split_column": "s", "test_path": "b"}, "both say where the test rows are"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values, complaint):
    with pytest.raises(FedLoraError, match=complaint) as caught:
        DataConfig(**values)
    assert caught.value.reason is Reason.INVALID_CONFIG
