"""What a consumer may do, as patterns; asked at every publish and before consuming (design.md section 3).

The operator derives policies from RBAC, an entries file may carry them, and whoever enforces them only
calls `Policy.allows`. Deny is the default everywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

PUBLISH = "queue.publish"
PUBLISH_TO = "queue.publish.queue"
CONSUME = "queue.consume"
INFO = "queue.info"

OPEN_ACTIONS = frozenset(
    {
        "env.get",
        "env.set",
        "funcs.call",
        "funcs.context",
        "funcs.security",
        "http_client.request",
        INFO,
        "store.get",
        "store.info",
        "store.key.delete",
        "store.key.get",
        "store.key.has",
        "store.key.list",
        "store.key.set",
    }
)
"""What touches only what the consumer's own configuration gave it: allowed unless a policy denies it."""


def matches(pattern: str, resource: str) -> bool:
    """Tell whether `resource` (a queue ID) is covered by `pattern`.

    A pattern is `<namespace>:<name>` where either part may be `*`, which stands for the whole part and
    nothing else: `app:*` covers `app:emails`, and `app:em*` covers only a queue of that very name. A
    resource without a colon has no namespace and is covered by no pattern.
    """
    pattern_namespace, pattern_colon, pattern_name = pattern.partition(":")
    namespace, colon, name = resource.partition(":")
    if not (pattern_colon and colon and namespace and name):
        return False
    return pattern_namespace in ("*", namespace) and pattern_name in ("*", name)


@dataclass(frozen=True, slots=True)
class Policy:
    """The rights of one consumer.

    `publish` is the general right, `publish_to` and `consume` are sorted patterns of queue IDs. `deny` takes
    from the `OPEN_ACTIONS`: an action, or an action, a space and a resource, where * stands for any text.
    """

    publish: bool = False
    publish_to: tuple[str, ...] = ()
    consume: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()

    def allows(self, action: str, resource: str = "") -> bool:
        """Answer one check; an unknown action is denied."""
        if action == PUBLISH:
            return self.publish
        if action == PUBLISH_TO:
            return any(matches(pattern, resource) for pattern in self.publish_to)
        if action == CONSUME:
            return any(matches(pattern, resource) for pattern in self.consume)
        if action in OPEN_ACTIONS:
            return not any(_covers(rule, action, resource) for rule in self.deny)
        return False


def _covers(rule: str, action: str, resource: str) -> bool:
    denied, _, resources = rule.partition(" ")
    return _pattern(denied).fullmatch(action) is not None and (
        not resources or _pattern(resources).fullmatch(resource) is not None
    )


@lru_cache(maxsize=1024)
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, text.split("*"))), re.DOTALL)


DENY_ALL = Policy()
"""What holds where no policy was given, or it cannot be read."""

ALLOW_ALL = Policy(publish=True, publish_to=("*:*",), consume=("*:*",))
"""Only for `lunaq run --allow-all`."""
