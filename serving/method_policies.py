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

    `bulk` methods do much work a call, or wait long: fewer of them run at once for each caller. A request has at most
    `max_mib` MiB: what its documented limits come to in UTF-8, rounded up. Where `shed`, calls may be refused unread
    while texts are refused. `admin` methods are answered at the admin address only,
    where a server has one.
    """

    scope: Scope
    bulk: bool = False
    max_mib: int = 1
    shed: bool = False

    @property
    def admin(self) -> bool:
        """Whether the method belongs to the admin address."""
        return self.scope is Scope.ADMIN


# The largest image is 32 MiB.
_IMAGES, _TEXTS, _IDS = 33, 11, 5
_SEARCH, _WRITE, _ADMIN = MethodPolicy(Scope.SEARCH), MethodPolicy(Scope.WRITE), MethodPolicy(Scope.ADMIN)

POLICIES: dict[str, MethodPolicy] = {
    "SearchService.Search": MethodPolicy(Scope.SEARCH, max_mib=_IMAGES, shed=True),
    "SearchService.BatchSearch": MethodPolicy(Scope.SEARCH, bulk=True, max_mib=_IMAGES),
    "SearchService.StreamSearch": MethodPolicy(Scope.SEARCH, max_mib=_IMAGES),
    "EmbeddingService.EmbedTexts": MethodPolicy(Scope.SEARCH, bulk=True, max_mib=_TEXTS),
    "EmbeddingService.EmbedImages": MethodPolicy(Scope.SEARCH, bulk=True, max_mib=_IMAGES),
    "ImageService.GetImage": _SEARCH,
    "ImageService.BatchGetImages": MethodPolicy(Scope.SEARCH, bulk=True, max_mib=_IDS),
    "ImageService.ListImages": MethodPolicy(Scope.SEARCH, bulk=True, max_mib=_IDS),
    "ImageService.UpsertImage": MethodPolicy(Scope.WRITE, max_mib=_IMAGES),
    "ImageService.StreamUpsertImages": MethodPolicy(Scope.WRITE, bulk=True, max_mib=_IMAGES),
    "ImageService.DeleteImage": _WRITE,
    "ImageService.BatchDeleteImages": MethodPolicy(Scope.WRITE, bulk=True, max_mib=_IDS),
    "IndexService.GetIndex": _SEARCH,
    "IndexService.ListSnapshots": _ADMIN,
    "IndexService.BuildIndex": _ADMIN,
    "IndexService.PublishIndex": _ADMIN,
    "IndexService.RollBackIndex": _ADMIN,
    "IndexService.VerifyIndex": _ADMIN,
    "IndexService.BackUpIndex": _ADMIN,
    "OperationService.GetOperation": _ADMIN,
    "OperationService.ListOperations": _ADMIN,
    "OperationService.WaitOperation": MethodPolicy(Scope.ADMIN, bulk=True),
    "OperationService.CancelOperation": _ADMIN,
}
