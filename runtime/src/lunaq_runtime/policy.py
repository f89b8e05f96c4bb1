"""What a consumer may do, as patterns; asked at every publish and before consuming (design.md section 3).

The operator derives policies from RBAC, an entries file may carry them, and whoever enforces them only
calls `Policy.allows`. Deny is the default everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

PUBLISH = "queue.publish"
PUBLISH_TO = "queue.publish.queue"
CONSUME = "queue.consume"


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

    `publish` is the general right, `publish_to` and `consume` are sorted patterns of queue IDs.
    """

    publish: bool = False
    publish_to: tuple[str, ...] = ()
    consume: tuple[str, ...] = ()

    def allows(self, action: str, resource: str = "") -> bool:
        """Answer one check; an unknown action is denied."""
        if action == PUBLISH:
            return self.publish
        if action == PUBLISH_TO:
            return any(matches(pattern, resource) for pattern in self.publish_to)
        if action == CONSUME:
            return any(matches(pattern, resource) for pattern in self.consume)
        return False


DENY_ALL = Policy()
"""What holds where no policy was given, or it cannot be read."""

ALLOW_ALL = Policy(publish=True, publish_to=("*:*",), consume=("*:*",))
"""Only for `lunaq run --allow-all`."""
