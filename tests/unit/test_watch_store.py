"""The store: lists replace, events amend, and what is late loses."""

from lunaq_operator import kinds
from lunaq_operator.store import Key, KindStore, Store


def obj(name, version, uid=None, namespace="app", **more):
    metadata = {"name": name, "namespace": namespace, "uid": uid or f"uid-{name}"}
    return {"metadata": {**metadata, "resourceVersion": str(version)}, **more}


def store(*objects, version=10, scopes=("",)):
    made = KindStore(kinds.QUEUES, scopes)
    for scope in scopes:
        made.replace(scope, [one for one in objects if scope in ("", one["metadata"]["namespace"])], version)
    return made


def names(made):
    return {key.name for key in made.objects}


def test_a_list_replaces_so_that_what_vanished_in_a_gap_is_gone_and_told():
    made = store(obj("a", 1), obj("b", 2))
    changed, gone = made.replace("", [obj("b", 2), obj("c", 15)], 20)
    assert names(made) == {"b", "c"}
    assert changed == {Key("app", "c")}
    assert [one["metadata"]["name"] for one in gone] == ["a"]


def test_a_list_of_one_namespace_leaves_the_others_alone():
    made = store(obj("a", 1), obj("b", 2, namespace="other"), scopes=("app", "other"))
    made.replace("app", [], 20)
    assert set(made.objects) == {Key("other", "b")}


def test_a_list_does_not_remove_what_the_operator_wrote_after_it():
    made = store()
    made.put(obj("own", 25))
    made.replace("", [], 20)
    assert names(made) == {"own"}


def test_an_event_that_is_older_than_the_list_brings_nothing_back():
    made = store(obj("a", 1))
    made.replace("", [], 20)
    assert not made.put(obj("a", 15))
    assert names(made) == set()


def test_an_older_version_never_replaces_a_newer_one():
    made = store()
    made.put(obj("a", 30, spec="new"))
    assert not made.put(obj("a", 29, spec="old"))
    assert made.get("app", "a")["spec"] == "new"


def test_a_late_answer_to_a_write_does_not_revive_a_deleted_object():
    made = store()
    made.put(obj("a", 21))
    made.remove(obj("a", 23))
    assert not made.put(obj("a", 22))
    assert names(made) == set()


def test_an_object_that_left_the_label_filter_may_come_back():
    made = store()
    made.put(obj("a", 21))
    made.remove(obj("a", 23))
    assert made.put(obj("a", 24))


def test_a_late_deletion_does_not_remove_a_successor_of_the_same_name():
    made = store()
    made.put(obj("a", 30, uid="second"))
    assert not made.remove(obj("a", 29, uid="first"))
    assert names(made) == {"a"}


def test_indexes_follow_changes_and_deletions():
    made = store()
    made.add_index("colour", lambda one: [one["colour"]])
    made.put(obj("a", 21, colour="red"))
    made.put(obj("b", 22, colour="red"))
    made.put(obj("a", 23, colour="blue"))
    assert [one["metadata"]["name"] for one in made.by("colour", "red")] == ["b"]
    assert [one["metadata"]["name"] for one in made.by("colour", "blue")] == ["a"]
    made.remove(obj("b", 24))
    assert made.by("colour", "red") == []


def test_kind_and_api_version_are_filled_in_where_list_items_lack_them():
    made = store(obj("a", 1))
    assert (made.get("app", "a")["kind"], made.get("app", "a")["apiVersion"]) == (
        "Queue",
        "lunaq.dev/v1alpha1",
    )


def test_the_generation_grows_with_changes_only():
    made = store(obj("a", 1))
    before = made.generation
    made.replace("", [obj("a", 1)], 20)
    assert made.generation == before
    made.replace("", [], 21)
    assert made.generation > before


def test_the_barrier_opens_once_every_kind_in_every_namespace_is_listed():
    made = Store([kinds.QUEUES, kinds.CLUSTER_ROLES], ("one", "two"))
    made[kinds.CLUSTER_ROLES].replace("", [], 1)
    made[kinds.QUEUES].replace("one", [], 1)
    assert not made.synced
    assert made.missing() == ["queues"]
    made[kinds.QUEUES].replace("two", [], 1)
    assert made.synced
