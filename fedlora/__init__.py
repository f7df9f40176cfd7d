"""fedlora: fine-tune one large model by many parties who never share their data.

This package holds what the aggregation server and the workers share: the words
of the domain, the tensor format, the wire. The server is `aggregator_service`,
the worker `client_worker`, the command line `fedlora_cli`.
"""

from fedlora._version import __version__

__all__ = ["__version__"]
