"""How much each caller may ask for: calls a second, and calls at once; knows no call and no transport.

The rate is a token bucket: it fills at `rate` a second up to `burst`, and an item takes one out of it. What costs more
than fits in it is let in when it is full, and leaves a debt: the average holds, and no batch is refused for good.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from serving.overload import Overloaded
from serving.settings_sources import setting

# A batch of searches and a search of a stream cost as many as searches one by one.
_NEWEST = 0.2  # how much the newest call counts in a caller's average time
_SHORTEST_WAIT, _LONGEST_WAIT = 0.01, 5.0


@dataclass(frozen=True)
class LimitSettings:
    """Limits for each caller: a token, a client certificate, or an address when it has neither."""

    rate: float = setting(0.0, "searches, or other items, a second of one caller; 0: no limit", "N", 0)
    burst: float = setting(0.0, "items that a caller may ask for at once after a pause; 0: those of 2 s", "N", 0)
    # Half of what may wait for the model, so that no single caller fills it.
    concurrent_calls: int = setting(512, "calls of one caller under way", "N", 1)
    concurrent_bulk_calls: int = setting(64, "of these, calls with much work in them, such as batches", "N", 1)
    callers: int = setting(10_000, "callers that are remembered", "N", 1)


class LimitExceeded(Overloaded):
    """The caller asks for more than its share."""

    told = "this caller asks for too much"


@dataclass(slots=True)
class Account:
    """What a caller has under way, and what its bucket held at the moment `at`."""

    tokens: float
    at: float
    running: int = 0
    running_bulk: int = 0
    seconds: float = 0.0  # that a call of it takes


class CallerLimits:
    """The accounts of the callers seen last. Belongs to one event loop; `clock` gives seconds.

    A caller that is forgotten, because `callers` others came since its last call, starts with a full bucket.
    """

    def __init__(self, settings: LimitSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings, self._clock = settings, clock
        self._burst = settings.burst or max(1.0, 2 * settings.rate)
        self._accounts: OrderedDict[Hashable, Account] = OrderedDict()

    def enter(self, caller: Hashable, bulk: bool) -> Account:
        """Begin a call; `leave` ends it. `LimitExceeded` when the caller has too much under way, or asks too often."""
        account = self._account(caller)
        settings = self.settings
        if account.running >= settings.concurrent_calls:
            raise LimitExceeded(f"{account.running:,} calls under way", _wait(account, account.running))
        if bulk and account.running_bulk >= settings.concurrent_bulk_calls:
            what = f"{account.running_bulk:,} calls with much work under way"
            raise LimitExceeded(what, _wait(account, account.running_bulk))
        self.charge(account, 1)
        account.running += 1
        account.running_bulk += bulk
        return account

    def charge(self, account: Account, items: int) -> None:
        """Take `items` out of the bucket; `LimitExceeded` tells when there will be enough."""
        rate = self.settings.rate
        if not rate:
            return
        now = self._clock()
        account.tokens = min(self._burst, account.tokens + rate * (now - account.at))
        account.at = now
        missing = min(items, self._burst) - account.tokens
        if missing > 1e-9 * self._burst:  # not by rounding
            raise LimitExceeded(f"{rate:g} a second are allowed", missing / rate)
        account.tokens -= items

    def leave(self, account: Account, bulk: bool, seconds: float) -> None:
        """End a call that took `seconds`."""
        account.running -= 1
        account.running_bulk -= bulk
        account.seconds += (seconds - account.seconds) * (_NEWEST if account.seconds else 1)

    def __len__(self) -> int:
        return len(self._accounts)

    def _account(self, caller: Hashable) -> Account:
        account = self._accounts.get(caller)
        if account is not None:
            self._accounts.move_to_end(caller)
            return account
        if len(self._accounts) >= self.settings.callers:
            idle = next((key for key, each in self._accounts.items() if not each.running), None)
            if idle is None:
                raise LimitExceeded("as many callers as can be served have calls under way", 1.0)
            del self._accounts[idle]
        account = self._accounts[caller] = Account(self._burst, self._clock())
        return account


def _wait(account: Account, running: int) -> float:
    """Seconds until one of `running` calls ends, at the pace of the caller's calls up to now."""
    return min(_LONGEST_WAIT, max(_SHORTEST_WAIT, account.seconds / max(1, running)))
