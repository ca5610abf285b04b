"""Where an index in Milvus is, and how to speak to it; knows no image and no vector."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from data.errors import UserError
from serving.vector_store import StoreUnreachable

if TYPE_CHECKING:
    from pymilvus import MilvusClient

KINDS = ("FLAT", "HNSW", "IVF_FLAT", "AUTOINDEX")


@dataclass(frozen=True)
class MilvusAddress:
    """Where Milvus is and what the index is called there.

    `milvus://HOST:PORT?name=photos` is a server; `milvus:///path/to/file.db?name=photos` is Milvus Lite, in a file.
    `&kind=HNSW` says how a collection that is published there is searched; see `publish`.
    """

    uri: str
    name: str = "images"
    kind: str = "FLAT"

    @classmethod
    def parse(cls, text: str) -> MilvusAddress:
        """`UserError` for what is no such address."""
        parts = urlsplit(text)
        options = parse_qs(parts.query)
        name, kind = options.pop("name", ["images"])[0], options.pop("kind", [KINDS[0]])[0]
        if (
            parts.scheme != "milvus"
            or not (parts.netloc or parts.path)
            or options
            or not re.fullmatch(r"\w{1,200}", name)
            or kind not in KINDS
        ):
            raise UserError(
                "milvus://HOST:PORT?name=NAME or milvus:///PATH.db?name=NAME, NAME of letters, digits and _, perhaps "
                f"with &kind= {', '.join(KINDS)}",
                repr(text),
                "correct --store",
            )
        return cls(f"http://{parts.netloc}" if parts.netloc else parts.path, name, kind)


def check_reachable(address: str) -> None:
    """`StoreUnreachable` or `UserError` when nothing could be published at `address`."""
    where = MilvusAddress.parse(address)
    with refusals(where.uri):
        connect(where.uri).close()


def connect(uri: str) -> MilvusClient:
    """A connection; `StoreUnreachable`."""
    try:
        from pymilvus import MilvusClient
    except ImportError:
        raise StoreUnreachable("the package pymilvus", "none", "pip install -r requirements-scale.txt") from None
    # It prints a traceback for every refusal; what matters is in ours (`refusals`).
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    return MilvusClient(uri)


@contextmanager
def refusals(where: str) -> Iterator[None]:
    """Milvus's errors as ours."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("pymilvus", "grpc", "milvus_lite"):
            raise
        raise StoreUnreachable(
            f"an answer of Milvus ({where})", f"{error}"[:300], "check the address and its log"
        ) from None
