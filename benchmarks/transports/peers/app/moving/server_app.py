"""The server: FedAvg over all clients, noting when rounds begin and end."""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class NotedFedAvg(FedAvg):
    """FedAvg that notes when its rounds begin and end."""

    def __init__(self, **options):
        super().__init__(**options)
        self.times = []

    def configure_train(self, server_round, arrays, config, grid):
        """Begins a round."""
        self.times.append([time.perf_counter(), 0.0])
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        """Ends it."""
        combined = super().aggregate_train(server_round, replies)
        self.times[-1][1] = time.perf_counter()
        return combined


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs the rounds, then writes their times, in seconds, to the file that was named."""
    config = context.run_config
    rank, width, clients = (int(config[name]) for name in ("rank", "width", "clients"))
    pair = [np.zeros((rank, width), np.float32), np.zeros((width, rank), np.float32)]
    strategy = NotedFedAvg(
        fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients
    )
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(int(config["layers"]) * pair),
        num_rounds=int(config["rounds"]),
    )
    Path(str(config["times"])).write_text(json.dumps(strategy.times))
