"""Every field of an entries document, in one table: `parse` validates by it and the docs are made from it.

The tables are JSON Schema as far as that goes. Formats beyond it: `duration` (Go syntax), `quantity`
(Kubernetes syntax, or a number of bytes), `id` (a reference, the own namespace being the default),
`pattern` (of queue IDs, see `policy`) and `codec`. `x-required` is the error text where the field is
missing, `x-ignored` says why a known field has no effect.

Source: lua-api.md 2 for the entries' own fields; design.md 2 and 5 for those under `lunaq:`.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

LONGEST_DURATION = "1176h"
"""49 days, just below what brokers can count (2^32 ms)."""

MAX_CONCURRENCY = 1000
MAX_PREFETCH = 10_000
MAX_DELAYS = 5
MAX_ATTEMPTS = 1000
MAX_TTL_MS = 2**31 - 1
"""The contract caps times in `driver_options` here (lua-api.md 2.3)."""


def _text(description: str, **more: Any) -> Schema:
    return {"type": "string", "description": description, **more}


def _flag(description: str, **more: Any) -> Schema:
    return {"type": "boolean", "description": description, **more}


def _integer(description: str, **more: Any) -> Schema:
    return {"type": "integer", "description": description, **more}


def _duration(description: str, **more: Any) -> Schema:
    bounds = {"x-minimum": "1ms", "x-maximum": LONGEST_DURATION}
    return {"type": "string", "format": "duration", "description": description, **bounds, **more}


def _id(description: str, **more: Any) -> Schema:
    return {"type": ["string", "object"], "format": "id", "description": description, **more}


def _texts(description: str, **more: Any) -> Schema:
    return {"type": "array", "items": {"type": "string", "minLength": 1}, "description": description, **more}


def _object(description: str, properties: dict[str, Schema] | None = None, **more: Any) -> Schema:
    inner = {} if properties is None else {"properties": properties}
    return {"type": "object", "description": description, **inner, **more}


def _texts_by_name(description: str) -> Schema:
    return _object(description, additionalProperties={"type": "string"})


def _patterns(description: str) -> Schema:
    items = {"type": "string", "format": "pattern"}
    return {"type": "array", "items": items, "description": description, "default": ()}


LUNAQ_QUEUE = _object(
    "Settings of a queue that the contract has no field for.",
    {
        "type": _text("The broker's queue type.", enum=["quorum", "classic"]),
        "retry": _object(
            "When a failed delivery comes back.",
            {
                "maxAttempts": _integer(
                    "Finished runs after which a delivery is a dead letter; default 5.",
                    minimum=1,
                    maximum=MAX_ATTEMPTS,
                ),
                "delays": {
                    "type": "array",
                    "items": _duration("Time before the next attempt."),
                    "minItems": 1,
                    "maxItems": MAX_DELAYS,
                    "description": "One per attempt, the last repeats; default 1s, 10s, 1m.",
                },
            },
            additionalProperties=False,
        ),
        "messageTTL": _duration("How long a message may wait before it is a dead letter."),
        "maxLengthBytes": _integer("Bytes of waiting bodies beyond which publishers are refused.", minimum=1),
        "singleActiveConsumer": _flag("Deliver to one consumer at a time.", default=False),
        "maxPriority": _integer("Priorities the queue tells apart; classic only.", minimum=1, maximum=255),
        "declare": _flag("Declare the queue at start; false: somebody else does.", default=True),
        "observe": _flag("The queue is somebody else's: consume only.", default=False),
        "owner": _text("Who declared it, kept as an argument of its exchanges.", default=""),
    },
    additionalProperties=False,
)

LUNAQ_CONSUMER = _object(
    "Settings of a consumer that the contract has no field for.",
    {
        "env": _texts_by_name("What `env.get` sees; values are texts."),
        "envFrom": _texts("Variables of the process that `env.get` sees as well."),
        "httpClient": _object(
            "What the module http_client may do, where `modules` lists it.",
            {
                "privateRanges": _texts(
                    "Private and loopback networks it may connect to, such as 10.0.0.0/8; default none.",
                    default=(),
                ),
            },
            additionalProperties=False,
        ),
        "timeout": _duration("Longest run of the handler.", default="30s"),
        "memoryLimit": {
            "type": ["string", "integer"],
            "format": "quantity",
            "description": "Memory of one Lua state, at least 1Mi.",
            "x-minimum": 2**20,
            "default": "64Mi",
        },
        "drainTimeout": _duration("Time for running handlers at shutdown; default 40s."),
        "falseIsFailure": _flag("Whether `return false` is a failure.", default=True),
    },
    additionalProperties=False,
)

_AMQP_QUEUE_OPTIONS = _object(
    "Options of the amqp driver.",
    {
        "durable": _flag("Survive a restart of the broker.", default=True),
        "auto_delete": _flag("Delete the queue with its last consumer.", default=False),
        "message_ttl": _duration("How long a message may wait."),
        "queue_expiry": _duration("Delete the queue after so long without use."),
        "max_length": _integer("Waiting messages beyond which publishers are refused.", minimum=1),
    },
)

_AMQP_CONSUMER_OPTIONS = _object(
    "Options of the amqp driver.",
    {
        "exclusive": _flag("Refuse other consumers of the queue.", default=False),
        "no_local": _flag("Accepted.", **{"x-ignored": "brokers ignore it"}),
        "no_wait": _flag("Accepted.", **{"x-ignored": "a consumer always awaits the broker's answer"}),
        "consumer_tag": _text("The beginning of the consumer's tag.", default=""),
    },
)

_MEMORY_OPTIONS = _object(
    "Options of the memory driver.",
    {"max_length": _integer("Waiting messages beyond which publishers are refused.", minimum=1)},
)

_FUNCTION_FIELDS = {
    "modules": _texts("What `require` may load; default all but http_client."),
    "imports": _object(
        "Local name to the ID of a library.lua entry.", additionalProperties=_id("A library.")
    ),
}

_LIFECYCLE = _object(
    "Start and stop.",
    {
        "auto_start": _flag("Accepted: every consumer starts."),
        "stop_timeout": _duration("Time for running handlers at shutdown."),
        "security": _object(
            "Accepted.", None, **{"x-ignored": "permissions come from security.policy entries"}
        ),
        **{
            name: {"description": "Accepted without effect."}
            for name in ("startup", "requires", "depends_on", "start_timeout", "stable_threshold", "restart")
        },
    },
)

_TLS = _object(
    "TLS of the connection, version 1.2 or newer.",
    {
        "enabled": _flag("Use TLS; amqps:// in the url says the same.", default=False),
        "server_name": _text("The name the broker's certificate must have.", default=""),
        **{
            name: _text(f"PEM text of the {what}.", default="")
            for name, what in (("cert", "client's certificate"), ("key", "client's key"), ("ca", "authority"))
        },
        **{
            f"{name}_file": _text(f"Path of the same as `{name}`, read at every connect.", default="")
            for name in ("cert", "key", "ca")
        },
        **{
            f"{name}_env": _text(f"Deprecated: the variable that holds `{name}`.", default="")
            for name in ("cert", "key", "ca")
        },
        "insecure_skip_verify": _flag("Accept any certificate.", default=False),
    },
)

COMMON: dict[str, Schema] = {
    "name": _text("The entry's name, unique in its namespace."),
    "id": _text("The same as `name`."),
    "kind": _text("What the entry is."),
    "meta": {"description": "Free-form metadata."},
    "lifecycle": _LIFECYCLE,
}
"""Fields of every entry."""

KINDS: dict[str, Schema] = {
    "queue.driver.memory": _object("A broker in this process, gone when it ends.", {}),
    "queue.driver.amqp": _object(
        "A connection to an AMQP 0-9-1 broker.",
        {
            "url": _text("amqp:// or amqps://.", default="amqp://guest:guest@localhost:5672/"),
            "vhost": _text("Virtual host; default that of the url."),
            "connection_name": _text("What the broker's UI calls the connection.", default=""),
            "auth_mechanism": _text("SASL.", enum=["PLAIN", "EXTERNAL", "AMQPLAIN"], default="PLAIN"),
            "heartbeat": _duration("Time between heartbeats."),
            "connection_timeout": _duration("Time for a connect."),
            "default_message_ttl": _duration(
                "Accepted.", **{"x-ignored": "give messages a time in their queue's message_ttl"}
            ),
            "default_queue_ttl": _duration("`message_ttl` of queues that set none."),
            "default_queue_expiry": _duration("`queue_expiry` of queues that set none."),
            "reconnect_delay": _duration("First step of the backoff.", default="1s"),
            "reconnect_max_delay": _duration("Longest step of the backoff.", default="30s"),
            "prefetch_count": _integer("Accepted.", **{"x-ignored": "each consumer has its own prefetch"}),
            **{
                name: _integer("Accepted.", **{"x-ignored": "it is agreed with the broker at connect"})
                for name in ("frame_size", "channel_max")
            },
            "tls": _TLS,
        },
    ),
    "queue.queue": _object(
        "A queue.",
        {
            "driver": _id("The broker; may be left out where the document has exactly one driver."),
            "queue_name": _text("Broker-side name; default the entry's name.", minLength=1),
            "codec": {
                "type": "string",
                "format": "codec",
                "description": "json (json/plain), msgpack (application/msgpack) or raw.",
                "default": "json/plain",
            },
            "driver_options": _object(
                "Options per driver; those of other drivers are left alone.",
                {"amqp": _AMQP_QUEUE_OPTIONS, "memory": _MEMORY_OPTIONS},
                additionalProperties=True,
            ),
            "dead_letter": _object(
                "Where deliveries go that fail for good.",
                {
                    "queue": _id("Another queue of this document; default an own `<queue>.dead`."),
                    "max_attempts": _integer(
                        "The same as lunaq.retry.maxAttempts.", minimum=1, maximum=MAX_ATTEMPTS
                    ),
                },
                additionalProperties=False,
            ),
            "lunaq": LUNAQ_QUEUE,
        },
    ),
    "queue.consumer": _object(
        "A handler's work on one queue.",
        {
            "queue": _id("The queue to consume.", **{"x-required": "queue ID is required"}),
            "func": _id("The function.lua entry that handles deliveries."),
            "method": _text("The handler's name in its source.", default=""),
            "source": _text("The handler itself, or file://handler.lua; default the file <id>.lua."),
            **_FUNCTION_FIELDS,
            "concurrency": _integer(
                "Handlers at a time; below 1 means 1.", maximum=MAX_CONCURRENCY, default=1
            ),
            "prefetch": _integer("Deliveries held; below 1 means 10.", maximum=MAX_PREFETCH, default=10),
            "auto_ack": _flag("The broker forgets a message as it sends it.", default=False),
            "driver_options": _object(
                "Options per driver; those of other drivers are left alone.",
                {"amqp": _AMQP_CONSUMER_OPTIONS},
                additionalProperties=True,
            ),
            "lunaq": LUNAQ_CONSUMER,
        },
    ),
    "function.lua": _object(
        "A handler's source.",
        {
            "source": _text("Lua, or file://handler.lua.", **{"x-required": "source is required"}),
            "method": _text("The handler's name in its source.", default=""),
            **_FUNCTION_FIELDS,
            "pool": {"description": "Accepted without effect: `concurrency` governs."},
        },
    ),
    "library.lua": _object(
        "Source that handlers load by `require`.",
        {
            "source": _text("Lua, or file://library.lua.", **{"x-required": "source is required"}),
            "imports": _FUNCTION_FIELDS["imports"],
            "modules": _texts("Accepted.", **{"x-ignored": "list them on the function"}),
        },
    ),
    "store.memory": _object(
        "Keys and values in this process, for all its handlers; gone when it ends.",
        {
            "max_size": _integer("Keys it holds; new ones are refused then.", minimum=1, default=10_000),
            "cleanup_interval": _duration("Time between removals of what has expired.", default="5m"),
            "lunaq": _object(
                "Settings that the contract has no field for.",
                {
                    "maxBytes": {
                        "type": ["string", "integer"],
                        "format": "quantity",
                        "description": "Bytes of keys and values it holds; more are refused then.",
                        "x-minimum": 1024,
                        "default": "64Mi",
                    }
                },
                additionalProperties=False,
            ),
        },
    ),
    "security.policy": _object(
        "What one consumer may do; several for one consumer add up.",
        {
            "consumer": _id("The consumer.", **{"x-required": "consumer ID is required"}),
            "publish": _flag("May publish at all.", default=False),
            "publishTo": _patterns("Queues it may publish to: app:emails, app:*, *:emails, *:*."),
            "consume": _patterns("Queues it may be delivered from, likewise."),
            "deny": _texts(
                "What it may not do of what is allowed by default: an action (env.get, store.*)"
                ", or an action, a space and a resource (env.get SECRET_*); * stands for any text.",
                default=(),
            ),
        },
    ),
}
"""The entries this version runs: kind to its fields, beside `COMMON`."""

UNAVAILABLE_KINDS = ("env.", "store.")
"""Kinds, by prefix, that are accepted with a warning and not run."""

OUT_OF_SCOPE_KINDS = (
    "queue.driver.sqs",
    "http.",
    "process.",
    "function.wasm",
    "process.lua",
    "workflow.",
    "db.",
    "fs.",
    "cloudstorage.",
    "template.",
    "terminal.",
    "security.token_store",
    "contract.",
    "registry.",
    "ns.",
)
"""Kinds, by prefix, that belong to the contract's origin and will not be part of Lunaq."""
