from pathlib import Path

import pytest

from client_worker.__main__ import worker_config
from client_worker.config import WorkerConfig, default_name
from client_worker.data.config import DataConfig
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.tasks import check_worker_name

DATA = DataConfig(path="d.jsonl")


@pytest.mark.parametrize("server", ["", "host", "host:", ":8400", "host:port", "host:0", "h:70000"])
def test_an_address_without_host_and_port_is_refused_with_an_example(server: str):
    with pytest.raises(FedLoraError, match=r"worker\.server must be host:port.*127\.0\.0\.1"):
        WorkerConfig(server=server, data=DATA)


@pytest.mark.parametrize("server", ["127.0.0.1:8400", "aggregator:8400", "[::1]:8400"])
def test_addresses_of_all_kinds_are_taken(server: str):
    assert WorkerConfig(server=server, data=DATA).server == server


@pytest.mark.parametrize("field", ["threads", "max_rank", "wait_for_server_seconds"])
def test_negative_numbers_are_refused_by_name(field: str):
    with pytest.raises(FedLoraError, match=f"worker.{field}") as caught:
        WorkerConfig(data=DATA, **{field: -1})
    assert caught.value.reason is Reason.INVALID_CONFIG


def test_a_name_the_server_would_refuse_is_refused_here():
    with pytest.raises(FedLoraError, match="worker name"):
        WorkerConfig(name="../up", data=DATA)


@pytest.mark.parametrize("host", ["node-7.example.org", "-odd_host", "x" * 300])
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_the_default_name_is_host_and_device_and_well_formed(monkeypatch, host: str, device: str):
    monkeypatch.setattr("socket.gethostname", lambda: host)
    name = default_name(device)
    assert check_worker_name(name) == name
    assert name.endswith(device.replace(":", "-"))


def test_flags_lie_over_the_environment_over_the_file(tmp_path: Path, monkeypatch):
    file = tmp_path / "worker.toml"
    file.write_text(
        '[worker]\nserver = "file:1"\nname = "file"\ndevice = "cpu"\n[data]\npath = "rows.jsonl"\n'
    )
    monkeypatch.setenv("FEDLORA_WORKER__NAME", "environment")
    monkeypatch.setenv("FEDLORA_WORKER__SERVER", "environment:1")
    config = worker_config(["--config", str(file), "--server", "flag:1"])
    assert (config.server, config.name, config.device) == ("flag:1", "environment", "cpu")
    assert Path(config.data.path).name == "rows.jsonl"


def test_the_environment_alone_is_enough(monkeypatch):
    monkeypatch.delenv("FEDLORA_CONFIG", raising=False)
    monkeypatch.setenv("FEDLORA_DATA__PATH", "rows.jsonl")
    assert worker_config([]).data.path.endswith("rows.jsonl")
