"""What `topology_of` says a Queue is on the broker (design.md section 4)."""

from __future__ import annotations

from dataclasses import replace

from lunaq_runtime.entries.model import Queue, Retry
from lunaq_runtime.ids import Id
from lunaq_runtime.topology import (
    Binding,
    ExchangeDecl,
    QueueDecl,
    Topology,
    combine,
    delay_key,
    deletion_order,
    retry_delays,
    topology_of,
)

EMAILS = Queue(id=Id("app", "emails"), driver=Id("app", "mq"), queue_name="app:emails", owner="c1/app/emails")


def arguments_of(topology: Topology, name: str) -> dict[str, object]:
    return next(queue.arguments for queue in topology.queues if queue.name == name)


def test_a_queue_publishes_through_a_fanout_exchange_that_names_its_owner():
    topology = topology_of(EMAILS)
    assert topology.exchanges[0] == ExchangeDecl("app:emails.x", "fanout", {"x-lunaq-owner": "c1/app/emails"})
    assert Binding("app:emails.x", "app:emails", "") in topology.bindings


def test_no_owner_writes_no_owner_argument():
    assert topology_of(replace(EMAILS, owner="")).exchanges[0].arguments == {}


def test_the_main_queue_dead_letters_at_least_once_to_its_own_dead_queue():
    assert arguments_of(topology_of(EMAILS), "app:emails") == {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "app:emails.dead",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        "x-delivery-limit": 100,
    }


def test_each_delay_is_a_quorum_queue_that_returns_to_the_main_queue_at_least_once():
    topology = topology_of(EMAILS)
    assert topology.exchanges[1].name == "app:emails.retry"
    assert topology.exchanges[1].type == "direct"
    for delay in (1_000, 10_000, 60_000):
        assert arguments_of(topology, f"app:emails.retry.{delay}") == {
            "x-queue-type": "quorum",
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": "app:emails",
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
            "x-message-ttl": delay,
        }
        assert Binding("app:emails.retry", f"app:emails.retry.{delay}", str(delay)) in topology.bindings


def test_the_retry_queues_of_a_classic_queue_are_quorum_all_the_same():
    topology = topology_of(replace(EMAILS, type="classic"))
    assert arguments_of(topology, "app:emails.retry.1000")["x-queue-type"] == "quorum"
    assert arguments_of(topology, "app:emails.dead")["x-queue-type"] == "quorum"


def test_a_repeated_delay_is_one_queue_and_one_key():
    queue = replace(EMAILS, retry=Retry(5, (5_000, 1_000, 5_000)))
    topology = topology_of(queue)
    names = [decl.name for decl in topology.queues if ".retry." in decl.name]
    assert names == ["app:emails.retry.1000", "app:emails.retry.5000"]
    assert tuple(map(delay_key, retry_delays(queue))) == ("1000", "5000")
    assert sum(binding.routing_key == "5000" for binding in topology.bindings) == 1


def test_no_delays_leave_the_dead_key_alone_on_the_retry_exchange():
    topology = topology_of(replace(EMAILS, retry=Retry(1, ())))
    keys = [binding.routing_key for binding in topology.bindings if binding.exchange == "app:emails.retry"]
    assert keys == ["dead"]


def test_the_own_dead_queue_has_neither_ttl_nor_length_and_is_declared_before_the_main_queue():
    topology = topology_of(EMAILS)
    assert topology.queues[0] == QueueDecl(
        "app:emails.dead", {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000_000}, internal=True
    )
    assert Binding("app:emails.retry", "app:emails.dead", "dead") in topology.bindings


def test_a_named_dead_letter_queue_is_bound_but_not_declared():
    queue = replace(EMAILS, dead_letter=Id("app", "failed"), dead_letter_queue_name="failed-on-broker")
    topology = topology_of(queue)
    assert arguments_of(topology, "app:emails")["x-dead-letter-routing-key"] == "failed-on-broker"
    assert Binding("app:emails.retry", "failed-on-broker", "dead") in topology.bindings
    assert not {"failed-on-broker", "app:emails.dead"} & {decl.name for decl in topology.queues}


def test_limits_become_arguments_in_the_brokers_units():
    queue = replace(
        EMAILS,
        message_ttl_ms=30_000,
        queue_expiry_ms=90_000,
        max_length=10,
        max_length_bytes=2_048,
        single_active_consumer=True,
    )
    arguments = arguments_of(topology_of(queue), "app:emails")
    assert arguments["x-message-ttl"] == 30_000
    assert arguments["x-expires"] == 90_000
    assert arguments["x-max-length"] == 10
    assert arguments["x-max-length-bytes"] == 2_048
    assert arguments["x-single-active-consumer"] is True


def test_a_classic_queue_dead_letters_without_the_strategy_it_does_not_know():
    arguments = arguments_of(topology_of(replace(EMAILS, type="classic", max_priority=9)), "app:emails")
    assert arguments == {
        "x-queue-type": "classic",
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "app:emails.dead",
        "x-max-priority": 9,
    }


def test_a_classic_queue_with_a_length_rejects_the_publisher_and_never_drops():
    arguments = arguments_of(topology_of(replace(EMAILS, type="classic", max_length=5)), "app:emails")
    assert arguments["x-overflow"] == "reject-publish"


def test_priorities_are_left_out_where_the_queue_is_quorum():
    assert "x-max-priority" not in arguments_of(topology_of(replace(EMAILS, max_priority=9)), "app:emails")


def test_a_queue_that_is_not_durable_is_classic_for_there_is_no_such_quorum_queue():
    topology = topology_of(replace(EMAILS, durable=False, auto_delete=True))
    main = next(queue for queue in topology.queues if queue.name == "app:emails")
    assert (main.durable, main.auto_delete) == (False, True)
    assert main.arguments["x-queue-type"] == "classic"


def test_an_observed_queue_has_no_topology():
    assert topology_of(replace(EMAILS, observe=True)) == Topology()


def test_everything_a_binding_names_is_declared_in_the_same_topology():
    topology = topology_of(EMAILS)
    assert {binding.queue for binding in topology.bindings} <= {queue.name for queue in topology.queues}
    assert {binding.exchange for binding in topology.bindings} == {
        exchange.name for exchange in topology.exchanges
    }


def test_combined_topologies_declare_all_queues_before_any_binding():
    failed = replace(EMAILS, id=Id("app", "failed"), queue_name="app:failed")
    emails = replace(EMAILS, dead_letter=failed.id, dead_letter_queue_name="app:failed")
    both = combine([topology_of(emails), topology_of(failed)])
    assert {binding.queue for binding in both.bindings} <= {queue.name for queue in both.queues}
    assert len(both.queues) == len(topology_of(emails).queues) + len(topology_of(failed).queues)


def test_deletion_takes_the_exchanges_first_so_that_publishers_are_told():
    order = deletion_order(topology_of(EMAILS))
    assert order[0] == ("exchange", "app:emails.x")
    kinds = [kind for kind, _ in order]
    assert kinds == sorted(kinds)
    assert len(order) == 2 + 5
