"""Flower's legacy gRPC server: FedAvg over the clients that connect. Runs in Flower's environment.

    python legacy_server.py ADDRESS LAYERS RANK WIDTH CLIENTS ROUNDS

Prints the times, in seconds, at which rounds began and at which their result was there.
"""

import json
import sys
import time

import numpy as np
from flwr.common import ndarrays_to_parameters
from flwr.compat.server.app import start_server
from flwr.server.server_config import ServerConfig
from flwr.server.strategy import FedAvg

MOST_BYTES = 2**31 - 1


class NotedFedAvg(FedAvg):
    """FedAvg that notes when its rounds begin and end."""

    def __init__(self, **options):
        super().__init__(**options)
        self.times = []

    def configure_fit(self, server_round, parameters, client_manager):
        """Begins a round."""
        self.times.append([time.perf_counter(), 0.0])
        return super().configure_fit(server_round, parameters, client_manager)

    def aggregate_fit(self, server_round, results, failures):
        """Ends it."""
        assert not failures, failures
        combined = super().aggregate_fit(server_round, results, failures)
        self.times[-1][1] = time.perf_counter()
        return combined


def main():
    address = sys.argv[1]
    layers, rank, width, clients, rounds = map(int, sys.argv[2:])
    pair = [np.zeros((rank, width), np.float32), np.zeros((width, rank), np.float32)]
    strategy = NotedFedAvg(
        fraction_evaluate=0.0,
        min_fit_clients=clients,
        min_available_clients=clients,
        initial_parameters=ndarrays_to_parameters(layers * pair),
    )
    start_server(
        server_address=address,
        config=ServerConfig(num_rounds=rounds),
        strategy=strategy,
        grpc_max_message_length=MOST_BYTES,
    )
    print(json.dumps(strategy.times), flush=True)


if __name__ == "__main__":
    main()
