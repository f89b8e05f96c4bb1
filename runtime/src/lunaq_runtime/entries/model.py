"""An entries document as plain data (lua-api.md section 2, design.md section 5).

Everything here is resolved and validated: IDs are full, durations are numbers, defaults are filled in.
`entries.parse` makes it; worker, topology and app read it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lunaq_runtime.ids import Id
    from lunaq_runtime.policy import Policy


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS of a connection; `ca`, `cert` and `key` are PEM texts, empty where not given.

    Their `_file`s are paths of the same, read at every connect, so that what rotates is picked up.
    """

    server_name: str = ""
    ca: str = ""
    cert: str = ""
    key: str = field(default="", repr=False)
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    insecure_skip_verify: bool = False


@dataclass(frozen=True, slots=True)
class Driver:
    """A broker to connect to. `kind` is `memory` or `amqp`; `url` may carry no credentials in a pod,
    where they come from mounted files. Times are in seconds; `None` is the library's default.

    `url` has virtual host and authentication mechanism filled in.
    """

    id: Id
    kind: str
    url: str = field(default="", repr=False)
    connection_name: str = ""
    heartbeat: float | None = None
    connection_timeout: float | None = None
    reconnect_delay: float = 1.0
    reconnect_max_delay: float = 30.0
    tls: Tls | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """When a failed delivery comes back: `delays_ms[n]` after failure n+1, the last one repeating.

    A delivery is dead once `attempts` (finished runs) reaches `max_attempts`.
    """

    max_attempts: int = 5
    delays_ms: tuple[int, ...] = (1_000, 10_000, 60_000)


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue and its topology's settings.

    `queue_name` is the broker-side name. `declare` false: somebody else (the operator) declares it.
    `observe` true: somebody else owns it; it is consumed only, with neither delayed retry nor publishing.
    `owner` is written into the exchange's arguments. Lengths count messages or bytes, times are in ms.
    """

    id: Id
    driver: Id
    queue_name: str
    codec: str = "json"
    type: str = "quorum"
    durable: bool = True
    auto_delete: bool = False
    message_ttl_ms: int | None = None
    queue_expiry_ms: int | None = None
    max_length: int | None = None
    max_length_bytes: int | None = None
    single_active_consumer: bool = False
    max_priority: int | None = None
    retry: Retry = field(default_factory=Retry)
    dead_letter: Id | None = None
    dead_letter_queue_name: str = ""
    declare: bool = True
    observe: bool = False
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Store:
    """A key-value store in memory: its bounds in keys and bytes, and seconds between clean-ups."""

    id: Id
    max_size: int = 10_000
    max_bytes: int = 64 * 1024 * 1024
    cleanup_interval: float = 300.0


@dataclass(frozen=True, slots=True)
class Function:
    """What `funcs.call` may name: a function.lua or library.lua entry; the fields are those of `Handler`."""

    chunk_name: str
    source: str
    method: str = ""
    modules: tuple[str, ...] | None = None
    imports: dict[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Handler:
    """The Lua side of a consumer.

    `source` is the chunk's text and `chunk_name` what error positions say. `modules` is what `require`
    may load (None: all core and useful modules); `imports` maps a local name to (chunk name, source) of
    a library. `functions` is what `funcs.call` may name, by ID. `env` is what `env.get` sees.
    `private_ranges` are the private and loopback networks (CIDR) that `http_client` may connect to.
    `timeout` is in seconds, `memory_limit` in bytes.
    """

    chunk_name: str
    source: str
    method: str = ""
    modules: tuple[str, ...] | None = None
    imports: dict[str, tuple[str, str]] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    private_ranges: tuple[str, ...] = ()
    timeout: float = 30.0
    memory_limit: int = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Consumer:
    """A queue's handler and how many of them run; `drain_timeout` is in seconds."""

    id: Id
    queue: Id
    handler: Handler
    concurrency: int = 1
    prefetch: int = 10
    auto_ack: bool = False
    false_is_failure: bool = True
    exclusive: bool = False
    consumer_tag: str = ""
    drain_timeout: float = 40.0


@dataclass(frozen=True, slots=True)
class Document:
    """A whole entries document. `warnings` are for the log: what was accepted but deserves a word."""

    namespace: str
    drivers: dict[Id, Driver] = field(default_factory=dict)
    queues: dict[Id, Queue] = field(default_factory=dict)
    consumers: dict[Id, Consumer] = field(default_factory=dict)
    policies: dict[Id, Policy] = field(default_factory=dict)
    stores: dict[Id, Store] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
