"""An entries document means what the contract says, and its mistakes are told all at once."""

from __future__ import annotations

from typing import Any

import pytest

from lunaq_runtime.entries.model import Consumer, Document, Driver, Handler, Queue, Retry
from lunaq_runtime.entries.parse import EntriesError, parse, policies_of
from lunaq_runtime.ids import Id
from lunaq_runtime.policy import Policy

BROKER = {"name": "broker", "kind": "queue.driver.amqp"}
EMAILS = {"name": "emails", "kind": "queue.queue"}
WORKER = {"name": "worker", "kind": "queue.consumer", "queue": "emails", "source": "return 1"}


def document(*entries: dict[str, Any], **frame: Any) -> Document:
    return parse({"entries": list(entries), **frame})


def errors(*entries: Any, **frame: Any) -> list[str]:
    with pytest.raises(EntriesError) as caught:
        parse({"entries": list(entries), **frame})
    assert str(caught.value) == "\n".join(caught.value.errors)
    return list(caught.value.errors)


def consumer(**fields: Any) -> Consumer:
    return document(BROKER, EMAILS, {**WORKER, **fields}).consumers[Id("app", "worker")]


def queue(**fields: Any) -> Queue:
    return document(BROKER, {**EMAILS, **fields}).queues[Id("app", "emails")]


def test_a_document_in_seed_style_has_every_default_filled_in() -> None:
    text = """
version: "1.0"
entries:
  - id: broker
    kind: queue.driver.memory
  - id: emails
    kind: queue.queue
  - id: worker
    kind: queue.consumer
    queue: emails
    method: handle_email
    source: |
      function handle_email(message) end
"""
    env = {"LUNAQ_NAMESPACE": "app", "LUNAQ_CONSUMER": "app:worker", "LUNAQ_QUEUE": "app:emails"}
    assert parse(text) == Document(
        namespace="app",
        drivers={Id("app", "broker"): Driver(Id("app", "broker"), "memory")},
        queues={
            Id("app", "emails"): Queue(
                Id("app", "emails"),
                Id("app", "broker"),
                "emails",
                max_length=1000,
                dead_letter_queue_name="emails.dead",
            )
        },
        consumers={
            Id("app", "worker"): Consumer(
                Id("app", "worker"),
                Id("app", "emails"),
                Handler(
                    chunk_name="app:worker",
                    source="function handle_email(message) end\n",
                    method="handle_email",
                    env=env,
                ),
            )
        },
    )


def test_a_file_with_a_single_entry_is_a_document() -> None:
    parsed = parse("namespace: mail\nname: broker\nkind: queue.driver.memory\n")
    assert list(parsed.drivers) == [Id("mail", "broker")]


def test_every_mistake_is_told_at_once_with_its_place() -> None:
    found = errors(
        BROKER,
        {"name": "emails", "kind": "queue.queue", "codec": "xml", "driver": "nowhere"},
        {"name": "worker", "kind": "queue.consumer", "concurrency": 1001, "prefetch": 10_001, "func": "gone"},
    )
    assert [text.partition(" known")[0].partition(": it has")[0] for text in found] == [
        "entries[1] (queue.queue app:emails) codec: unknown payload codec 'xml': use json, msgpack or raw",
        "entries[2] (queue.consumer app:worker) queue: queue ID is required",
        "entries[2] (queue.consumer app:worker) concurrency: concurrency 1001 exceeds maximum 1000",
        "entries[2] (queue.consumer app:worker) prefetch: prefetch 10001 exceeds maximum 10000",
        "entries[1] (queue.queue app:emails) driver: app:nowhere is not a driver of this document",
        "entries[2] (queue.consumer app:worker) func: app:gone is not a function.lua of this document",
    ]


