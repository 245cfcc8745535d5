"""Who may ask: the names that the server answers to, where a request comes from, and how often a password may
be wrong. Plain ASGI in front of the page and of the API."""

import asyncio
import ipaddress
import json
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

SESSION = "l2p-session"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_MOST_SESSIONS = 10_000


class Attempts:
    """Wrong passwords of an address: each is answered later than the one before, and after `most` within
    `period` seconds none is looked at."""

    def __init__(self, most: int = 10, period: float = 60, delay: float = 0.5, longest: float = 4) -> None:
        self.most, self.period, self.delay, self.longest = most, period, delay, longest
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def wait(self, address: str) -> float:
        """Return seconds until the address may try again; 0: now, and the attempt counts until `forgive`."""
        key, now = _network(address), time.monotonic()
        times = self._times.setdefault(key, deque())
        self._times.move_to_end(key)
        while len(self._times) > 10_000:
            self._times.popitem(last=False)
        while times and now - times[0] > self.period:
            times.popleft()
        if len(times) >= self.most:
            return self.period - (now - times[0])
        times.append(now)
        return 0

    def forgive(self, address: str) -> None:
        """Forget the failed attempts: the last one was right."""
        if times := self._times.get(_network(address)):
            times.pop()

    async def punish(self, address: str) -> None:
        """Take one's time over a wrong one."""
        count = len(self._times.get(_network(address), ()))
        await asyncio.sleep(min(self.longest, self.delay * 2 ** max(0, count - 1)))


def _network(address: str) -> str:
    """Return the network of an IPv6 address, whose user has 2**64 of them."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(parsed) if parsed.version == 4 else str(ipaddress.ip_network((parsed, 64), strict=False))


def answered_names(host: str, allowed: Iterable[str]) -> frozenset[str] | None:
    """Return the names in Host that a server which listens at `host` answers to; None: any, for it asks for a
    password.

    Without this any web page could give its own name this machine's address and then read what is here.
    """
    names = frozenset(name.lower().rstrip(".") for name in allowed)
    if is_loopback(host):
        return names | {*_LOOPBACK, host.lower()}
    return names or None


def is_loopback(host: str) -> bool:
    """Return whether only this machine can connect to `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Refuses requests under foreign names and of foreign pages, uploads of nobody's session, and guesses.

    Args:
        names: from `answered_names`.
        allowed: names beside the one in Host that pages may have, behind a proxy.
        sessions: the page hands out a cookie, and uploads need it.
        refuse: (status, message) -> body, in the form that clients of the application read.
    """

    def __init__(
        self,
        app: App,
        *,
        names: frozenset[str] | None,
        allowed: Iterable[str] = (),
        sessions: bool = False,
        refuse: Callable[[int, str], Any] = lambda status, message: {"detail": message},
    ) -> None:
        self.app, self.names, self.refuse = app, names, refuse
        self.allowed = frozenset(name.lower() for name in allowed)
        self.sessions: OrderedDict[str, None] | None = OrderedDict() if sessions else None
        self.attempts = Attempts()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path, method = scope["path"].rstrip("/"), scope.get("method", "GET")
        if problem := self._foreign(headers, method, scope["type"]):
            await self._answer(scope, send, 403, problem)
        elif method == "POST" and path.endswith("/login"):
            await self._login(scope, receive, send)
        elif method == "POST" and path.endswith("/upload") and not self._has_session(headers):
            await self._answer(scope, send, 403, "uploads need the page's session; open the page first")
        elif self.sessions is not None and method == "GET" and not path and not self._has_session(headers):
            await self.app(scope, receive, self._with_session(send))
        else:
            await self.app(scope, receive, send)

    def _foreign(self, headers: dict[str, str], method: str, kind: str) -> str:
        """Return why a request is not answered; "" if it is."""
        host = headers.get("host", "")
        if self.names is not None and _name_of(host) not in self.names:
            return f"this server does not answer to the name {host[:100]!r}; start it with --allow-host NAME"
        changes = kind == "websocket" or method not in ("GET", "HEAD", "OPTIONS")
        origin = headers.get("origin")
        own = (
            origin is None
            or urlsplit(origin).netloc.lower() == host.lower()
            or _name_of(origin) in self.allowed
        )
        if changes and not own:
            return f"a page of {str(origin)[:100]!r} may not ask this server; open its own page"
        navigates = headers.get("sec-fetch-mode") == "navigate" and not changes
        if headers.get("sec-fetch-site") == "cross-site" and not navigates and (origin is None or not own):
            return "another site's page may not ask this server; open its own page"
        return ""

    def _has_session(self, headers: dict[str, str]) -> bool:
        if self.sessions is None:
            return True
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(SESSION)
        except CookieError:
            return False
        return morsel is not None and morsel.value in self.sessions

    def _with_session(self, send: Send) -> Send:
        assert self.sessions is not None
        token = secrets.token_urlsafe(24)
        self.sessions[token] = None
        while len(self.sessions) > _MOST_SESSIONS:
            self.sessions.popitem(last=False)
        cookie = f"{SESSION}={token}; Path=/; HttpOnly; SameSite=Strict".encode()

        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"set-cookie", cookie)]
            await send(message)

        return sending

    async def _login(self, scope: Scope, receive: Receive, send: Send) -> None:
        address = (scope.get("client") or ("",))[0]
        if wait := self.attempts.wait(address):
            words = f"too many wrong passwords; try again in {wait:.0f} s"
            await self._answer(scope, send, 429, words, (b"retry-after", str(int(wait) + 1).encode()))
            return
        held: list[MutableMapping[str, Any]] = []

        async def hold(message: MutableMapping[str, Any]) -> None:
            held.append(message)

        await self.app(scope, receive, hold)
        if held and held[0].get("status", 500) < 400:
            self.attempts.forgive(address)
        else:
            await self.attempts.punish(address)
        for message in held:
            await send(message)

    async def _answer(
        self, scope: Scope, send: Send, status: int, words: str, *headers: tuple[bytes, bytes]
    ) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": words[:120]})
            return
        body = json.dumps(self.refuse(status, words)).encode()
        head = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *headers,
        ]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": body})


def _name_of(address: str) -> str:
    """Return the host of "name:port" or of an origin."""
    try:
        found = urlsplit(address if "://" in address else f"//{address}").hostname
    except ValueError:
        return ""
    return (found or "").rstrip(".")
