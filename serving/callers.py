"""Who calls, and why a caller is turned away; knows no transport and no method's work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from serving.method_policies import Scope


@dataclass(frozen=True)
class Origin:
    """What a transport knows about a call before anything is decided.

    `peer` is the network address of the other end without its port; `metadata` has names in lower case; `certificate`
    holds the names in a verified client certificate; `remaining` is the seconds that the caller will wait, or None;
    `admin` tells that the call came to the address for operators.
    """

    peer: str = ""
    metadata: Mapping[str, str | bytes] = field(default_factory=dict)
    certificate: tuple[str, ...] = ()
    remaining: float | None = None
    admin: bool = False


@dataclass(frozen=True)
class Caller:
    """Somebody with permissions; the name is for limits and logs.

    `kind` is "token", "certificate" or "anonymous": the last has an address for a name, of which there is no end.
    """

    name: str
    scopes: frozenset[Scope]
    kind: str


class Unauthenticated(Exception):
    """The server asks who calls, and got no credential, or one that it does not accept; the text is for the client."""


class PermissionDenied(Exception):
    """The caller is known and may not do this."""

    def __init__(self, scope: Scope) -> None:
        super().__init__(f'this needs the scope "{scope}", which the credential does not have')
        self.scope = scope


class UnknownMethod(Exception):
    """Nothing of this name is answered here."""
