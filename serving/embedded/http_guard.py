"""Connections to an HTTP server that are slow, silent or too many are closed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class ConnectionLimits:
    """What one HTTP server puts up with.

    Attributes:
      connections: open connections; more are closed at once.
      header_s: seconds until the headers of a request are complete, silence before them included.
      body_s: seconds until its body is complete.
      request_s: seconds until its answer is read by the client.
    """

    connections: int = 32
    header_s: float = 10.0
    body_s: float = 30.0
    request_s: float = 600.0


class ConnectionGuard:
    """Watches the connections of one server.

    aiohttp itself waits for headers as long as the client likes, so that a few slow clients could
    hold all connections there are.
    """

    def __init__(self, limits: ConnectionLimits):
        self._limits = limits
        self._timers: dict[asyncio.BaseTransport, asyncio.TimerHandle] = {}

    def watch(self, factory: Callable[[], asyncio.Protocol]) -> Callable[[], asyncio.Protocol]:
        """Returns a factory of protocols whose connections are watched."""
        return lambda: _Watched(factory(), self)

    def begin_request(self, transport: asyncio.BaseTransport) -> None:
        """A request's headers are complete: it may take its time for the rest."""
        self._set_timer(transport, self._limits.request_s)

    def end_request(self, transport: asyncio.BaseTransport) -> None:
        """A request is answered: the next one's headers are waited for."""
        if transport in self._timers:
            self._set_timer(transport, self._limits.header_s)

    def opened(self, transport: asyncio.BaseTransport) -> bool:
        """Takes note of a connection; returns whether there is room for it."""
        if len(self._timers) >= self._limits.connections:
            return False
        self._set_timer(transport, self._limits.header_s)
        return True

    def closed(self, transport: asyncio.BaseTransport) -> None:
        """Forgets a connection."""
        timer = self._timers.pop(transport, None)
        if timer is not None:
            timer.cancel()

    def _set_timer(self, transport: asyncio.BaseTransport, seconds: float) -> None:
        before = self._timers.get(transport)
        if before is not None:
            before.cancel()
        loop = asyncio.get_running_loop()
        self._timers[transport] = loop.call_later(seconds, transport.abort)


class _Watched(asyncio.Protocol):
    """Passes everything on to another protocol, and tells the guard of connections."""

    def __init__(self, inner: asyncio.Protocol, guard: ConnectionGuard):
        self._inner = inner
        self._guard = guard
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not self._guard.opened(transport):
            transport.abort()
            return
        self._transport = transport
        self._inner.connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self._transport is not None:
            self._guard.closed(self._transport)
            self._inner.connection_lost(error)

    def data_received(self, data: bytes) -> None:
        if self._transport is not None:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._transport is not None else None

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()
