"""AMQP URIs, pure: where to connect, as whom, and how to name it in a log without a password.

Called by `broker`; `credentials` of a URI are only used where nothing else supplies them.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

from yarl import URL

DEFAULT_HEARTBEAT = 15.0
"""Seconds; aiormq gives a silent connection up after three of them, some 48 s."""

DEFAULT_CONNECTION_TIMEOUT = 10.0
"""Seconds for TCP, TLS and login together; RabbitMQ out of file descriptors accepts and then says nothing."""

_PORTS = {"amqp": 5672, "amqps": 5671}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A parsed AMQP URI; `heartbeat` and `connection_timeout` are in seconds, `None` where not given."""

    scheme: str
    host: str
    port: int
    vhost: str = "/"
    username: str | None = None
    password: str | None = None
    heartbeat: float | None = None
    connection_timeout: float | None = None
    auth_mechanism: str = "plain"

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Read a URI of the AMQP URI specification; ValueError texts never repeat the URI.

        Without a path the virtual host is `/`; `amqp://host/` is taken for the same, for no broker serves
        the empty name the specification reads there.
        """
        parts = urlsplit(text)
        if parts.scheme not in _PORTS:
            raise ValueError("url: the scheme must be amqp or amqps, as in amqp://host:5672/vhost")
        try:
            port = parts.port
        except ValueError:
            raise ValueError("url: the port must be a number from 1 to 65535") from None
        if "/" in parts.path[1:]:
            raise ValueError("url: write a slash inside the virtual host as %2F")
        query = parse_qs(parts.query)
        timeout = _number(query, "connection_timeout")
        return cls(
            scheme=parts.scheme,
            host=unquote(parts.hostname or "localhost"),
            port=port or _PORTS[parts.scheme],
            vhost=unquote(parts.path[1:]) or "/",
            username=None if parts.username is None else unquote(parts.username),
            password=None if parts.password is None else unquote(parts.password),
            heartbeat=_number(query, "heartbeat"),
            # Milliseconds in the AMQP URI query parameters, as RabbitMQ documents them.
            connection_timeout=None if timeout is None else timeout / 1000,
            auth_mechanism=query.get("auth_mechanism", ["plain"])[-1].lower(),
        )

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port} virtual host '{self.vhost}'"

    def url(self, username: str | None, password: str | None, heartbeat: float, name: str) -> URL:
        """Build what aiormq takes; it carries the password and must not be logged.

        aiormq counts heartbeats in whole seconds; the virtual host is set on its connection instead.
        """
        query = {"heartbeat": str(max(1, round(heartbeat)) if heartbeat else 0), "auth": self.auth_mechanism}
        if name:
            query["name"] = name
        return URL.build(
            scheme=self.scheme,
            user=username,
            password=password,
            host=self.host,
            port=self.port,
            query=query,
        )


def _number(query: dict[str, list[str]], name: str) -> float | None:
    if name not in query:
        return None
    try:
        value = float(query[name][-1])
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError(f"url: the query parameter {name} must be a number, 0 or more")
    return value
