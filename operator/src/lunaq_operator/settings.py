"""What the operator process is told at its start, read once from its arguments by `main`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lunaq_operator.lease import Timing


@dataclass(frozen=True, slots=True)
class Settings:
    """How one operator process runs; times are in seconds."""

    runtime_image: str
    """The image of Consumers' pods."""

    runtime_image_pull_policy: str = "IfNotPresent"
    runtime_image_pull_secrets: tuple[str, ...] = ()

    otlp_endpoint: str = ""
    """Where pods send OpenTelemetry spans; empty: nowhere."""

    cluster_id: str = ""
    """Who we are on a broker that several clusters share; empty: the UID of the namespace kube-system."""

    namespaces: tuple[str, ...] = ()
    """What is watched; empty: the whole cluster."""

    lease_namespace: str = "default"
    lease_name: str = "lunaq-operator"
    lease_timing: Timing = field(default_factory=Timing)

    identity: str = ""
    """Who holds the Lease: the pod's name, and something that no other process of that name has."""

    health_port: int = 8081
    """Where /healthz and /readyz answer; 0 lets the system choose."""

    workers: int = 8
    """How many objects are reconciled at the same time."""

    broker_recheck: float = 15.0
    """How often a Broker's Secret and connection are looked at when nothing happens."""

    queue_recheck: float = 30.0
    """How often a Queue, its dead letter queue and their figures are looked at when nothing happens."""

    topology_recheck: float = 300.0
    """How often all of a Queue's topology is looked at when nothing happens."""

    source_recheck: float = 30.0
    """How often ConfigMaps that a Consumer refers to are looked at when nothing happens."""

    denials_recheck: float = 15.0
    """How often the pods are asked what they had to deny."""

    withdrawal_grace: float = 300.0
    """How long pods stay when the right to consume was withdrawn; they consume nothing meanwhile."""

    cleanup_deadline: float = 30.0
    """How long after its deletion timestamp a finalizer of ours may stay at most (design.md: 60).

    The namespace controller looks at a namespace in deletion only every 8 s or so, hence the margin.
    """

    credentials_max_age: float = 0.0
    """How old a Consumer's broker user may become before it gets another; 0: as old as the Consumer."""

    rotation_settle: float = 5.0
    """How long after a rotation an unused old user is kept: for connections that were just being opened."""

    rotation_deadline: float = 300.0
    """How long after a rotation an old user that is still used is kept; its connections are closed then."""

    silence_limit: float = 300.0
    """How long a watch may be silent, bookmarks included, before /healthz fails."""

    @property
    def cluster_wide(self) -> bool:
        """Whether all namespaces are watched."""
        return not self.namespaces

    def with_cluster_id(self, cluster_id: str) -> Settings:
        """Return the same settings for this cluster."""
        return replace(self, cluster_id=cluster_id)
