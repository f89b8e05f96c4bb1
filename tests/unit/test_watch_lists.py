"""The middleware's pure part: pages become lists, and silence is noticed."""

import pytest

from lunaq_operator import kinds
from lunaq_operator.store import Store
from lunaq_operator.watch import Lists


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def seen():
    return []


@pytest.fixture
def lists(seen):
    made = Store([kinds.QUEUES, kinds.BROKERS])
    taken = Lists(made, lambda kind, obj: seen.append((kind.kind, obj["metadata"]["name"])), clock=Clock())
    taken.store = made
    return taken


def page(*names, token="", version=7):
    metadata = {"resourceVersion": str(version)} | ({"continue": token} if token else {})
    items = [
        {"metadata": {"name": name, "namespace": "app", "uid": name, "resourceVersion": "1"}}
        for name in names
    ]
    return {"metadata": metadata, "items": items}


def names(lists):
    return {key.name for key in lists.store[kinds.QUEUES].objects}


def test_pages_are_put_together_before_they_replace(lists):
    lists.take_page(kinds.QUEUES, "", page("old"), first=True)
    lists.take_page(kinds.QUEUES, "", page("a", token="more", version=9), first=True)
    assert names(lists) == {"old"}
    lists.take_page(kinds.QUEUES, "", page("b", version=9), first=False)
    assert names(lists) == {"a", "b"}


def test_a_list_that_broke_off_leaves_nothing_behind(lists):
    lists.take_page(kinds.QUEUES, "", page("half", token="more"), first=True)
    lists.take_page(kinds.QUEUES, "", page("a"), first=True)
    assert names(lists) == {"a"}


def test_what_a_list_brought_and_what_it_lacks_is_told(lists, seen):
    lists.take_page(kinds.QUEUES, "", page("a"), first=True)
    lists.take_page(kinds.QUEUES, "", page("b", version=9), first=True)
    assert seen == [("Queue", "a"), ("Queue", "b"), ("Queue", "a")]


def test_the_age_is_that_of_the_kind_that_was_silent_longest(lists):
    lists._clock.now = 160.0
    lists._scopes[kinds.QUEUES.path()].last_data = 150.0
    assert lists.age() == 60.0
    assert lists.quiet(30) == [kinds.BROKERS.path()]
