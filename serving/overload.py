"""What a server says when it has more work than it can do in time; knows no queue and no transport."""

from __future__ import annotations


class Overloaded(Exception):
    """Work was refused before it began, because more waits than can be done; try again after `retry_after` seconds."""

    told = "too much waits"

    def __init__(self, what: str, retry_after: float) -> None:
        super().__init__(f"{self.told}: {what}; try again in {retry_after:.2g} s")
        self.retry_after = retry_after
