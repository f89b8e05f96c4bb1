"""What a Lua state needs from the worker, and what it is told about a message; plain data and a protocol."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol


class Host(Protocol):
    """The worker's side; its methods are called from worker threads."""

    def can(self, action: str, resource: str) -> bool:
        """Ask the live policy (`policy.Policy.allows`)."""

    def may_publish(self, queue_id: str) -> bool:
        """Ask for both rights that a publish to this queue needs: to publish at all, and to it.

        Unlike `can`, this counts no denial.
        """

    def log(self, level: str, message: str, fields: dict[str, Any], logger_name: str) -> None:
        """Write one log record; `level` is `debug`, `info`, `warn` or `error`, `logger_name` may be empty.

        `fields` is plain data; `error` in it is a text, the log record's error field.
        """


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose handler it is: IDs of the consumer and of its queue, for logs and `security.actor()`."""

    consumer_id: str
    queue_id: str


@dataclass(frozen=True, slots=True)
class MessageContext:
    """One delivery as the handler may see it.

    `message_id` is empty where the publisher set none; `headers` is what `msg:headers()` shows, already
    mapped (`headers.to_lua_headers`); `attempt` counts finished runs, 0 at the first delivery.
    """

    message_id: str
    headers: dict[str, Any] = field(default_factory=dict)
    queue_id: str = ""
    consumer_id: str = ""
    attempt: int = 0
