"""`python -m aggregator_service`: settings from FEDLORA_CONFIG and FEDLORA_SERVER__* only."""

from __future__ import annotations

import asyncio
import sys

from aggregator_service.config import AggregatorConfig
from fedlora.config import load_config
from fedlora.errors import FedLoraError
from fedlora.exit_codes import exit_code_of
from fedlora.telemetry.logs import configure_logging

__all__ = ["main"]


def main() -> int:
    """Serves until a signal; returns the exit code (docs/cli.md)."""
    configure_logging()
    try:
        config = load_config(services={"server": AggregatorConfig})
        settings = config.build("server", AggregatorConfig)
        # torch and gRPC take seconds to load: a mistake in the settings is told before.
        from aggregator_service.app import serve

        return asyncio.run(serve(settings, config.run))
    except FedLoraError as error:
        print(f"fedlora-aggregator: {error}", file=sys.stderr)  # noqa: T201
        return exit_code_of(error)


if __name__ == "__main__":
    sys.exit(main())
