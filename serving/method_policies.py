"""What every method asks of its caller: one row each; knows no call and no caller.

Methods are named as in `SearchService.Search`, over gRPC and over HTTP alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Scope(StrEnum):
    """What a caller may do. None includes another."""

    SEARCH = "search"  # search, embed, look images up
    VECTORS = "vectors"  # read stored embeddings, from which a model's knowledge of an image can be copied
    WRITE = "write"  # add, replace and remove images
    ADMIN = "admin"  # publish, roll back, build, back up, change the model


@dataclass(frozen=True)
class MethodPolicy:
    """Who may call a method and where.

    `bulk` methods do much work a call, or wait long: fewer of them run at once for each caller. `admin` methods are
    answered at the admin address only, where a server has one.
    """

    scope: Scope
    bulk: bool = False

    @property
    def admin(self) -> bool:
        """Whether the method belongs to the admin address."""
        return self.scope is Scope.ADMIN


_SEARCH, _BULK_SEARCH = MethodPolicy(Scope.SEARCH), MethodPolicy(Scope.SEARCH, bulk=True)
_WRITE, _BULK_WRITE = MethodPolicy(Scope.WRITE), MethodPolicy(Scope.WRITE, bulk=True)
_ADMIN, _WAITING_ADMIN = MethodPolicy(Scope.ADMIN), MethodPolicy(Scope.ADMIN, bulk=True)

POLICIES: dict[str, MethodPolicy] = {
    "SearchService.Search": _SEARCH,
    "SearchService.BatchSearch": _BULK_SEARCH,
    "SearchService.StreamSearch": _SEARCH,
    "EmbeddingService.EmbedTexts": _BULK_SEARCH,
    "EmbeddingService.EmbedImages": _BULK_SEARCH,
    "ImageService.GetImage": _SEARCH,
    "ImageService.BatchGetImages": _BULK_SEARCH,
    "ImageService.ListImages": _BULK_SEARCH,
    "ImageService.UpsertImage": _WRITE,
    "ImageService.StreamUpsertImages": _BULK_WRITE,
    "ImageService.DeleteImage": _WRITE,
    "ImageService.BatchDeleteImages": _BULK_WRITE,
    "IndexService.GetIndex": _SEARCH,
    "IndexService.ListSnapshots": _ADMIN,
    "IndexService.BuildIndex": _ADMIN,
    "IndexService.PublishIndex": _ADMIN,
    "IndexService.RollBackIndex": _ADMIN,
    "IndexService.VerifyIndex": _ADMIN,
    "IndexService.BackUpIndex": _ADMIN,
    "OperationService.GetOperation": _ADMIN,
    "OperationService.ListOperations": _ADMIN,
    "OperationService.WaitOperation": _WAITING_ADMIN,
    "OperationService.CancelOperation": _ADMIN,
}
