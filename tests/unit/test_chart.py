"""The chart as files: its copies of the CRDs, its values and their schema. No helm is needed here."""

import copy
import json
import re
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "lunaq"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())

# Objects of other APIs, which the chart hands on as they are.
FREE = {"global", "affinity.nodeAffinity", "affinity.podAffinity", "affinity.podAntiAffinity"}


def resolved(schema):
    if "$ref" not in schema:
        return schema
    found = SCHEMA["definitions"][schema["$ref"].removeprefix("#/definitions/")]
    return found | {key: value for key, value in schema.items() if key != "$ref"}


def nodes(schema, path=""):
    schema = resolved(schema)
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from nodes(inner, f"{path}.{name}".lstrip("."))
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")


def folder(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_the_charts_crds_are_copies_of_the_canonical_ones():
    assert folder(CHART / "files" / "crds") == folder(ROOT / "crds"), "run scripts/sync-crds"


def test_sync_crds_makes_them_equal_and_removes_what_is_gone(tmp_path):
    shutil.copytree(ROOT / "crds", tmp_path / "crds")
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "sync-crds", tmp_path / "scripts")
    copies = tmp_path / "charts" / "lunaq" / "files" / "crds"
    copies.mkdir(parents=True)
    (copies / "gone.lunaq.dev.yaml").write_text("old")
    subprocess.run([tmp_path / "scripts" / "sync-crds"], check=True, cwd="/")
    assert folder(copies) == folder(ROOT / "crds")


def test_the_values_are_valid():
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.validate(VALUES, SCHEMA)


def test_every_value_is_described():
    assert [
        path for path, node in nodes(SCHEMA) if path and "[]" not in path and not node.get("description")
    ] == []


def test_every_object_refuses_unknown_keys():
    loose = [
        path
        for path, node in nodes(SCHEMA)
        if node.get("type") == "object" and "additionalProperties" not in node and path not in FREE
    ]
    assert loose == []
    assert all(node.get("additionalProperties") is not True for _, node in nodes(SCHEMA))


def mappings(value, path=()):
    if isinstance(value, dict):
        yield path
        for key, inner in value.items():
            yield from mappings(inner, (*path, key))


STRICT = [
    path
    for path in mappings(VALUES)
    if dict(nodes(SCHEMA)).get(".".join(path), {}).get("additionalProperties") is False
]


@pytest.mark.parametrize("path", STRICT, ids=lambda path: ".".join(path) or "top")
def test_a_typo_is_an_error_at_every_level(path):
    values = copy.deepcopy(VALUES)
    inner = values
    for key in path:
        inner = inner[key]
    inner["replica"] = 2
    with pytest.raises(jsonschema.ValidationError, match="'replica' was unexpected"):
        jsonschema.validate(values, SCHEMA)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("replicas",), -1),
        (("replicas",), "2"),
        (("log", "level"), "verbose"),
        (("watchNamespaces",), "app"),
        (("watchNamespaces",), ["App"]),
        (("image", "operator", "digest"), "sha256:12"),
        (("image", "operator", "repository"), ""),
        (("image", "runtime", "pullPolicy"), "Sometimes"),
        (("crds", "install"), "yes"),
        (("serviceAccount", "create"), False),  # its name is missing then
    ],
)
def test_wrong_values_are_refused(path, value):
    values = copy.deepcopy(VALUES)
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, SCHEMA)


def test_every_value_stands_in_values_yaml_and_in_the_schema():
    described = {path for path, _ in nodes(SCHEMA) if path and "[]" not in path and path != "global"}
    written = {".".join(path) for path in mappings(VALUES) if path}
    leaves = {
        ".".join((*path, key))
        for path in mappings(VALUES)
        for key in (_at(VALUES, path) if isinstance(_at(VALUES, path), dict) else ())
    }
    free = {path for path in described | leaves if path.startswith(("affinity.", "resources."))}
    assert described - free == (written | leaves) - free


def _at(value, path):
    for key in path:
        value = value[key]
    return value


def test_every_value_is_used_by_a_template():
    templates = "".join(file.read_text() for file in (CHART / "templates").iterdir())
    used = set(re.findall(r"\.Values\.([A-Za-z.]+)", templates))
    # lunaq.image is handed the whole of an image.
    assert {path.split(".")[0] for path in used} == set(VALUES)


def test_no_template_grants_a_wildcard():
    for file in (CHART / "templates").iterdir():
        assert not re.search(r"""(verbs|resources|apiGroups|resourceNames):.*\*""", file.read_text()), (
            file.name
        )


def test_versions():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["apiVersion"] == "v2"
    assert chart["kubeVersion"] == ">=1.29.0-0"
