"""What a message and a handler may take at most, where no field of a resource says it.

One place for all of them, described for users in docs/lua/limits.md (a test holds the two together). The
parts that count are named with each. `timeout` and `memoryLimit` are a consumer's own.
"""

from __future__ import annotations

MAX_BODY = 16 * 1024 * 1024
"""Bytes of a body, sent or received: RabbitMQ 4 takes no larger one (worker, `prelude/encode.lua`)."""

MAX_DEPTH = 128
"""How deep tables may nest, in both directions (`codecs`, `lua.bridge`, `prelude/encode.lua`)."""

MAX_HEADERS = 256
MAX_HEADER_BYTES = 32 * 1024
"""What one publish may carry: AMQP needs all of it in one frame, or the broker closes the connection."""

MAX_LOG_RECORDS = 1000
"""Log records that one message may cause; what is beyond is counted and told in one record."""

MAX_LOG_BYTES = 1024 * 1024
"""Bytes of log records, about, that one message may cause."""

MAX_LOG_RECORD = 64 * 1024
"""Bytes of a record's text, and of its fields together; an error's details may be as large."""

MAX_LOGGER_NAME = 256
"""Characters of a logger's name."""

MAX_ERROR_TEXT = 8 * 1024
"""Bytes of an error's message; the rest is cut off."""

MAX_ERROR_CONTEXTS = 32
"""Contexts that `errors.wrap` keeps: the latest."""

MAX_SCHEMA = 64 * 1024
"""Bytes of a JSON Schema as text (`lua.schemas`)."""

MAX_SCHEMA_INSTANCE = 1024 * 1024
"""Bytes of a value that is validated, as JSON text."""

MAX_SCHEMA_STEPS = 200_000
"""Steps that one `json.validate` may take: schemas visited, entries looked at, errors built."""

PATTERN_STEPS = 100_000_000
"""Steps that Lua's own pattern matcher may take on a subject; beyond, a slower one runs that can be ended."""
