"""Who may do what: bearer tokens and client certificates with scopes; knows no transport and no method.

Where nothing is configured, everybody may do everything, which is for a loopback address. As soon as tokens or
certificates are configured, nobody may do anything without one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serving.callers import Caller, Origin, Unauthenticated
from serving.method_policies import Scope
from serving.network import limited_network
from serving.settings_sources import SettingsError, setting
from serving.token_file import TokenFile

_EVERYTHING = frozenset(Scope)
_CHECK_EVERY = 1.0  # seconds between looks at the token file

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AccessSettings:
    """Where credentials are found."""

    tokens: Path | None = setting(None, "file of tokens, made by python -m serving.tokens", "FILE")
    certificates: dict[str, list[str]] = setting(
        {}, 'scopes by name in client certificates: "job" = ["write"]', "TABLE"
    )

    def __post_init__(self) -> None:
        for name, scopes in self.certificates.items():
            for scope in scopes:
                if scope not in _EVERYTHING:
                    expected = f"scopes of {', '.join(sorted(_EVERYTHING))}"
                    raise SettingsError(expected, f"{scope!r} for {name!r}", "correct it in access.certificates")

    @property
    def asked_for(self) -> bool:
        """Whether callers must show who they are."""
        return self.tokens is not None or bool(self.certificates)


class Access:
    """Tells the caller of a call. Reads the token file again when it has changed, without a restart.

    While the file cannot be read, the tokens read last stay: a mistake in it locks nobody out, and revokes nothing.
    """

    def __init__(self, settings: AccessSettings) -> None:
        self._asked_for = settings.asked_for
        self._tokens = TokenFile.read(settings.tokens) if settings.tokens is not None else None
        self._path = settings.tokens
        self._looked = time.monotonic()
        self._certificates: Mapping[str, frozenset[Scope]] = {
            name: frozenset(Scope(scope) for scope in scopes) for name, scopes in settings.certificates.items()
        }

    def caller(self, origin: Origin) -> Caller:
        """Who calls; `Unauthenticated` for no credential, an unknown or an expired one.

        A token says who calls even where there is a certificate as well: a proxy has one for everybody.
        """
        if not self._asked_for:
            return Caller(limited_network(origin.peer), _EVERYTHING, "anonymous")
        token = _bearer_token(origin.metadata)
        if token is not None:
            return self._by_token(token)
        for name in origin.certificate:
            if name in self._certificates:
                return Caller(name, self._certificates[name], "certificate")
        if origin.certificate:
            raise Unauthenticated("the names in the client certificate have no permissions here")
        raise Unauthenticated("this server asks for a token in the metadata: authorization: Bearer TOKEN")

    def _by_token(self, token: str) -> Caller:
        found = self._current().find(token) if self._tokens else None
        if found is None:
            raise Unauthenticated("the token is not one of this server's; it may have been revoked")
        if found.expires is not None and found.expires <= time.time():
            raise Unauthenticated("the token has expired")
        return Caller(found.name, found.scopes, "token")

    def _current(self) -> TokenFile:
        assert self._tokens is not None
        now = time.monotonic()
        if now - self._looked >= _CHECK_EVERY:
            self._looked = now
            try:
                self._tokens = self._tokens.again()
            except Exception as error:  # whatever it is, the server goes on with what it knows
                _log.error("the tokens are those read before, because their file cannot be read: %s", error)
        return self._tokens


def _bearer_token(metadata: Mapping[str, str | bytes]) -> str | None:
    """The token of RFC 6750; `Unauthenticated` for another scheme."""
    value = metadata.get("authorization")
    if value is None:
        return None
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    scheme, _, token = value.partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("the metadata authorization must be: Bearer TOKEN")
    return token.strip()
