"""The file of bearer tokens: names, scopes, ends and digests, never a token itself; knows no caller.

A token is 256 random bits. Nobody finds it by trying, so its digest is a plain SHA-256: a slow hash makes guessing a
person's password dear, and here would only make every call dear.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data.durable import only_process, readable_json, write_atomic
from data.errors import UserError
from serving.method_policies import Scope

PREFIX = "ist_"  # tells what it is to those who search code for secrets
_FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class TokenError(UserError):
    """The token file, or what is asked of it, cannot be used."""


@dataclass(frozen=True)
class Token:
    """What is known about a token. `expires` is seconds since 1970, or None."""

    name: str
    digest: str
    scopes: frozenset[Scope]
    created: float
    expires: float | None


class TokenFile:
    """The tokens in a file as it was when it was read."""

    def __init__(self, path: Path, tokens: list[Token], stamp: tuple[int, ...]) -> None:
        self.path, self.tokens, self._stamp = path, tokens, stamp
        self._by_digest = {token.digest: token for token in tokens}

    @classmethod
    def read(cls, path: Path) -> TokenFile:
        """The file's tokens; `TokenError` when it is absent or malformed."""
        try:
            with path.open("rb") as file:
                stamp = _stamp(os.fstat(file.fileno()))
                content = file.read()
            return cls(path, list(_parsed(json.loads(content))), stamp)
        except OSError as error:
            next_step = "make it by python -m serving.tokens create"
            raise TokenError("a readable file of tokens", f"{path} ({error.strerror})", next_step) from None
        except (ValueError, KeyError, TypeError, AttributeError):
            next_step = "restore it, or make a new one by python -m serving.tokens create"
            raise TokenError("a file of tokens", f"{path}, which is none", next_step) from None

    def again(self) -> TokenFile:
        """The file as it is now; this one when it has not changed."""
        return self if _stamp(self.path.stat()) == self._stamp else TokenFile.read(self.path)

    def find(self, token: str) -> Token | None:
        """The token as it is known. Takes the same time whether it is known or not.

        The look-up is by digest: whoever measures it learns of a digest, for which there is no way back to a token.
        """
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
        found = self._by_digest.get(digest)
        same = hmac.compare_digest(digest, found.digest if found else "0" * len(digest))
        return found if same else None


@contextmanager
def changing(path: Path) -> Iterator[list[Token]]:
    """The tokens of a file, to be changed; written when the block ends well. The only process to do so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    busy = TokenError("nobody else at work on the tokens", f"{path.parent}, which is locked", "try again")
    with only_process(path.parent, busy):
        tokens = TokenFile.read(path).tokens if path.exists() else []
        yield tokens
        write_atomic(path, readable_json({"format": _FORMAT, "tokens": [_written(token) for token in tokens]}), 0o600)


def create(path: Path, name: str, scopes: frozenset[Scope], now: float, expires: float | None = None) -> str:
    """Add a token and return it; it is known to nobody else and cannot be read again."""
    if not _NAME.fullmatch(name):
        expected = "a name of at most 64 letters, digits, dots, dashes and underscores"
        raise TokenError(expected, repr(name), "choose another")
    text = PREFIX + secrets.token_urlsafe(32)
    with changing(path) as tokens:
        if any(token.name == name for token in tokens):
            raise TokenError(
                "a name that is free", f"{name}, which is taken", "revoke that one first, or choose another"
            )
        tokens.append(Token(name, hashlib.sha256(text.encode()).hexdigest(), scopes, now, expires))
    return text


def revoke(path: Path, name: str) -> None:
    """Remove a token; servers notice within about a second."""
    TokenFile.read(path)
    with changing(path) as tokens:
        left = [token for token in tokens if token.name != name]
        if len(left) == len(tokens):
            known = ", ".join(token.name for token in tokens) or "none"
            raise TokenError("the name of a token", repr(name), f"these are known: {known}")
        tokens[:] = left


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_mtime_ns, status.st_size


def _parsed(content: Any) -> Iterator[Token]:
    if content["format"] != _FORMAT:
        raise ValueError
    for entry in content["tokens"]:
        digest, name = entry["sha256"], entry["name"]
        if not (re.fullmatch("[0-9a-f]{64}", digest) and _NAME.fullmatch(name)):
            raise ValueError
        scopes = frozenset(Scope(scope) for scope in entry["scopes"])
        yield Token(name, digest, scopes, _moment(entry["created"]), _moment(entry["expires"]))  # type: ignore[arg-type]


def _written(token: Token) -> dict[str, Any]:
    return {
        "name": token.name,
        "sha256": token.digest,
        "scopes": sorted(token.scopes),
        "created": shown_time(token.created),
        "expires": None if token.expires is None else shown_time(token.expires),
    }


def shown_time(seconds: float) -> str:
    """A moment in ISO 8601, to the second."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _moment(text: str | None) -> float | None:
    return None if text is None else datetime.fromisoformat(text).timestamp()
