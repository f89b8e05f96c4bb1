"""The worker's side of Lua states: the live policy, the log, and how a state is made."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from lunaq_runtime.lua.host import Identity
from lunaq_runtime.lua.state import LuaState
from lunaq_runtime.policy import PUBLISH, PUBLISH_TO

if TYPE_CHECKING:
    from collections.abc import Callable

    from lunaq_runtime.entries.model import Consumer
    from lunaq_runtime.lua.modules.services import Services
    from lunaq_runtime.policy import Policy
    from lunaq_runtime.worker.counters import Counters

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}

MAX_ANSWERS = 1000
"""Permission checks whose answers are kept."""


logger = logging.getLogger(__name__)


class WorkerHost:
    """Answers what handlers ask at once; `policy` is asked anew each time, from several threads."""

    def __init__(
        self, policy: Callable[[], Policy], counters: Counters | None = None, consumer: str = ""
    ) -> None:
        self._policy = policy
        self._counters = counters
        self._known: tuple[Policy | None, dict[tuple[str, str], bool]] = (None, {})
        self._publishable: tuple[Policy | None, set[str]] = (None, set())
        self._consumer = consumer

    def can(self, action: str, resource: str) -> bool:
        policy = self._policy()
        # Answers are kept for as long as it is the very same policy; one tuple, so that no thread mixes two.
        of, answers = self._known
        if of is not policy or len(answers) > MAX_ANSWERS:
            answers = {}
            self._known = policy, answers
        allowed = answers.get((action, resource))
        if allowed is None:
            answers[action, resource] = allowed = policy.allows(action, resource)
        if not allowed and self._counters:
            times = self._counters.denials.add(action, resource)
            if times:
                self._tell(action, resource, times)
        return allowed

    def may_publish(self, queue_id: str) -> bool:
        policy = self._policy()
        of, known = self._publishable
        if of is policy and queue_id in known:
            return True
        if not (policy.allows(PUBLISH) and policy.allows(PUBLISH_TO, queue_id)):
            return False
        if of is not policy or len(known) > MAX_ANSWERS:
            known = set()
            self._publishable = policy, known
        known.add(queue_id)
        return True

    def _tell(self, action: str, resource: str, times: int) -> None:
        what = f"{action} of {resource}" if resource else action
        text = "the policy of consumer %s denies its handler %s; told once a minute at most, %d times since"
        fields = {"consumer": self._consumer, "action": action, "resource": resource, "times": times}
        logger.warning(text, self._consumer, what, times, extra={"fields": fields})

    def log(self, level: str, message: str, fields: dict[str, Any], logger_name: str) -> None:
        name = f"lunaq.handler.{logger_name}" if logger_name else "lunaq.handler"
        logging.getLogger(name).log(LEVELS[level], "%s", message, extra={"fields": fields})


def state_maker(
    consumer: Consumer,
    policy: Callable[[], Policy],
    counters: Counters | None = None,
    services: Services | None = None,
) -> Callable[[], LuaState]:
    """Prepare the making of this consumer's Lua states; each call loads the handler, or HandlerLoadError."""
    host = WorkerHost(policy, counters, str(consumer.id))
    identity = Identity(str(consumer.id), str(consumer.queue))

    def make() -> LuaState:
        return LuaState(
            consumer.handler,
            host,
            identity=identity,
            false_is_failure=consumer.false_is_failure,
            services=services,
        )

    return make
