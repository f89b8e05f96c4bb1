"""What a broker user may do, by name: the patterns match what the policy allows, and nothing else."""

import hashlib
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunaq_operator.broker_users import (
    HASHING,
    TAG,
    Account,
    Grants,
    Place,
    escape,
    grants,
    hash_password,
    owner,
    password_matches,
    slots,
)
from lunaq_runtime.policy import CONSUME, PUBLISH_TO, Policy

PLACE = Place("cluster", "app", "main")
_LABEL_ALPHABET = string.ascii_lowercase + string.digits + "-"
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")

labels = st.text(_LABEL_ALPHABET, min_size=1, max_size=8).filter(_LABEL.match) | st.sampled_from(
    ["app", "emails", "a", "0", "x", "retry", "dead", "a" * 63]
)
parts = labels | st.just("*")
patterns = st.builds("{}:{}".format, parts, parts)
hostile = st.text(max_size=12) | st.text(":.x*|()[]^$\\\n-abz*", max_size=16)


@st.composite
def names_near(draw, policy, queue_id):
    """A name that the policy allows, or one beside it."""
    pattern = draw(st.sampled_from([*policy.publish_to, queue_id]))
    namespace, name = (draw(labels) if part == "*" else part for part in pattern.split(":"))
    queue = f"{namespace}:{name}"
    return draw(
        st.sampled_from(
            [
                f"{queue}.x", queue, f"{queue}.retry", f"{queue}.dead", f"{queue}.retry.1000", f"{queue}.x\n",
                f"x{queue}.x", f"{queue}.xx", f"{queue}:a.x", f"{queue}.a.x", f"{queue}ax", f"{queue}.x|",
                f"{queue.upper()}.x", f"{queue}é.x", f"-{queue}.x", f"{queue}-.x", "amq.default", "",
            ]
        )
    )  # fmt: skip


def matches(pattern, name):
    """Match as RabbitMQ does, whose dialect writes the very end in small letters, and which sees bytes."""
    if pattern.endswith(r"\z"):
        pattern = pattern.removesuffix(r"\z") + r"\Z"
    return re.search(pattern.encode(), name.encode()) is not None


def allowed_exchange(policy, name):
    """Tell, without a regular expression of ours, whether a name is the exchange of an allowed queue."""
    queue, dot, suffix = name.rpartition(".")
    namespace, colon, short = queue.partition(":")
    well_formed = dot and colon and suffix == "x" and _LABEL.match(namespace) and _LABEL.match(short)
    return bool(well_formed) and policy.publish and policy.allows(PUBLISH_TO, queue)


@given(
    st.data(), st.booleans(), st.lists(patterns, max_size=5), st.lists(patterns, max_size=3), labels, labels
)
def test_a_permission_matches_exactly_the_names_that_the_policy_allows(
    data, publish, publish_to, consume, namespace, name
):
    policy = Policy(publish=publish, publish_to=tuple(sorted(publish_to)), consume=tuple(sorted(consume)))
    queue_id = f"{namespace}:{name}"
    texts = grants(policy, queue_id, queue_id, retries=True, named={}).texts()
    # No object has an empty name, and RabbitMQ takes line ends off; tests/broker asks it.
    asked = data.draw((hostile | names_near(policy, queue_id)).filter(lambda name: name.strip("\r\n")))
    consumes = policy.allows(CONSUME, queue_id)
    assert matches(texts.read, asked) == (consumes and asked == queue_id)
    own_retry = consumes and asked == f"{queue_id}.retry"
    assert matches(texts.write, asked) == (own_retry or allowed_exchange(policy, asked))
    assert not matches(texts.configure, asked)


@given(hostile.filter(bool), hostile)
def test_an_escaped_name_matches_itself_alone(name, other):
    pattern = rf"^(?:{escape(name)})\z"
    assert matches(pattern, name)
    assert matches(pattern, other) == (name == other)


