"""What a client's connection may do before any call is looked at: sizes, streams, pings, age; knows no call.

gRPC for Python cannot limit how many connections come from one address: a proxy before the server does that, see
docs/security.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from serving.settings_sources import setting

# The largest image is 32 MiB; the rest of a request is small.
MAX_MESSAGE_BYTES = 33 * 1024 * 1024


@dataclass(frozen=True)
class ConnectionSettings:
    """Limits of one HTTP/2 connection, and how many there may be."""

    count: int = setting(1_000, "connections to an address; of more, none is accepted", "N", 1, 1_000_000)
    concurrent_calls: int = setting(128, "calls under way in one connection; more wait in the client", "N", 1, 100_000)
    metadata_kib: int = setting(16, "metadata of a call, tokens and tracing included", "KIB", 1, 1_024)
    idle: float = setting(900.0, "without a call, after which a connection is closed", "SECONDS", 1)
    age: float = setting(
        3_600.0, "after which a connection takes no more calls, so that clients see new certificates", "SECONDS", 1
    )
    ping: float = setting(60.0, "of silence, after which the client is asked whether it is there", "SECONDS", 1)
    ping_wait: float = setting(20.0, "for the answer to that", "SECONDS", 1)
    least_ping_interval: float = setting(10.0, "between a client's pings; more often ends the connection", "SECONDS", 0)
    handshake: float = setting(20.0, "for a new connection to agree on TLS and HTTP/2", "SECONDS", 1)


def channel_options(settings: ConnectionSettings) -> list[tuple[str, int]]:
    """The settings as gRPC takes them."""
    return [
        ("grpc.so_reuseport", 0),  # a second server on the same port must fail, not share its calls
        ("grpc.max_allowed_incoming_connections", settings.count),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_metadata_size", settings.metadata_kib * 1024),
        ("grpc.absolute_max_metadata_size", settings.metadata_kib * 1024),
        ("grpc.max_concurrent_streams", settings.concurrent_calls),
        ("grpc.max_connection_idle_ms", round(1e3 * settings.idle)),
        ("grpc.max_connection_age_ms", round(1e3 * settings.age)),  # running calls end in their own time
        ("grpc.keepalive_time_ms", round(1e3 * settings.ping)),
        ("grpc.keepalive_timeout_ms", round(1e3 * settings.ping_wait)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", round(1e3 * settings.least_ping_interval)),
        ("grpc.server_handshake_timeout_ms", round(1e3 * settings.handshake)),
    ]
