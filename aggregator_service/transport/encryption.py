"""What a server's ports are encrypted with, and the refusal to do without it by accident.

Files are read again for every connection if they have changed, so that a certificate is renewed,
or an authority followed by another, without a restart. A renewal that cannot be used is logged, and
the server goes on with what it has.
"""

from __future__ import annotations

import time
from pathlib import Path

import grpc
import structlog

from aggregator_service.config import AggregatorConfig
from fedlora.errors import FedLoraError, Reason
from fedlora.identity.folder import IdentityFiles, read_identity, stamp
from fedlora.identity.names import AccessRole
from fedlora.rpc.security import is_loopback

__all__ = ["ServerIdentity", "check_exposure"]

log = structlog.get_logger(__name__)


class ServerIdentity:
    """A server's certificate as it is on disk now.

    Args:
        folder: with ca.crt, tls.crt and tls.key.

    Raises:
        FedLoraError: INVALID_CONFIG unless it is a server's identity, and good.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stamp = stamp(folder)
        self.files = self._read()

    def credentials(self, *, asks_for_certificates: bool) -> grpc.ServerCredentials:
        """Of a port.

        Args:
            asks_for_certificates: refuse in the handshake who has none of the authority's.
        """
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self.files),
            self._current,
            require_client_authentication=asks_for_certificates,
        )

    def _current(self) -> grpc.ServerCertificateConfiguration:
        """What the next connection is made with; called in a thread of gRPC's."""
        now = stamp(self._folder)
        if now != self._stamp:
            try:
                self.files = self._read()
            except FedLoraError as error:
                log.error("identity_not_renewed", error=str(error))  # noqa: TRY400
            else:
                log.info("identity_renewed", expires=self.files.certified.not_after)
            self._stamp = now
        return _configuration(self.files)

    def _read(self) -> IdentityFiles:
        files = read_identity(self._folder, now=time.time())
        if files.identity.role is not AccessRole.SERVER:
            raise FedLoraError(
                Reason.INVALID_CONFIG,
                f"{self._folder} is the identity of {files.identity}, and a server needs one of "
                "the role server",
                hint="Set server.identity_dir to the folder `server` that `fedlora pki init` makes",
            )
        return files


def check_exposure(config: AggregatorConfig) -> None:
    """Refuses plain text beyond this machine unless it is asked for, and warns where it is.

    Raises:
        FedLoraError: INVALID_CONFIG.
    """
    if config.identity_dir is None and not is_loopback(config.address):
        if not config.insecure:
            raise FedLoraError(
                Reason.INVALID_CONFIG,
                f"server.address is {config.address}, which other machines reach, and there is no "
                "server.identity_dir: everybody could read and do everything",
                hint="Make identities with `fedlora pki init` (docs/security.md), serve on "
                "127.0.0.1, or say server.insecure = true",
            )
        log.warning("plain_text", address=config.address, tokens=config.tokens_file is not None)
    if config.health_address and not is_loopback(config.health_address):
        log.warning(
            "health_in_plain_text", address=config.health_address, shows="whether the server serves"
        )


def _configuration(files: IdentityFiles) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(files.key_pem, files.certificates_pem)], root_certificates=files.authorities_pem
    )
