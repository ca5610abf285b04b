"""Telling what is served and looking after it: translates between protos and Python; nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protos.imageretrieval.v1 import index_service_pb2 as pb
from serving.call_guard import Call, CallGuard
from serving.index_upkeep import NotOffered
from serving.operation_service import operation_message
from serving.proto_values import set_certificate

if TYPE_CHECKING:
    from serving.index_upkeep import IndexUpkeep
    from serving.search_engine import SearchEngine


class IndexService:
    """See protos/imageretrieval/v1/index_service.proto."""

    def __init__(self, guard: CallGuard) -> None:
        self.guard = guard

    async def GetIndex(self, request: pb.GetIndexRequest, call: Call) -> pb.GetIndexResponse:
        """Describe the index."""
        engine = call.engine
        return pb.GetIndexResponse(index=await engine.workers.run(lambda: _index_message(engine), call.deadline))

    async def ListSnapshots(self, request: pb.ListSnapshotsRequest, call: Call) -> pb.ListSnapshotsResponse:
        """List the snapshots that are kept."""
        response = pb.ListSnapshotsResponse()
        for found in await call.engine.workers.run(self._upkeep.snapshots, call.deadline):
            message = response.snapshots.add(
                name=found.name,
                live=found.live,
                image_count=found.image_count,
                model_revision=found.model_fingerprint,
                source=found.source,
            )
            message.create_time.FromDatetime(found.create_time)
        return response

    async def BuildIndex(self, request: pb.BuildIndexRequest, call: Call) -> pb.BuildIndexResponse:
        """Embed a data set and publish it."""
        return pb.BuildIndexResponse(operation=operation_message(self._upkeep.build(request.source), self.guard))

    async def PublishIndex(self, request: pb.PublishIndexRequest, call: Call) -> pb.PublishIndexResponse:
        """Publish the changes."""
        return pb.PublishIndexResponse(operation=operation_message(self._upkeep.publish(), self.guard))

    async def RollBackIndex(self, request: pb.RollBackIndexRequest, call: Call) -> pb.RollBackIndexResponse:
        """Go back to an earlier snapshot."""
        operation = self._upkeep.roll_back(request.snapshot)
        return pb.RollBackIndexResponse(operation=operation_message(operation, self.guard))

    async def VerifyIndex(self, request: pb.VerifyIndexRequest, call: Call) -> pb.VerifyIndexResponse:
        """Check every file."""
        return pb.VerifyIndexResponse(operation=operation_message(self._upkeep.verify(), self.guard))

    async def BackUpIndex(self, request: pb.BackUpIndexRequest, call: Call) -> pb.BackUpIndexResponse:
        """Copy a consistent state."""
        return pb.BackUpIndexResponse(operation=operation_message(self._upkeep.back_up(request.name), self.guard))

    @property
    def _upkeep(self) -> IndexUpkeep:
        if self.guard.upkeep is None:
            raise NotOffered("this server does not look after its index")
        return self.guard.upkeep


def _index_message(engine: SearchEngine) -> pb.Index:
    with engine.store.view() as view:
        described, revision, attributes = view.describe(), view.revision, view.attributes()
    index = pb.Index(
        snapshot=described.snapshot,
        image_count=described.image_count,
        dimension=described.dimension,
        kind=described.kind,
        model_name=described.model_name,
        model_revision=described.model_fingerprint,
        source=described.source,
        revision=revision,
        writable=engine.store.writable,
        change_count=described.changes,
        attributes=[
            pb.AttributeSummary(
                name=known.name,
                kind=known.kind,
                image_count=known.image_count,
                frequent_values=known.frequent_values,
            )
            for known in attributes
        ],
    )
    index.create_time.FromDatetime(described.create_time)
    set_certificate(index, described.certificate)
    return index
