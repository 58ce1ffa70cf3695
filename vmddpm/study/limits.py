"""Limits for each visitor: password guesses, concurrent hashes, connections and time."""

import asyncio
import ctypes
import ipaddress
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

from vmddpm.errors import VmddpmError

FREE_GUESSES, MAX_DELAY, FORGET_AFTER = 5, 30.0, 600.0  # wrong sign-ins without a delay; seconds; seconds
ADDRESSES = 10_000  # number of addresses with remembered wrong sign-ins
WAITING_HASHES = 20
CONNECTIONS, CONNECTIONS_OF_ADDRESS = 512, 256
HEADER_BYTES, HEADER_SECONDS, BODY_SECONDS, STALL_SECONDS = 16_384, 10.0, 10.0, 30.0
LOOK_SECONDS = 1.0  # between checks of a connection
SEND_BYTES = 1 << 18  # socket send buffer; the server sees progress only beyond it


def return_large_blocks() -> None:
    """Make glibc return freed blocks of a megabyte or more, as hashes use, to the system. By default it keeps them
    for reuse in each thread."""
    mmap_threshold = -3  # M_MMAP_THRESHOLD of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(mmap_threshold, 1 << 20)


class BusyError(VmddpmError):
    """Sign-ins are refused for now.

    Attributes:
        seconds: time until the next sign-in is allowed.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"too many sign-ins; try again in {seconds:.0f} s")
        self.seconds = seconds


class SignInGuesses:
    """Delays an address after wrong sign-ins: after the sixth for 2 seconds, then twice as long each time, up to 30
    seconds. Ten minutes without a wrong sign-in reset the count. An IPv6 /64 network counts as one address.

    Args:
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wrong: dict[str, tuple[int, float]] = {}  # address -> (count, time of the last); most recent last

    def check(self, address: str) -> None:
        """Raise Busy if the address must wait."""
        count, last = self._wrong.get(network_of(address), (0, 0.0))
        left = last + self._delay(count) - self._clock()
        if count and left > 0:
            raise BusyError(left)

    def record_failure(self, address: str) -> None:
        key, now = network_of(address), self._clock()
        count, last = self._wrong.pop(key, (0, now))
        self._wrong[key] = (count + 1 if now - last < FORGET_AFTER else 1, now)
        if len(self._wrong) > ADDRESSES:
            del self._wrong[next(iter(self._wrong))]

    @staticmethod
    def _delay(count: int) -> float:
        return min(2.0 ** min(count - FREE_GUESSES, 60), MAX_DELAY) if count > FREE_GUESSES else 0.0


def network_of(address: str) -> str:
    """The key of a visitor: an IPv4 address, or the /64 network of an IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


class PasswordHashing:
    """A thread that hashes passwords one at a time: a hash takes 16 MiB and a core for about 50 ms."""

    def __init__(self) -> None:
        self._thread, self._waiting = ThreadPoolExecutor(1, "hashing"), 0

    async def run(self, work: Callable[..., bool], *arguments: Any) -> bool:
        """Run work(*arguments) in the thread. Raises Busy if too many calls are waiting."""
        if self._waiting >= WAITING_HASHES:
            raise BusyError(1.0)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)
        finally:
            self._waiting -= 1


class LimitedProtocol(H11Protocol):
    """Closes a connection if its next request is late or its client stops reading a response, or if its address has too
    many connections."""

    of_address: ClassVar[Counter[str]] = Counter()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._address = network_of(self.client[0] if self.client else "")
        self.of_address[self._address] += 1
        self._idle_since = self._last_progress = self.loop.time()  # last response completed; last bytes sent
        self._left = 0
        self._watch = self.loop.call_later(LOOK_SECONDS, self._check_progress)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        if self.of_address[self._address] > CONNECTIONS_OF_ADDRESS:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.cancel()
        self.of_address[self._address] -= 1
        if not self.of_address[self._address]:
            del self.of_address[self._address]
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def _check_progress(self) -> None:
        now, left = self.loop.time(), self.transport.get_write_buffer_size()
        if left == 0 or left < self._left:
            self._last_progress = now
        self._left = left
        idle = self.cycle is None or self.cycle.response_complete
        if now - self._last_progress > STALL_SECONDS or (idle and not left and now - self._idle_since > HEADER_SECONDS):
            self.transport.abort()
        else:
            self._watch = self.loop.call_later(LOOK_SECONDS, self._check_progress)
