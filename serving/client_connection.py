"""Where a server is and how it is reached: address, TLS, token, limits, retries; knows no method's messages."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, Unpack

import grpc

from data.errors import UserError
from protos.imageretrieval.v1 import (
    embedding_service_pb2_grpc,
    image_service_pb2_grpc,
    index_service_pb2_grpc,
    operation_service_pb2_grpc,
    search_service_pb2_grpc,
)
from serving.client_errors import ServiceError
from serving.network import host_and_port, is_loopback

DEFAULT_ADDRESS = "127.0.0.1:50051"
ENVIRONMENT = "SEARCH_CLIENT_"

# The largest image is 32 MiB; the rest of a request is small.
MAX_MESSAGE_BYTES = 33 * 1024 * 1024

_STUBS = {
    "SearchService": search_service_pb2_grpc.SearchServiceStub,
    "EmbeddingService": embedding_service_pb2_grpc.EmbeddingServiceStub,
    "ImageService": image_service_pb2_grpc.ImageServiceStub,
    "IndexService": index_service_pb2_grpc.IndexServiceStub,
    "OperationService": operation_service_pb2_grpc.OperationServiceStub,
}

# What may come twice: it changes nothing, or names itself by a request_id.
_REPEATABLE = {
    "SearchService": (),  # all of it; a stream until its first answer
    "EmbeddingService": (),
    "ImageService": (
        "GetImage", "BatchGetImages", "ListImages", "UpsertImage", "DeleteImage", "BatchDeleteImages",
    ),
    "IndexService": ("GetIndex", "ListSnapshots"),
    "OperationService": ("GetOperation", "ListOperations", "WaitOperation", "CancelOperation"),
}  # fmt: skip

# https://github.com/grpc/proposal/blob/master/A6-client-retries.md. These codes are of what passes by itself, see
# docs/errors.md. A server that tells when to come again (the trailer grpc-retry-pushback-ms) is asked then; when half
# of the tokens are spent, because most calls fail, none is repeated. A name with several addresses is several servers,
# which are asked in turn.
SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [
                {"service": f"imageretrieval.v1.{service}", **({"method": method} if method else {})}
                for service, methods in _REPEATABLE.items()
                for method in methods or ("",)
            ],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
}

_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A proxy for web pages is of no use on the way to a search server.
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
    ("grpc.service_config_disable_resolution", 1),
    # What is larger than this is not repeated; by default, images would not be.
    ("grpc.per_rpc_retry_buffer_size", MAX_MESSAGE_BYTES),
    # A stream whose server vanished ends; servers take more frequent pings for an attack.
    ("grpc.keepalive_time_ms", 300_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]


class ConnectionKeywords(TypedDict, total=False):
    """What a client can be told of its `Connection`, beside the address."""

    token: str | None
    tls: bool | None
    roots: str | Path | None
    certificate: str | Path | None
    key: str | Path | None
    server_name: str | None


@dataclass(frozen=True)
class Connection:
    """How to reach a server.

    With `tls`, or any of the files, the connection is encrypted: `roots` are the PEM certificates of the authorities to
    trust instead of the system's, `certificate` and `key` show who asks, `server_name` is the name in the server's
    certificate where it is not that of the address. The `token` goes with every call; without TLS it is only sent to
    this machine, and anything else is a `UserError`.
    """

    address: str = DEFAULT_ADDRESS
    token: str = field(default="", repr=False)
    tls: bool = False
    roots: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise UserError("a client's certificate with its key", "one of them", "give both, or none")
        if self.token and not self.encrypted and not _is_this_machine(self.address):
            raise UserError(
                "TLS on the way to another machine, so that nobody reads the token",
                f"{self.address} without TLS",
                "turn TLS on, or give the certificates to trust",
            )

    @property
    def encrypted(self) -> bool:
        """Whether TLS is used."""
        return self.tls or bool(self.roots or self.certificate or self.server_name)

    @property
    def metadata(self) -> Sequence[tuple[str, str]]:
        """What goes with each call beside the request."""
        return [("authorization", f"Bearer {self.token}")] if self.token and not self.encrypted else []

    def channel(self) -> grpc.Channel:
        """A connection for the sync client."""
        if not self.encrypted:
            return grpc.insecure_channel(self.address, options=_OPTIONS)
        return grpc.secure_channel(self.address, self._credentials(), options=self._tls_options())

    def async_channel(self) -> Any:
        """A connection for the async client."""
        if not self.encrypted:
            return grpc.aio.insecure_channel(self.address, options=_OPTIONS)
        return grpc.aio.secure_channel(self.address, self._credentials(), options=self._tls_options())

    def _credentials(self) -> grpc.ChannelCredentials:
        files = [None if path is None else path.read_bytes() for path in (self.roots, self.key, self.certificate)]
        credentials = grpc.ssl_channel_credentials(*files)
        if not self.token:
            return credentials
        return grpc.composite_channel_credentials(credentials, grpc.access_token_call_credentials(self.token))

    def _tls_options(self) -> list[tuple[str, Any]]:
        return [*_OPTIONS, ("grpc.ssl_target_name_override", self.server_name)] if self.server_name else _OPTIONS


def from_environment(address: str | None = None, **keywords: Unpack[ConnectionKeywords]) -> Connection:
    """A `Connection` as given, where that is not None, else as the environment says.

    `SEARCH_CLIENT_ADDRESS`, `SEARCH_CLIENT_TOKEN`, `SEARCH_CLIENT_TLS` (1 or 0), `SEARCH_CLIENT_ROOTS`,
    `SEARCH_CLIENT_CERTIFICATE`, `SEARCH_CLIENT_KEY` and `SEARCH_CLIENT_SERVER_NAME`.
    """
    given: dict[str, Any] = {"address": address, **keywords}
    settings: dict[str, Any] = {}
    for name in Connection.__dataclass_fields__:
        value = given.get(name)
        if value is None and (text := os.environ.get(f"{ENVIRONMENT}{name.upper()}")):
            value = text
        if value is None:
            continue
        if name in ("roots", "certificate", "key"):
            value = Path(value)
        if name == "tls" and isinstance(value, str):
            if value not in ("0", "1"):
                raise UserError(f"{ENVIRONMENT}TLS to be 1 or 0", value, "correct it")
            value = value == "1"
        settings[name] = value
    return Connection(**settings)


class Readiness:
    """What the health service says of a server that is waited for, `timeout` seconds in all."""

    def __init__(self, address: str, timeout: float) -> None:
        self._address, self._timeout = address, timeout
        self._end = time.monotonic() + timeout
        self._answer = "no answer"

    @property
    def remaining(self) -> float:
        """Seconds for the next question."""
        return max(0.0, self._end - time.monotonic())

    def is_there(self, response: Any) -> bool:
        """Whether the server answers calls."""
        statuses = type(response).ServingStatus
        self._answer = statuses.Name(response.status)
        return response.status == statuses.SERVING

    def refused(self, error: grpc.RpcError) -> None:
        """Note why there is no answer."""
        self._answer = error.code().name

    def pause(self) -> float:
        """Seconds until the next question; `ServiceError` "DEADLINE_EXCEEDED" when the time is over."""
        if not self.remaining:
            message = f"{self._address} was not ready after {self._timeout:g} s ({self._answer})"
            raise ServiceError("DEADLINE_EXCEEDED", "", message)
        return min(0.1, self.remaining)


def stubs(channel: Any) -> dict[str, Any]:
    """The methods of every service on a channel, sync or async."""
    return {name: stub(channel) for name, stub in _STUBS.items()}


def _is_this_machine(address: str) -> bool:
    """Whether nobody else is on the way to an address as gRPC writes it."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    several = address.removeprefix("ipv4:").removeprefix("ipv6:").removeprefix("dns:///").split(",")
    return all((found := host_and_port(one)) is not None and is_loopback(found[0]) for one in several)
