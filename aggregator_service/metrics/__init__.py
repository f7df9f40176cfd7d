"""The server's Prometheus metrics, listed in docs/metrics.md.

Loaded only where they are asked for: `server.metrics_address`.
"""

from aggregator_service.metrics.served import ServerMetrics

__all__ = ["ServerMetrics"]
