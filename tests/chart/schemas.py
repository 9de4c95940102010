"""Whether a cluster would take an object: strict schemas of Kubernetes, and models of custom resources."""

from __future__ import annotations

import json
import re
import subprocess
import zipfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from tests.chart.helm import Object

OWN_SCHEMAS = Path(__file__).parent / "custom_resources"
# Objects that a cluster itself knows; all others are custom resources.
_BUILT_IN = re.compile(
    r"^([a-z]+/)?v[0-9a-z]+$|^(autoscaling|policy)/|\.authorization\.k8s\.io/|^networking\.k8s\.io/"
)


class Kubernetes:
    """The strict schemas of kubernetes-validate's wheel, which refuse unknown fields."""

    def __init__(self, tools: Path) -> None:
        (wheel,) = (tools / "wheels").glob("kubernetes_validate-*.whl")
        self._wheel = zipfile.ZipFile(wheel)
        self._validator = cache(self._make_validator)
        self._definitions = cache(self._read_definitions)

    def close(self) -> None:
        """Close the archive."""
        self._wheel.close()

    def faults(self, objects: Iterable[Object], version: str) -> list[str]:
        """What a cluster of this version would refuse."""
        return [fault for one in objects if is_built_in(one) for fault in self._faults(one, version)]

    def _faults(self, one: Object, version: str) -> list[str]:
        group, _, name = one["apiVersion"].rpartition("/")
        api = f"{group.partition('.')[0]}-{name}" if group else name
        validator = self._validator(f"{one['kind'].lower()}-{api}", version)
        return [
            f"{one['kind']} {one['metadata']['name']}: {error.json_path}: {error.message}"
            for error in validator.iter_errors(one)
        ]

    def _make_validator(self, name: str, version: str) -> Draft202012Validator:
        schema = self._read(f"{name}.json", version)
        registry: Registry[object] = Resource.from_contents(schema) @ Registry()
        return Draft202012Validator(schema, registry=self._definitions(version) @ registry)

    def _read_definitions(self, version: str) -> Resource[object]:
        return Resource.from_contents(self._read("_definitions.json", version))

    def _read(self, name: str, version: str) -> Object:
        folder = f"kubernetes_validate/kubernetes-json-schema/v{version}.0-local-strict"
        schema: Object = json.loads(self._wheel.read(f"{folder}/{name}"))
        return schema


def is_built_in(one: Object) -> bool:
    """Whether Kubernetes itself defines this kind."""
    return bool(_BUILT_IN.search(one["apiVersion"]))


def custom_resource_faults(tools: Path, objects: Iterable[Object]) -> list[str]:
    """What is wrong with custom resources, unknown fields included."""
    ours, theirs = [], []
    for one in objects:
        if not is_built_in(one):
            (ours if _own_schema(one).exists() else theirs).append(one)
    faults = [
        f"{one['kind']} {one['metadata']['name']}: {error.json_path}: {error.message}"
        for one in ours
        for error in Draft202012Validator(json.loads(_own_schema(one).read_text())).iter_errors(one)
    ]
    return faults + _models_faults(tools, theirs)


def _own_schema(one: Object) -> Path:
    return OWN_SCHEMAS / f"{one['kind'].lower()}.json"


def _models_faults(tools: Path, objects: list[Object]) -> list[str]:
    done = subprocess.run(
        ["node", str(tools / "validate.mjs")],
        input=json.dumps(objects),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    faults: list[str] = json.loads(done.stdout)
    return faults