@pytest.mark.parametrize("value", [0, -1])
def test_concurrency_and_prefetch_below_one_mean_their_defaults(value: int) -> None:
    parsed = consumer(concurrency=value, prefetch=value)
    assert (parsed.concurrency, parsed.prefetch) == (1, 10)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("entries: [}", "line 1: "),
        ("- a", "document: must be an object with entries, not a list"),
        ("namespace: app", "entries: must be a list, not null"),
        ("entries: []\nentries: []", "line 2: the key 'entries' stands here twice"),
        ("namespace: 'a:b'\nentries: []", "namespace: must be words separated by dots"),
        ("entries: [5]", "entries[0]: must be an object, not the number 5"),
        ("entries: [{name: a}]", "entries[0] kind: kind is required: one of queue.driver.memory,"),
        ("entries: [{kind: queue.queue}]", "entries[0] (queue.queue) name: name (or id) is required"),
        ("entries: [{kind: queue.queue, id: ':a'}]", "entries[0] (queue.queue) id: ':a' is not an ID"),
        ("entries: [{kind: queue.queue, id: 7}]", "entries[0] (queue.queue) id: must be an ID"),
        ("entries: [{kind: queue.queue, id: a, name: b}]", "entries[0] (queue.queue) id: differs from name"),
        (
            "entries: [{kind: queue.spline, name: a}]",
            "entries[0] (queue.spline app:a) kind: queue.spline is not a known kind: known are queue.dri",
        ),
        (
            "entries: [{kind: queue.driver.sqs, name: a}]",
            "entries[0] (queue.driver.sqs app:a) kind: queue.driver.sqs is out of scope of Lunaq",
        ),
    ],
)
def test_a_frame_that_cannot_be_read_is_refused_with_its_place(text: str, expected: str) -> None:
    with pytest.raises(EntriesError) as caught:
        parse(text)
    assert caught.value.errors[0].startswith(expected)


def test_entries_of_different_kinds_may_share_an_id_as_resources_do() -> None:
    parsed = document({**BROKER, "name": "emails"}, EMAILS, {**WORKER, "name": "emails"})
    assert set(parsed.drivers) == set(parsed.queues) == set(parsed.consumers) == {Id("app", "emails")}


def test_two_entries_of_one_kind_and_id_are_refused() -> None:
    (error,) = errors(BROKER, EMAILS, {"id": "app:emails", "kind": "queue.queue"})
    assert error == (
        "entries[2] (queue.queue app:emails) name: app:emails is taken by"
        " entries[1] (queue.queue app:emails): rename one"
    )


def test_kinds_of_later_versions_are_accepted_with_a_warning() -> None:
    parsed = document({"name": "env", "kind": "env.storage.memory"}, {"name": "s", "kind": "store.sql"})
    assert [text.rpartition(": ")[2] for text in parsed.warnings] == [
        "env.storage.memory is not available in this version and is ignored",
        "store.sql is not available in this version and is ignored",
    ]


def test_unknown_fields_of_an_entry_are_ignored_with_a_warning() -> None:
    parsed = document({**BROKER, "colour": "red"}, comment="x")
    assert parsed.warnings == (
        "document comment: is not a known field and is ignored",
        "entries[0] (queue.driver.amqp app:broker) colour: colour is not a known field and is ignored",
    )


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ({**EMAILS, "lunaq": {"colour": 1}}, "lunaq.colour: is not a known field"),
        ({**EMAILS, "lunaq": {"retry": {"attempts": 1}}}, "lunaq.retry.attempts: is not a known field"),
        ({**WORKER, "lunaq": {"type": "classic"}}, "lunaq.type: is not a known field"),
        ({"name": "f", "kind": "function.lua", "source": "x", "lunaq": {}}, "lunaq: function.lua has no"),
    ],
)
def test_unknown_fields_under_lunaq_are_refused(entry: dict[str, Any], field: str) -> None:
    others = [one for one in (BROKER, EMAILS) if one["name"] != entry["name"]]
    (error,) = errors(*others, entry)
    assert field in error


def test_references_are_resolved_in_the_namespace_of_the_entry_that_makes_them() -> None:
    parsed = parse(
        {
            "namespace": "app",
            "entries": [
                BROKER,
                {"id": "mail:out", "kind": "queue.queue", "driver": {"ns": "app", "name": "broker"}},
                {"id": "mail:sender", "kind": "queue.consumer", "queue": "out", "source": "x"},
                {"id": "other", "kind": "queue.consumer", "queue": "mail:out", "source": "x"},
            ],
        }
    )
    assert {one.queue for one in parsed.consumers.values()} == {Id("mail", "out")}
    assert parsed.queues[Id("mail", "out")].queue_name == "out"


def test_a_queue_may_leave_out_its_driver_only_where_there_is_exactly_one() -> None:
    other = {"name": "other", "kind": "queue.driver.memory"}
    assert queue().driver == Id("app", "broker")
    assert "driver ID is required: this document has 0 drivers" in errors(EMAILS)[0]
    assert "driver ID is required: this document has 2 drivers" in errors(BROKER, other, EMAILS)[0]


