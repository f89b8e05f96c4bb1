"""The local mode: runs resources or an entries document in this process, with no cluster (`lunaq run`).

`files` reads manifests, `plan` makes of them what the operator would (pure), `run` is the operator's and
the pods' part in one process.
"""

from lunaq_operator.local.files import LocalError
from lunaq_operator.local.plan import Plan, plan_entries, plan_resources
from lunaq_operator.local.run import LocalRun

__all__ = ["LocalError", "LocalRun", "Plan", "plan_entries", "plan_resources"]
