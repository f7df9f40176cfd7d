"""A client of Flower's legacy gRPC path that adds a little to every value and trains nothing.

    python legacy_client.py ADDRESS

Runs in Flower's environment.
"""

import sys

from flwr.client import NumPyClient
from flwr.compat.client.app import start_client

MOST_BYTES = 2**31 - 1


class Moving(NumPyClient):
    """Sends back what came, a little changed."""

    def fit(self, parameters, config):  # noqa: ARG002 - the interface's
        """The values, a little changed; one example; no metrics."""
        return [values + 1e-3 for values in parameters], 1, {}


if __name__ == "__main__":
    start_client(
        server_address=sys.argv[1],
        client=Moving().to_client(),
        grpc_max_message_length=MOST_BYTES,
        transport="grpc-bidi",
        insecure=True,
    )
