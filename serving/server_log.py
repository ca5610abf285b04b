"""A server's log: a line of JSON or of text for each event, and for calls as much as the operator wants; knows no port.

The texts of queries are personal, so they are left out unless `--log-queries` asks for them.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from google.rpc import code_pb2

if TYPE_CHECKING:
    from serving.call_guard import EndedCall

# Refusals that say something about the server, and not about the request.
_SERVERS_FAULT = {code_pb2.INTERNAL, code_pb2.UNKNOWN, code_pb2.UNAVAILABLE, code_pb2.DATA_LOSS}

_calls = logging.getLogger("serving.calls")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, an exception, and the fields that came with `extra`."""

    _OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in self._OWN}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def set_up_logging(as_json: bool) -> None:
    """Log to standard error, warnings and what is said of calls."""
    handler = logging.StreamHandler()
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if as_json else plain)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    _calls.setLevel(logging.INFO)


class CallLog:
    """Logs calls as they end: the server's own "errors", "slow" ones too (`slow_seconds` or more), "all", or "none"."""

    def __init__(self, which: str = "errors", slow_seconds: float = 1.0, queries: bool = False) -> None:
        self._which, self._slow, self._queries = which, slow_seconds, queries

    def __call__(self, call: EndedCall) -> None:
        """An observer of `CallGuard`."""
        if not call.request_id:  # it was refused unread, as masses are
            return
        failed = call.code in _SERVERS_FAULT
        slow = self._which != "errors" and call.seconds >= self._slow
        if self._which == "none" or not (failed or slow or self._which == "all"):
            return
        fields: dict[str, Any] = {
            "request_id": call.request_id,
            "method": call.method,
            "code": code_pb2.Code.Name(call.code),
            "seconds": round(call.seconds, 6),
            "caller": call.caller.name if call.caller else "",
            "peer": call.origin.peer,
        }
        if call.reason:
            fields["reason"] = call.reason
        if call.notes and call.notes.searches:
            fields |= {"searches": call.notes.searches, "hits": call.notes.hits}
            if self._queries:
                fields["queries"] = list(call.notes.texts)
        level = logging.WARNING if failed else logging.INFO
        _calls.log(level, " ".join(f"{name}={value}" for name, value in fields.items()), extra=fields)
