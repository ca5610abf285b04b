"""The table of methods says something about every RPC of the interface, and about nothing else."""

from __future__ import annotations

import importlib
import pkgutil

import protos.imageretrieval.v1
from serving.method_policies import POLICIES, Scope


def rpcs():
    """The name of every RPC in protos/."""
    for module in pkgutil.iter_modules(protos.imageretrieval.v1.__path__, "protos.imageretrieval.v1."):
        if module.name.endswith("_pb2"):
            for service in importlib.import_module(module.name).DESCRIPTOR.services_by_name.values():
                yield from (f"{service.name}.{method.name}" for method in service.methods)


def test_every_rpc_has_a_row_and_every_row_an_rpc():
    assert set(POLICIES) == set(rpcs())


def test_what_changes_something_needs_more_than_the_scope_to_search():
    reading = ("Search", "BatchSearch", "StreamSearch", "Embed", "Get", "BatchGet", "ListImages")
    for name, policy in POLICIES.items():
        if not name.partition(".")[2].startswith(reading):
            assert policy.scope in (Scope.WRITE, Scope.ADMIN), name
