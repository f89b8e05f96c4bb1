"""The rights of consumers as they are now; `app` asks before consuming, Lua states at every publish.

They stand in the document, or in a file of their own (a mounted ConfigMap) that is read again when it
changes. What cannot be read denies everything.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from lunaq_runtime.entries.parse import EntriesError, policies_of
from lunaq_runtime.policy import ALLOW_ALL, DENY_ALL, Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from lunaq_runtime.ids import Id

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.25
"""How often the file is looked at; a withdrawn right has to hold within 2 s (design.md section 3)."""


class PolicySource:
    """Policies by consumer; `policy` is a plain lookup and may be called from any thread.

    `other` is the policy of consumers that have none.
    """

    def __init__(self, policies: Mapping[Id, Policy], *, other: Policy = DENY_ALL) -> None:
        self._policies = dict(policies)
        self._other = other
        self._callbacks: list[Callable[[], None]] = []

    @classmethod
    def allow_all(cls) -> PolicySource:
        """Allow every consumer everything: only for `--allow-all`."""
        return cls({}, other=ALLOW_ALL)

    def policy(self, consumer_id: Id) -> Policy:
        """Tell the rights of a consumer as they are now."""
        return self._policies.get(consumer_id, self._other)

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call back on the event loop after each change."""
        self._callbacks.append(callback)

    def forget(self, listener: object) -> None:
        """Drop the callbacks that are methods of `listener`, which has ended."""
        self._callbacks = [one for one in self._callbacks if getattr(one, "__self__", None) is not listener]

    def replace(self, policies: Mapping[Id, Policy]) -> None:
        """Let other policies hold from now on, and tell whoever asked to be told."""
        if policies == self._policies:
            return
        # A new dict, never a changed one: threads look it up without a lock.
        self._policies = dict(policies)
        for callback in self._callbacks:
            try:
                callback()
            except Exception:
                logger.exception("a listener to policy changes failed")


class PolicyFile(PolicySource):
    """Policies of a file of `security.policy` entries; read at once, and again by `watch`."""

    def __init__(self, path: Path) -> None:
        super().__init__({})
        self._path = path
        self._content: bytes | None = None
        self._error = ""
        self.look()

    async def watch(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            self.look()

    def look(self) -> None:
        """Read the file, and replace the policies if it says something new.

        Its whole content is compared, for neither time nor inode are sure to change with it.
        """
        try:
            content = self._path.read_bytes()
        except OSError as error:
            self._deny(f"cannot be read: {error.strerror}")
            self._content = None
            return
        if content == self._content:
            return
        self._content = content
        try:
            policies = policies_of(content.decode())
        except EntriesError as error:
            self._deny(f"is not valid: {'; '.join(error.errors)}")
        except Exception as error:  # noqa: BLE001 - a watcher that dies would keep withdrawn rights alive
            self._deny(f"is not valid: {error}")
        else:
            self._report("")
            self.replace(policies)

    def _deny(self, reason: str) -> None:
        self._report(reason)
        self.replace({})

    def _report(self, reason: str) -> None:
        if reason and reason != self._error:
            logger.error("policy file %s %s: everything is denied until it is mended", self._path, reason)
        elif self._error and not reason:
            logger.info("policy file %s is valid again", self._path)
        self._error = reason
