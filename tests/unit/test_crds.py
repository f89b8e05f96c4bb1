"""The CRDs as documents: described at every level, bounded, and with a refusal case for each CEL rule."""

import re
from pathlib import Path

import pytest
import yaml

from cluster.crd_cases import REFUSALS, REFUSED_CHANGES

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "crds").iterdir())
CRDS = {path.name: yaml.safe_load(path.read_text()) for path in FILES}
KINDS = {crd["spec"]["names"]["kind"]: crd for crd in CRDS.values()}
MARK = "Not in effect yet: "

each_crd = pytest.mark.parametrize("crd", CRDS.values(), ids=CRDS.keys())
each_kind = pytest.mark.parametrize("kind", KINDS)


def schema_of(crd):
    return crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def nodes(schema, path=""):
    """Give every schema with its path; `[]` stands for a list's items, `*` for a map's values."""
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from nodes(inner, f"{path}.{name}".lstrip("."))
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from nodes(schema["additionalProperties"], f"{path}.*")


def rules(crd):
    return [
        (path, rule)
        for path, node in nodes(schema_of(crd))
        for rule in node.get("x-kubernetes-validations", ())
    ]


def test_there_is_one_file_for_each_kind():
    assert [path.name for path in FILES] == [
        f"{kind}.lunaq.dev.yaml" for kind in ("brokers", "consumers", "queues")
    ]


@each_crd
def test_names_scope_and_chart_annotation(crd):
    names = crd["spec"]["names"]
    assert crd["metadata"]["name"] == f"{names['plural']}.lunaq.dev"
    assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert crd["spec"]["scope"] == "Namespaced"
    assert names["categories"] == ["lunaq"]
    assert names["shortNames"] == [f"lq{names['singular'][0]}"]
    (version,) = crd["spec"]["versions"]
    assert (version["name"], version["served"], version["storage"]) == ("v1alpha1", True, True)
    assert version["subresources"]["status"] == {}


def test_only_a_consumer_can_be_scaled():
    scales = {kind: crd["spec"]["versions"][0]["subresources"].get("scale") for kind, crd in KINDS.items()}
    assert scales == {
        "Broker": None,
        "Queue": None,
        "Consumer": {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        },
    }


@each_crd
def test_columns_begin_with_ready_and_reason_and_end_with_age(crd):
    columns = crd["spec"]["versions"][0]["additionalPrinterColumns"]
    assert [column["name"] for column in columns][:2] == ["Ready", "Reason"]
    assert columns[-1]["name"] == "Age"
    known = {f".{path}" for path, _ in nodes(schema_of(crd))}
    for column in columns[:-1]:
        assert re.sub(r"\[.*", "", column["jsonPath"]) in known
        assert column["description"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_file_is_below_200_kb(path):
    """262,144 bytes is what the annotation of a client-side `kubectl apply` can hold."""
    assert path.stat().st_size < 200_000


@each_crd
def test_every_property_has_a_description_that_is_a_sentence(crd):
    missing = [
        path
        for path, node in nodes(schema_of(crd))
        if not path.endswith((".*", "[]")) and not re.fullmatch(r"\S.{8,}[.]", node.get("description", ""))
    ]
    assert missing == []


@each_crd
def test_everything_a_user_writes_is_bounded(crd):
    """Unbounded values cost a CEL rule its budget, and the API server its memory."""
    unbounded = []
    for path, node in nodes(schema_of(crd)["properties"]["spec"], "spec"):
        bound = {"string": "maxLength", "array": "maxItems"}.get(node.get("type"))
        if "additionalProperties" in node:
            bound = "maxProperties"
        if bound and "enum" not in node and bound not in node:
            unbounded.append(f"{path}: {bound}")
    assert unbounded == []


@each_crd
def test_every_list_says_how_it_is_merged(crd):
    lists = [(path, node) for path, node in nodes(schema_of(crd)) if node.get("type") == "array"]
    assert lists
    assert [path for path, node in lists if "x-kubernetes-list-type" not in node] == []


@each_crd
def test_no_format_duration(crd):
    """The API server takes `1d` and `-5s` for one."""
    assert [path for path, node in nodes(schema_of(crd)) if node.get("format") == "duration"] == []


@each_crd
def test_every_rule_has_a_message_that_names_its_field(crd):
    for path, rule in rules(crd):
        field = path.rpartition(".")[2].removesuffix("[]")
        begins = re.match(r"(metadata\.name|spec\.[\w.\[\]]+) ", rule["message"])
        assert begins, rule["message"]
        assert field in ("", "spec") or field in begins[1], f"{path}: {rule['message']}"


@each_crd
def test_no_two_rules_say_the_same(crd):
    messages = [rule["message"] for _, rule in rules(crd)]
    assert len(set(messages)) == len(messages) > 0


@each_kind
def test_every_rule_has_a_case_that_it_refuses(kind):
    cases = [refusal.says for refusal in REFUSALS if refusal.obj["kind"] == kind]
    cases += [change.says for change in REFUSED_CHANGES if change.before["kind"] == kind]
    messages = [rule["message"] for _, rule in rules(KINDS[kind])]
    untested = [message for message in messages if not any(message.startswith(says) for says in cases)]
    assert untested == []


@pytest.mark.parametrize(
    ("kind", "says"),
    sorted(
        {(refusal.obj["kind"], refusal.says) for refusal in REFUSALS}
        | {(change.before["kind"], change.says) for change in REFUSED_CHANGES}
    ),
)
def test_every_case_names_a_rule(kind, says):
    """A case that names two rules would not say which of them it tests."""
    named = [rule["message"] for _, rule in rules(KINDS[kind]) if rule["message"].startswith(says)]
    assert len(named) == 1, named


def test_what_is_not_in_effect_yet():
    """Whoever makes a field work takes the mark off, and the field out of this list."""
    marked = {
        kind: [
            path
            for path, node in nodes(schema_of(crd))
            if MARK in node.get("description", "") and not node["description"].startswith(f"{MARK}see ")
        ]
        for kind, crd in KINDS.items()
    }
    assert marked == {
        "Broker": [],
        "Queue": [],
        "Consumer": ["spec.scaling"],
    }


@each_kind
def test_fields_inside_one_that_is_not_in_effect_say_so_too(kind):
    """`kubectl explain` of a field does not show what its parent says."""
    marked = [
        path for path, node in nodes(schema_of(KINDS[kind])) if node.get("description", "").startswith(MARK)
    ]
    for path, node in nodes(schema_of(KINDS[kind])):
        parent = next((mark for mark in marked if path.startswith(f"{mark}.")), None)
        if parent and not path.endswith(("[]", ".*")):
            assert node["description"].startswith(f"{MARK}see {parent.rpartition('.')[2]}. "), path


@each_kind
def test_the_status_has_conditions_that_merge_by_type(kind):
    status = schema_of(KINDS[kind])["properties"]["status"]["properties"]
    assert status["conditions"]["x-kubernetes-list-type"] == "map"
    assert status["conditions"]["x-kubernetes-list-map-keys"] == ["type"]
    assert "observedGeneration" in status
    one = schema_of(KINDS["Broker"])["properties"]["status"]["properties"]["conditions"]["items"]
    assert status["conditions"]["items"] == one
