"""`helm template` for tests: the chart, its values files, and what they come to as plain objects."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
CHART = REPOSITORY / "helm" / "helixflow"
VALUES_FILES = (*sorted((CHART / "ci").glob("*-values.yaml")), CHART / "values-cpu.yaml")
KUBERNETES = ("1.29", "1.31", "1.34", "1.37")

Object = dict[str, Any]


class RefusedError(Exception):
    """Helm did not render the chart; the text is what it said."""


class Release(list[Object]):
    """The objects of one rendering."""

    def all(self, kind: str, component: str = "server") -> list[Object]:
        """All objects of a kind that belong to a component."""
        return [one for one in self if one["kind"] == kind and _component(one) == component]

    def one(self, kind: str, component: str = "server") -> Object:
        """The only object of a kind."""
        (found,) = self.all(kind, component)
        return found

    @property
    def pod(self) -> Object:
        """The specification of the server's pods."""
        spec: Object = self.one("Deployment")["spec"]["template"]["spec"]
        return spec

    @property
    def container(self) -> Object:
        """The server's container."""
        container: Object = self.pod["containers"][0]
        return container


def _component(one: Object) -> str | None:
    labels: dict[str, str] = one["metadata"].get("labels", {})
    return labels.get("app.kubernetes.io/component")


Releases = dict[str, Release]  # by the name of their values file


@dataclass(frozen=True)
class Helm:
    """One version of helm."""

    program: Path

    def text(self, *files: Path, values: Mapping[str, Any] | None = None, kubernetes: str = "1.34") -> str:
        """What `helm template` prints for values files and values; RefusedError if it renders nothing."""
        arguments = ["--kube-version", f"{kubernetes}.0"]
        for file in files:
            arguments += ["--values", str(file)]
        return self._run(("template", "demo", *arguments), values)

    def release(self, *files: Path, kubernetes: str = "1.34", **values: Any) -> Release:
        """The objects of a release."""
        text = self.text(*files, values=values, kubernetes=kubernetes)
        return Release(one for one in yaml.load_all(text, yaml.CSafeLoader) if one)

    def notes(self, **values: Any) -> str:
        """What an operator reads after the installation. Helm 4 only: helm 3 asks a cluster for that."""
        return self._run(("install", "demo", "--dry-run=client"), values).partition("\nNOTES:\n")[2]

    def _run(self, arguments: Sequence[str], values: Mapping[str, Any] | None) -> str:
        command = [str(self.program), *arguments, str(CHART), "--namespace", "models", "--values", "-"]
        done = subprocess.run(
            command, input=json.dumps(values or {}), capture_output=True, text=True, check=False, timeout=60
        )
        if done.returncode != 0:
            raise RefusedError(done.stderr)
        return done.stdout
