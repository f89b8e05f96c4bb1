"""Which work follows from which change."""

from lunaq_operator import kinds
from lunaq_operator.references import DERIVE_POLICIES, Work, add_indexes, affected
from lunaq_operator.store import Key, Store


def obj(name, namespace="app", spec=None, **metadata):
    found = {"name": name, "namespace": namespace, "uid": f"{namespace}-{name}", "resourceVersion": "1"}
    return {"metadata": {**found, **metadata}, "spec": spec or {}}


def queue(name, broker="main", namespace="app", **spec):
    return obj(name, namespace, {"brokerRef": {"name": broker, "namespace": "app"}, **spec})


def cluster():
    store = Store(kinds.watched(cluster_wide=True))
    add_indexes(store)
    store[kinds.QUEUES].replace(
        "",
        [
            queue("emails", deadLetter={"queueRef": {"name": "dead"}}),
            queue("dead"),
            queue("far", namespace="other"),
            queue("else", broker="second"),
        ],
        5,
    )
    store[kinds.CONSUMERS].replace(
        "",
        [
            obj("worker", spec={"queueRef": {"name": "emails"}}),
            obj("remote", "other", {"queueRef": {"name": "emails", "namespace": "app"}}),
            obj("idle", spec={"queueRef": {"name": "else"}}),
        ],
        5,
    )
    return store


def work(kind, *keys):
    return {Work(kind, Key(*key.split("/"))) for key in keys}


def test_a_broker_concerns_its_queues_and_their_consumers():
    found = set(affected(kinds.BROKERS, obj("main"), cluster()))
    assert found == (
        work("brokers", "app/main")
        | work("queues", "app/emails", "app/dead", "other/far")
        | work("consumers", "app/worker", "other/remote")
    )


def test_a_queue_concerns_its_consumers_and_who_sends_it_dead_letters():
    found = set(affected(kinds.QUEUES, queue("dead"), cluster()))
    assert found == work("queues", "app/dead", "app/emails")
    found = set(affected(kinds.QUEUES, queue("emails"), cluster()))
    assert found == work("queues", "app/emails") | work("consumers", "app/worker", "other/remote")


def test_a_queue_that_goes_concerns_those_that_claim_the_same_name():
    store = cluster()
    store[kinds.QUEUES].put(
        obj("rival", spec={"brokerRef": {"name": "main"}, "queueName": "x"}, resourceVersion="9")
    )
    gone = queue("first", queueName="x")
    assert work("queues", "app/rival") <= set(affected(kinds.QUEUES, gone, store))


def test_every_rbac_kind_has_all_policies_derived_anew():
    for kind in kinds.RBAC:
        assert affected(kind, obj("any"), cluster()) == [DERIVE_POLICIES]


def test_an_owned_object_concerns_its_consumer_by_owner_and_by_label():
    owner = {"apiVersion": "lunaq.dev/v1alpha1", "kind": "Consumer", "name": "worker"}
    stranger = {"apiVersion": "apps/v1", "kind": "Consumer", "name": "stranger"}
    owned = obj("worker.policy", ownerReferences=[owner, stranger], labels={"lunaq.dev/consumer": "other"})
    assert set(affected(kinds.CONFIG_MAPS, owned, cluster())) == work("consumers", "app/worker", "app/other")


def test_a_namespace_concerns_what_is_in_it():
    found = set(affected(kinds.NAMESPACES, obj("other", ""), cluster()))
    assert found == work("queues", "other/far") | work("consumers", "other/remote")