def test_all_settings_of_a_queue_reach_the_model() -> None:
    parsed = document(
        {**BROKER, "default_queue_ttl": "1h", "default_queue_expiry": "2h"},
        {"name": "graveyard", "kind": "queue.queue", "queue_name": "yard"},
        {
            **EMAILS,
            "queue_name": "mails",
            "codec": "application/msgpack",
            "driver_options": {"amqp": {"max_length": 5}, "memory": {"max_length": 7}, "nats": {"x": 1}},
            "dead_letter": {"queue": "graveyard", "max_attempts": 3},
            "lunaq": {
                "retry": {"maxAttempts": 3, "delays": ["100ms", "2s"]},
                "messageTTL": "90s",
                "maxLengthBytes": 1024,
                "singleActiveConsumer": True,
                "declare": False,
                "observe": True,
                "owner": "cluster/app/emails",
            },
        },
    )
    assert parsed.queues[Id("app", "emails")] == Queue(
        Id("app", "emails"),
        Id("app", "broker"),
        "mails",
        codec="msgpack",
        message_ttl_ms=90_000,
        queue_expiry_ms=7_200_000,
        max_length=5,
        max_length_bytes=1024,
        single_active_consumer=True,
        retry=Retry(3, (100, 2000)),
        dead_letter=Id("app", "graveyard"),
        dead_letter_queue_name="yard",
        declare=False,
        observe=True,
        owner="cluster/app/emails",
    )
    assert parsed.queues[Id("app", "graveyard")].message_ttl_ms == 3_600_000


def test_the_memory_driver_reads_its_own_options_only() -> None:
    options = {"driver_options": {"amqp": {"max_length": 5}, "memory": {"max_length": 7}}}
    parsed = document({"name": "broker", "kind": "queue.driver.memory"}, {**EMAILS, **options})
    assert parsed.queues[Id("app", "emails")].max_length == 7


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"lunaq": {"messageTTL": "soon"}}, "lunaq.messageTTL: 'soon' is not a duration"),
        ({"lunaq": {"messageTTL": 30}}, "lunaq.messageTTL: 30 has no unit: write 30s or 30ms"),
        ({"lunaq": {"messageTTL": "0"}}, "lunaq.messageTTL: 0 is not within 1ms and 1176h"),
        ({"lunaq": {"messageTTL": "1.5ms"}}, "lunaq.messageTTL: 1.5ms is finer than a millisecond"),
        ({"driver_options": {"amqp": {"message_ttl": "5"}}}, "amqp.message_ttl: '5' is not a duration"),
        (
            {"lunaq": {"messageTTL": "1s"}, "driver_options": {"amqp": {"message_ttl": "2s"}}},
            "lunaq.messageTTL: differs from driver_options.amqp.message_ttl",
        ),
        (
            {"lunaq": {"retry": {"maxAttempts": 2}}, "dead_letter": {"max_attempts": 3}},
            "lunaq.retry.maxAttempts: is 2, but dead_letter.max_attempts is 3: remove one of them",
        ),
        ({"lunaq": {"retry": {"delays": []}}}, "lunaq.retry.delays: needs at least 1 item"),
        ({"lunaq": {"retry": {"delays": ["1s"] * 6}}}, "lunaq.retry.delays: has 6 items, at most 5"),
        ({"lunaq": {"retry": {"delays": ["1s", "1d"]}}}, "lunaq.retry.delays[1]: '1d' is not a duration"),
        ({"lunaq": {"retry": {"delays": ["1177h"]}}}, "lunaq.retry.delays[0]: 1177h is not within"),
        ({"lunaq": {"type": "stream"}}, "lunaq.type: 'stream' is not one of quorum, classic"),
        ({"lunaq": {"maxPriority": 5}}, "lunaq.maxPriority: works only with lunaq.type classic"),
        ({"lunaq": {"declare": "no"}}, "lunaq.declare: must be true or false, not the text 'no'"),
        ({"dead_letter": {"queue": "gone"}}, "dead_letter.queue: app:gone is not a queue of this document"),
        ({"dead_letter": {"queue": "emails"}}, "dead_letter.queue: is the queue itself"),
        ({"dead_letter": {"max_attempts": 0}}, "max_attempts: max_attempts 0 is below minimum 1"),
        ({"queue_name": "q" * 201}, "queue_name: is longer than 200 bytes"),
        ({"queue_name": "amq.q"}, "queue_name: begins with amq."),
        (
            {"lunaq": {"type": "quorum"}, "driver_options": {"amqp": {"durable": False}}},
            "lunaq.type: a quorum queue is durable and never auto-deleted",
        ),
    ],
)
def test_a_queue_that_cannot_be_is_refused_with_field_and_fix(fields: dict[str, Any], error: str) -> None:
    (found,) = errors(BROKER, {**EMAILS, **fields})
    assert found.startswith("entries[1] (queue.queue app:emails) ")
    assert error in found


