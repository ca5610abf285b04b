"""Every reason: documented with the code and the details that a client gets; none of them tells anything internal."""

from __future__ import annotations

import json
import re

import pytest
from chain import ROOT
from google.rpc import code_pb2, error_details_pb2

from data.errors import ImageError, QueryError, SnapshotError
from serving.caller_limits import LimitExceeded
from serving.callers import PermissionDenied, Unauthenticated, UnknownMethod
from serving.catalog import ImageNotFound
from serving.client_connection import SERVICE_CONFIG
from serving.error_details import MalformedRequest, NotReady, Reason, RequestTooLarge, ResponseTooLarge, status_of
from serving.image_changes import ReadOnly, StoreFailed
from serving.index_upkeep import NotOffered
from serving.method_policies import Scope
from serving.operations import OperationCancelled, OperationFailed, OperationNotFound, OperationRunning
from serving.overload import Overloaded
from serving.page_tokens import PageTokenExpired
from serving.queries import ImageRefused
from serving.vector_store import KeyReused, StoreReadOnly, VersionConflict

EXAMPLES = {
    Reason.INVALID_QUERY: QueryError("query.text", "a text", "none", "write one"),
    Reason.INVALID_IMAGE: ImageRefused("query.image", ImageError("damaged", "an image", "a part", "send all of it")),
    Reason.MALFORMED_REQUEST: MalformedRequest("the request is no SearchRequest"),
    Reason.REQUEST_TOO_LARGE: RequestTooLarge(2_000_000, 1 << 20),
    Reason.IMAGE_NOT_FOUND: ImageNotFound("nobody"),
    Reason.PAGE_TOKEN_EXPIRED: PageTokenExpired(),
    Reason.VERSION_CONFLICT: VersionConflict("red-0001", 2, 3),
    Reason.REQUEST_ID_REUSED: KeyReused("a-key"),
    Reason.UNAUTHENTICATED: Unauthenticated("the token has expired"),
    Reason.PERMISSION_DENIED: PermissionDenied(Scope.VECTORS),
    Reason.METHOD_NOT_FOUND: UnknownMethod(),
    Reason.READ_ONLY: ReadOnly(),
    Reason.NOT_OFFERED: NotOffered("there is no directory for backups"),
    Reason.OPERATION_RUNNING: OperationRunning("operations/7"),
    Reason.OPERATION_NOT_FOUND: OperationNotFound("operations/7"),
    Reason.OPERATION_FAILED: OperationFailed("expected a data set", refused=True),
    Reason.OPERATION_CANCELLED: OperationCancelled("it was told to stop"),
    Reason.RATE_LIMITED: LimitExceeded("10 a second are allowed", 0.25),
    Reason.OVERLOADED: Overloaded("1,024 before this one", 0.25),
    Reason.RESPONSE_TOO_LARGE: ResponseTooLarge(),
    Reason.DISK_FULL: StoreFailed(OSError(28, "a secret path")),
    Reason.NOT_READY: NotReady(),
    Reason.MODEL_CHANGING: StoreReadOnly("a secret path", "another", "ask"),
    Reason.STORE_FAILED: StoreFailed(OSError(5, "a secret path")),
    Reason.DEADLINE_EXCEEDED: TimeoutError("a secret path"),
    Reason.INDEX_DAMAGED: SnapshotError("a secret path", "another", "ask"),
    Reason.INTERNAL: OSError(28, "a secret path"),
}


def documented():
    """Reason → (code, names of the details beside ErrorInfo)."""
    page = (ROOT / "docs" / "errors.md").read_text("utf-8")
    rows = re.findall(r"^\| `([A-Z_]+)` \| `([A-Z_]+)` \|([^|]*)\| [^|]+ \| [^|]+ \|$", page, re.MULTILINE)
    return {reason: (code, re.findall(r"\w+", details)) for reason, code, details in rows}


def test_the_table_of_reasons_is_complete():
    assert list(documented()) == [reason.value for reason in EXAMPLES]
    assert set(EXAMPLES) == set(Reason)


@pytest.mark.parametrize("reason", EXAMPLES)
def test_clients_get_what_is_documented_and_nothing_internal(reason):
    status = status_of(EXAMPLES[reason], "a-request")
    first, *others = status.details
    info = error_details_pb2.ErrorInfo()
    assert first.Unpack(info)
    assert (info.reason, info.domain) == (reason.value, "imageretrieval")
    details = [other.TypeName().removeprefix("google.rpc.") for other in others]
    assert (code_pb2.Code.Name(status.code), details) == documented()[reason.value]
    assert "secret" not in str(status)
    assert status.message


@pytest.mark.parametrize("reason", EXAMPLES)
def test_clients_repeat_by_code_what_says_when_and_nothing_else(reason):
    code, details = documented()[reason.value]
    assert (code in repeated_codes()) == ("RetryInfo" in details)


def repeated_codes():
    """Those that clients repeat by, the same in each of them."""
    (method,) = SERVICE_CONFIG["methodConfig"]
    codes = method["retryPolicy"]["retryableStatusCodes"]
    javascript = (ROOT / "examples" / "javascript" / "connection.js").read_text("utf-8")
    assert re.findall(r"retryableStatusCodes: (\[.*\])", javascript) == [json.dumps(codes)]
    return codes


def test_what_is_missing_is_named():
    info = error_details_pb2.ErrorInfo()
    status_of(PermissionDenied(Scope.VECTORS), "").details[0].Unpack(info)
    assert dict(info.metadata) == {"scope": "vectors"}


@pytest.mark.parametrize("kind", [Overloaded, LimitExceeded])
def test_the_delay_is_never_shorter_than_it_is(kind):
    for seconds in (1e-9, 0.0101, 2.5):
        retry = error_details_pb2.RetryInfo()
        status_of(kind("much", seconds), "").details[1].Unpack(retry)
        assert seconds <= retry.retry_delay.ToNanoseconds() / 1e9 <= seconds + 0.001
