"""TLS and mutual TLS for the server's ports, by files that may change while it runs; knows no port and no caller."""

from __future__ import annotations

import logging
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from serving.settings_sources import SettingsError, setting

if TYPE_CHECKING:
    import grpc

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TlsSettings:
    """Files in PEM. With `client_ca`, only clients whose certificate it has signed can connect (mutual TLS)."""

    certificate: Path | None = setting(None, "chain of the server's certificate, its own first", "FILE")
    key: Path | None = setting(None, "its private key", "FILE")
    client_ca: Path | None = setting(None, "certificates of those who sign clients' certificates: mutual TLS", "FILE")

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise SettingsError("tls.certificate and tls.key", "one of them", "give both, or none")
        if self.client_ca is not None and not self.on:
            raise SettingsError("tls.certificate and tls.key with tls.client_ca", "none", "give them too")

    @property
    def on(self) -> bool:
        """Whether connections are encrypted."""
        return self.certificate is not None


class CertificateFiles:
    """The server's certificates as gRPC asks for them at each new connection, from any thread.

    A change is taken over when the files belong together; until then, as between the renewal of a certificate and that
    of its key, new connections get what was read last. Connections that exist live on.
    """

    def __init__(self, settings: TlsSettings) -> None:
        self._settings = settings
        self._paths = [path for path in (settings.certificate, settings.key, settings.client_ca) if path is not None]
        self._lock = threading.Lock()
        self._stamps = self._look()
        self._read = self._checked()
        self._refused: str | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """For `add_secure_port`."""
        import grpc

        mutual = self._settings.client_ca is not None
        return grpc.dynamic_ssl_server_credentials(self._configuration(), self._changed, mutual)

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """The new certificates, or None when there is nothing new."""
        with self._lock:
            try:
                stamps = self._look()
                if stamps == self._stamps:
                    return None
                self._read, self._stamps, self._refused = self._checked(), stamps, None
            except SettingsError as error:
                if str(error) != self._refused:
                    self._refused = str(error)
                    _log.error("the certificates stay those read before: %s", error)
                return None
            _log.warning("new certificates are in use")
            return self._configuration()

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        import grpc

        certificate, key, *client_ca = self._read
        return grpc.ssl_server_certificate_configuration([(key, certificate)], *client_ca)

    def _look(self) -> list[tuple[int, int, int]]:
        try:
            stats = [path.stat() for path in self._paths]
        except OSError as error:
            raise _unreadable(error) from None
        return [(stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats]

    def _checked(self) -> list[bytes]:
        """The files' content; `SettingsError` unless gRPC can use it, of which gRPC itself tells nothing."""
        try:
            content = [path.read_bytes() for path in self._paths]
        except OSError as error:
            raise _unreadable(error) from None
        settings = self._settings
        assert settings.certificate is not None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(settings.certificate, settings.key, password=_no_password)
        except (ssl.SSLError, ValueError) as error:
            expected = "a certificate and its key in PEM, the key without a password"
            received = f"{settings.certificate} and {settings.key} ({_short(error)})"
            raise SettingsError(expected, received, "check both files") from None
        if settings.client_ca is not None:
            try:
                context.load_verify_locations(settings.client_ca)
            except ssl.SSLError as error:
                received = f"{settings.client_ca} ({_short(error)})"
                raise SettingsError("certificates in PEM", received, "check tls.client_ca") from None
        if [path.read_bytes() for path in self._paths] != content:
            raise SettingsError("files of certificates at rest", "some that are being replaced", "try again")
        return content


def _no_password() -> str:
    raise ValueError("the key is encrypted")


def _unreadable(error: OSError) -> SettingsError:
    return SettingsError("readable files of certificates", f"{error.filename} ({error.strerror})", "check the path")


def _short(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error)