def test_two_queues_of_one_broker_side_name_are_refused() -> None:
    (found,) = errors(BROKER, EMAILS, {"id": "mail:emails", "kind": "queue.queue", "driver": "app:broker"})
    assert "queue_name: emails is the broker-side name of app:emails already" in found


def test_a_dead_letter_queue_must_be_on_the_same_driver() -> None:
    (found,) = errors(
        BROKER,
        {"name": "other", "kind": "queue.driver.amqp"},
        {"name": "yard", "kind": "queue.queue", "driver": "other"},
        {**EMAILS, "driver": "broker", "dead_letter": {"queue": "yard"}},
    )
    assert "dead_letter.queue: app:yard is on another driver" in found


@pytest.mark.parametrize(
    ("options", "field"),
    [({"durable": False}, "durable"), ({"auto_delete": True}, "auto_delete")],
)
def test_a_queue_that_can_lose_messages_is_classic_and_warned_about(
    options: dict[str, Any], field: str
) -> None:
    parsed = document(BROKER, {**EMAILS, "driver_options": {"amqp": options}})
    assert parsed.queues[Id("app", "emails")].type == "classic"
    assert f"driver_options.amqp.{field}: messages" in parsed.warnings[0]


@pytest.mark.parametrize(
    ("network", "error"),
    [
        ("everything", "write a network such as 10.0.0.0/8"),
        ("10.0.0.1/8", "write a network such as 10.0.0.0/8"),
        ("169.254.169.254/32", "169.254.169.254/32 is link-local, which http_client never connects to"),
        ("fe80::/10", "fe80::/10 is link-local, which http_client never connects to"),
    ],
)
def test_a_private_range_that_cannot_be_is_refused(network: str, error: str) -> None:
    worker = {**WORKER, "modules": ["http_client"], "lunaq": {"httpClient": {"privateRanges": [network]}}}
    (found,) = errors(BROKER, EMAILS, worker)
    assert "lunaq.httpClient.privateRanges: " in found
    assert error in found


def test_a_long_time_in_driver_options_is_cut_as_the_contract_says() -> None:
    assert queue(driver_options={"amqp": {"message_ttl": "1176h"}}).message_ttl_ms == 2**31 - 1
    assert queue(lunaq={"messageTTL": "1176h"}).message_ttl_ms == 1176 * 3_600_000


def test_all_settings_of_a_consumer_reach_the_model() -> None:
    parsed = parse(
        {
            "entries": [
                BROKER,
                EMAILS,
                {
                    **WORKER,
                    "method": "run",
                    "modules": ["json"],
                    "concurrency": 4,
                    "prefetch": 20,
                    "driver_options": {"amqp": {"exclusive": True, "consumer_tag": "me"}},
                    "lifecycle": {"stop_timeout": "5s"},
                    "lunaq": {
                        "env": {"A": "1"},
                        "envFrom": ["TOKEN", "ABSENT"],
                        "timeout": "1.5s",
                        "memoryLimit": "16Mi",
                        "falseIsFailure": False,
                    },
                },
            ]
        },
        environ={"TOKEN": "t", "OTHER": "o"},
    )
    own = {"LUNAQ_NAMESPACE": "app", "LUNAQ_CONSUMER": "app:worker", "LUNAQ_QUEUE": "app:emails"}
    assert parsed.consumers[Id("app", "worker")] == Consumer(
        Id("app", "worker"),
        Id("app", "emails"),
        Handler(
            "app:worker",
            "return 1",
            method="run",
            modules=("json",),
            env={"A": "1", "TOKEN": "t", **own},
            timeout=1.5,
            memory_limit=16 * 2**20,
        ),
        concurrency=4,
        prefetch=20,
        false_is_failure=False,
        exclusive=True,
        consumer_tag="me",
        drain_timeout=5.0,
    )
    assert ["lunaq.envFrom: the environment has no variable ABSENT" in text for text in parsed.warnings] == [
        True
    ]


