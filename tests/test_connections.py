"""Options of gRPC are names that it knows: of another it would say nothing."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
from grpc._cython import cygrpc

from serving.connections import ConnectionSettings, channel_options


@pytest.mark.parametrize("name", [name for name, _ in channel_options(ConnectionSettings())])
def test_grpc_knows_the_option(name):
    with Path(cygrpc.__file__).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library:
        assert library.find(f"{name}\0".encode()) > 0
