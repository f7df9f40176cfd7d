"""Which methods gRPC may repeat by itself, held against every service of the contract."""

from __future__ import annotations

import importlib
import json
import pkgutil

from google.protobuf.descriptor import MethodDescriptor

import fedlora.proto.v1
from fedlora.rpc.channel import client_options


def methods_of_all_services() -> dict[str, MethodDescriptor]:
    """By full name, of all generated modules: a new one is found here by itself."""
    modules = [
        importlib.import_module(f"fedlora.proto.v1.{found.name}")
        for found in pkgutil.iter_modules(fedlora.proto.v1.__path__)
        if found.name.endswith("_pb2")
    ]
    return {
        method.full_name: method
        for module in modules
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


METHODS = methods_of_all_services()


def repeated_by_grpc() -> list[dict[str, str]]:
    """The names under which the options of a channel allow a call to be made again."""
    config = json.loads(dict(client_options())["grpc.service_config"])
    return [
        name
        for entry in config["methodConfig"]
        if entry.keys() & {"retryPolicy", "hedgingPolicy"}
        for name in entry["name"]
    ]


def test_the_contract_has_streams_in_both_directions():
    assert any(m.client_streaming for m in METHODS.values())
    assert any(m.server_streaming for m in METHODS.values())


def test_grpc_repeats_methods_that_are_named_one_by_one_and_no_stream():
    names = repeated_by_grpc()
    assert names
    for name in names:
        # Without a method a name stands for all of the service, without a service for all.
        method = METHODS[f"{name['service']}.{name['method']}"]
        assert not method.client_streaming, method.full_name
        assert not method.server_streaming, method.full_name