def test_drain_timeout_wins_over_the_contracts_stop_timeout() -> None:
    parsed = consumer(lifecycle={"stop_timeout": "5s"}, lunaq={"drainTimeout": "7s"})
    assert parsed.drain_timeout == 7.0


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"queue": "gone"}, "queue: app:gone is not a queue of this document: it has app:emails"),
        ({"source": " "}, "source: is empty"),
        ({"lunaq": {"memoryLimit": "64 MB"}}, "lunaq.memoryLimit: '64 MB' is not a quantity"),
        ({"lunaq": {"memoryLimit": "1k"}}, "lunaq.memoryLimit: 1k is below the least of 1048576 bytes"),
        ({"lunaq": {"env": {"A": 5}}}, "lunaq.env.A: must be a text, not the number 5: put it in quotes"),
        ({"lunaq": {"env": {"LUNAQ_QUEUE": "x"}}}, "lunaq.env: LUNAQ_QUEUE begins with LUNAQ_"),
        ({"lunaq": {"envFrom": "TOKEN"}}, "lunaq.envFrom: must be a list, not the text 'TOKEN'"),
        ({"auto_ack": "yes"}, "auto_ack: must be true or false, not the text 'yes'"),
        ({"prefetch": True}, "prefetch: must be an integer, not true"),
        ({"driver_options": 5}, "driver_options: must be an object, not the number 5"),
        ({"imports": {"email": "gone"}}, "imports.email: app:gone is not a library.lua of this document"),
    ],
)
def test_a_consumer_that_cannot_be_is_refused_with_field_and_fix(fields: dict[str, Any], error: str) -> None:
    (found,) = errors(BROKER, EMAILS, {**WORKER, **fields})
    assert found.startswith("entries[2] (queue.consumer app:worker) ")
    assert error in found


@pytest.mark.parametrize(
    ("fields", "warning"),
    [
        ({"auto_ack": True}, "auto_ack: messages are lost"),
        ({"concurrency": 20}, "prefetch: is below concurrency, so that 10 handlers never work"),
        ({"driver_options": {"amqp": {"no_wait": True}}}, "no_wait: has no effect"),
        ({"lifecycle": {"auto_start": False}}, "lifecycle.auto_start: has no effect: every consumer starts"),
        ({"lifecycle": {"security": {}}}, "lifecycle.security: has no effect: permissions come from"),
    ],
)
def test_what_is_accepted_but_surprising_is_warned_about(fields: dict[str, Any], warning: str) -> None:
    (found,) = document(BROKER, EMAILS, {**WORKER, **fields}).warnings
    assert warning in found


def test_policies_of_one_consumer_add_up() -> None:
    first = {
        "name": "p1",
        "kind": "security.policy",
        "consumer": "worker",
        "publish": True,
        "publishTo": ["b", "app:*"],
        "consume": ["mail:in"],
    }
    second = {
        "name": "p2",
        "kind": "security.policy",
        "consumer": "app:worker",
        "consume": ["emails"],
        "publishTo": ["app:a"],
    }
    expected = {
        Id("app", "worker"): Policy(
            publish=True, publish_to=("app:*", "app:a", "app:b"), consume=("app:emails", "mail:in")
        )
    }
    assert document(BROKER, EMAILS, WORKER, first, second).policies == expected
    assert policies_of({"entries": [first, second]}) == expected


def test_a_consumer_without_a_policy_has_none() -> None:
    assert document(BROKER, EMAILS, WORKER).policies == {}


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({}, "consumer: consumer ID is required"),
        ({"consumer": "worker", "publishTo": ["*"]}, "publishTo[0]: '*' is ambiguous: write app:* or *:*"),
        ({"consumer": "worker", "consume": "emails"}, "consume: must be a list, not the text 'emails'"),
        ({"consumer": "worker", "publish": "true"}, "publish: must be true or false, not the text 'true'"),
        ({"consumer": "worker", "consume": [5]}, "consume[0]: must be an ID"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(fields: dict[str, Any], error: str) -> None:
    policy = {"name": "p", "kind": "security.policy", **fields}
    for found in (errors(BROKER, EMAILS, WORKER, policy), _policy_errors(policy)):
        assert len(found) == 1
        assert error in found[0]


def _policy_errors(policy: dict[str, Any]) -> list[str]:
    with pytest.raises(EntriesError) as caught:
        policies_of({"entries": [policy]})
    return list(caught.value.errors)


@pytest.mark.parametrize(
    ("fields", "warning"),
    [
        ({"consumer": "wroker"}, "consumer: app:wroker is not a consumer of this document"),
        ({"consumer": "worker", "consume": ["app:em*"]}, "consume: app:em*: * stands for a whole name"),
    ],
)
def test_a_policy_that_is_likely_a_mistake_is_warned_about(fields: dict[str, Any], warning: str) -> None:
    (found,) = document(BROKER, EMAILS, WORKER, {"name": "p", "kind": "security.policy", **fields}).warnings
    assert warning in found