@given(st.data(), st.lists(patterns, max_size=4), st.lists(patterns, max_size=4), labels)
def test_rights_that_cover_others_match_all_that_those_match(data, some, more, name):
    queue_id = f"app:{name}"
    policies = [Policy(publish=True, publish_to=tuple(one), consume=("*:*",)) for one in (some, more)]
    small, large = (grants(policy, queue_id, queue_id, retries=True, named={}) for policy in policies)
    asked = data.draw(names_near(policies[0], queue_id))
    if large.covers(small) and matches(small.texts().write, asked):
        assert matches(large.texts().write, asked)


@pytest.mark.parametrize(
    ("before", "after", "grows"),
    [
        (Grants(None), Grants("app:emails"), True),
        (Grants("app:emails"), Grants(None), False),
        (Grants("app:emails"), Grants("app:sent"), False),
        (Grants(exchanges=("app:sent.x",)), Grants(patterns=("app:*",)), True),
        (Grants(patterns=("app:*",)), Grants(exchanges=("app:sent.x",)), False),
        (Grants(patterns=("app:*",)), Grants(patterns=("*:*",)), True),
        (Grants(patterns=("*:sent",)), Grants(patterns=("app:*",)), False),
        (Grants(exchanges=("legacy.x",)), Grants(patterns=("*:*",)), False),
        (Grants(exchanges=("app:emails.retry",)), Grants(patterns=("app:*",)), False),
    ],
)
def test_growing_is_told_from_shrinking(before, after, grows):
    assert after.covers(before) == grows


def test_a_queue_with_a_name_of_its_own_is_published_to_by_that_name():
    policy = Policy(publish=True, publish_to=("app:old", "app:seen", "other:*"), consume=("app:old",))
    named = {"app:old": "legacy.orders", "app:seen": "", "other:far": "far", "third:x": "third"}
    found = grants(policy, "app:old", "legacy.orders", retries=True, named=named)
    assert found == Grants("legacy.orders", ("far.x", "legacy.orders.retry", "legacy.orders.x"), ("other:*",))
    assert matches(found.texts().write, "legacy.orders.x")
    assert not matches(found.texts().write, "legacyzorders.x")


def test_an_observed_queue_has_no_retry_exchange():
    policy = Policy(consume=("app:seen",))
    assert grants(policy, "app:seen", "theirs", retries=False, named={}).texts().write == "^$"


def test_hundreds_of_names_fit_into_a_permission():
    targets = tuple(f"namespace-{at % 9}:queue-name-{at:06d}" for at in range(1200))
    policy = Policy(publish=True, publish_to=targets)
    assert len(grants(policy, "app:emails", "app:emails", retries=True, named={}).texts().write) < 30_000


@given(labels, labels, labels, labels)
def test_two_consumers_never_share_a_user_and_a_name_tells_its_consumer(one, consumer, other, another):
    mine = slots(PLACE, one, consumer)
    assert set(mine).isdisjoint(slots(PLACE, other, another)) == ((one, consumer) != (other, another))
    assert set(mine).isdisjoint(slots(PLACE._replace(cluster="second"), one, consumer))
    assert all(owner(PLACE, name) == (one, consumer) and len(name) <= 152 for name in mine)


@pytest.mark.parametrize("name", ["guest", "lunaq.app.worker.a", PLACE.prefix, PLACE.prefix + "app.worker.c"])
def test_a_user_that_is_not_ours_has_no_consumer(name):
    assert owner(PLACE, name) is None


def test_a_name_made_to_look_like_another_place_is_another_place():
    assert Place("c", "app", "main").prefix != Place("c\0app", "", "main").prefix


def account(password_hash, hashing=HASHING):
    return Account(frozenset({TAG}), password_hash, hashing, {})


def test_a_password_is_known_by_its_hash():
    hashed = hash_password("secret", b"salt")
    assert password_matches("secret", account(hashed))
    assert not password_matches("other", account(hashed))
    assert not password_matches("secret", account(hashed, "rabbit_password_hashing_md5"))
    assert not password_matches("secret", account("not base64"))


def test_rabbitmqs_other_hash_is_known_too():
    import base64  # noqa: PLC0415 - of this test alone

    hashed = base64.b64encode(b"salt" + hashlib.sha512(b"saltsecret").digest()).decode()
    assert password_matches("secret", account(hashed, "rabbit_password_hashing_sha512"))
