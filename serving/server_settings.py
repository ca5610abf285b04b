"""All settings of the server in one place, and where they come from; knows nothing of what they do.

Each group stands beside what it configures. `python -m serving.server --print-config` prints those in effect. None of
them is a secret: tokens and keys stand in files, of which the settings hold the names.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data.errors import UserError
from serving.access import AccessSettings
from serving.caller_limits import LimitSettings
from serving.connections import ConnectionSettings
from serving.network import is_loopback, split_address
from serving.observation import LogSettings, ObservationSettings
from serving.request_memory import MemorySettings
from serving.settings_sources import SettingsError, add_flags, read_settings, setting
from serving.tls import TlsSettings
from serving.web.http_settings import HttpSettings

DEFAULT_ADDRESS = "127.0.0.1:50051"
PREFIX = "IMAGE_SEARCH"
CONFIG_VARIABLE = f"{PREFIX}_CONFIG"
# The file of settings; and what Kubernetes tells every container of a service that is named image-search.
_NO_SETTINGS = re.compile(rf"{CONFIG_VARIABLE}|{PREFIX}_(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_.*)?)")


@dataclass(frozen=True)
class ServerSettings:
    """What a server serves, where and to whom."""

    index: Path | None = setting(None, "directory that serving.build_index made", "DIR")
    store: str = setting("", "what build_index --store filled, instead of an index", "milvus://HOST:PORT?name=NAME")
    bundle: str = setting("", 'directory of the model, or "default", if not the copy in the index', "BUNDLE")
    writable: bool = setting(False, "accept changes; one process at a time", "true, false")
    compact_after: int = setting(
        10_000, "changes above the snapshot that start a compaction; searches compare with each of them", "CHANGES", 1
    )
    backup_directory: Path | None = setting(None, "where operators may put backups; if not given, nowhere", "DIR")
    isolated_decoding: bool = setting(True, "decode images in processes of their own", "true, false")
    address: str = setting(DEFAULT_ADDRESS, "where clients call; port 0: any", "HOST:PORT")
    admin_address: str = setting(
        "", "where operators call; if not given, they call at the other address when that is loopback", "HOST:PORT"
    )
    insecure: bool = setting(False, "allow a public address without TLS and tokens", "true, false")
    drain: float = setting(5.0, "for callers to go elsewhere when stopping, while they still call", "SECONDS", 0)
    grace: float = setting(10.0, "for running calls when stopping", "SECONDS", 0)
    tls: TlsSettings = field(default_factory=TlsSettings)
    access: AccessSettings = field(default_factory=AccessSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    connections: ConnectionSettings = field(default_factory=ConnectionSettings)
    memory: MemorySettings = field(default_factory=MemorySettings)
    http: HttpSettings = field(default_factory=HttpSettings)
    log: LogSettings = field(default_factory=LogSettings)
    observe: ObservationSettings = field(default_factory=ObservationSettings)

    def __post_init__(self) -> None:
        if self.tls.client_ca is not None and not self.access.asked_for:
            next_step = "say what each may do under [access.certificates], or give tokens by access.tokens"
            raise SettingsError("permissions for callers with certificates", "tls.client_ca alone", next_step)
        if self.access.certificates and self.tls.client_ca is None:
            next_step = "say who signs clients' certificates by tls.client_ca"
            raise SettingsError("tls.client_ca with access.certificates", "none", next_step)
        self._check_calls(self.address, "--address")
        self._check_calls(self.admin_address, "--admin-address")
        self._check_plain(self.http.address, "--http-address", "the page", self.insecure)
        self._check_plain(
            self.observe.metrics_address,
            "--observe-metrics-address",
            "metrics",
            self.insecure or self.observe.metrics_public,
            "; or --observe-metrics-public where only the collector reaches it",
        )

    def _check_calls(self, address: str, flag: str) -> None:
        """An address of gRPC is for this machine, or has TLS and tokens, or the network is said to be trusted."""
        if not address or is_loopback(split_address(address, flag, DEFAULT_ADDRESS)[0]):
            return
        if self.insecure or (self.tls.on and self.access.asked_for):
            return
        lacking = [name for name, there in (("TLS", self.tls.on), ("tokens", self.access.asked_for)) if not there]
        raise SettingsError(
            f"TLS and tokens, or client certificates, for an address that others reach ({flag} {address})",
            f"none of {' and '.join(lacking)}" if len(lacking) > 1 else f"no {lacking[0]}",
            "see docs/security.md; or use a loopback address, or --insecure where the network itself is trusted",
        )

    def _check_plain(self, address: str, flag: str, what: str, allowed: bool, or_else: str = "") -> None:
        """What is plain HTTP is for this machine, or `allowed` to be read by others."""
        if not address or is_loopback(split_address(address, flag, DEFAULT_ADDRESS)[0]) or allowed:
            return
        next_step = "put a proxy with TLS before a loopback address; or --insecure where the network is trusted"
        raise SettingsError(
            f"a loopback address for {what}", f"{flag} {address}, and it is plain HTTP", next_step + or_else
        )

    @property
    def admin_on_main(self) -> bool:
        """Whether operators call where clients do."""
        return not self.admin_address and is_loopback(split_address(self.address, "--address", DEFAULT_ADDRESS)[0])

    def check_source(self) -> None:
        """`UserError` unless it is said what to serve."""
        if (self.index is None) == (not self.store):
            received = "neither" if not self.store else "both"
            raise UserError("an index to serve, by --index DIR or --store ADDRESS", received, "give one of them")
        if self.store and not self.bundle:
            next_step = "name the model that the images were embedded by"
            raise UserError("--bundle with --store", "none", next_step)


def read_arguments(
    argv: Sequence[str] | None, environment: Mapping[str, str] = os.environ
) -> tuple[ServerSettings, bool]:
    """The settings by flags, environment and file, and whether to print them and do nothing else."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.server",
        description="Answer image searches over gRPC until SIGTERM. docs/configuration.md tells more of each setting.",
    )
    parser.add_argument(
        "--config", metavar="FILE", help=f"settings in TOML; flags and {PREFIX}_… in the environment come before them"
    )
    parser.add_argument("--print-config", action="store_true", help="print the settings in effect as TOML, and exit")
    add_flags(parser, ServerSettings)
    flags = vars(parser.parse_args(argv))
    config = flags.pop("config") or environment.get(CONFIG_VARIABLE)
    print_only = flags.pop("print_config")
    file = Path(config) if config else None
    return read_settings(ServerSettings, file, environment, PREFIX, flags, _NO_SETTINGS), print_only
