"""checkov finds nothing in renderings and Dockerfiles that waivers.yaml does not explain."""

from __future__ import annotations

import json
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from tests.chart.helm import CHART, REPOSITORY, Helm

RENDERED = ("default", "gpu-mig", "gpu-many", "keda", "inferencepool", "monitoring", "network-policy")


class Finding(NamedTuple):
    """A check that failed for a resource."""

    check: str
    resource: str


@pytest.mark.slow
@pytest.mark.timeout(580)
def test_every_finding_is_waived_and_every_waiver_needed(checkov: Path, helm: Helm, tmp_path: Path) -> None:
    waivers = yaml.safe_load((Path(__file__).parent / "waivers.yaml").read_text(encoding="utf-8"))
    assert all(waiver["reason"] for waiver in waivers)
    for name in RENDERED:
        (tmp_path / f"{name}.yaml").write_text(helm.text(CHART / "ci" / f"{name}-values.yaml"))
    (tmp_path / "cpu.yaml").write_text(helm.text(CHART / "values-cpu.yaml"))
    for name in ("Dockerfile", "Dockerfile.gpu"):
        shutil.copy(REPOSITORY / name, tmp_path)
    findings = _findings(checkov, tmp_path)
    unwaived = {finding for finding in findings if not any(_waives(waiver, finding) for waiver in waivers)}
    assert unwaived == set()
    unneeded = [waiver for waiver in waivers if not any(_waives(waiver, finding) for finding in findings)]
    assert unneeded == []


def _waives(waiver: dict[str, str], finding: Finding) -> bool:
    return waiver["check"] == finding.check and fnmatch(finding.resource, waiver["resource"])


def _findings(checkov: Path, folder: Path) -> set[Finding]:
    """What checkov has to say about the files in a folder, without asking the network."""
    command = [str(checkov), "--directory", str(folder), "--framework", "kubernetes", "dockerfile"]
    command += ["--quiet", "--compact", "--skip-download", "--output", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    reports = json.loads(done.stdout)
    assert {report["check_type"] for report in reports} == {"kubernetes", "dockerfile"}
    assert all(report["summary"]["parsing_errors"] == 0 for report in reports)
    assert all(report["summary"]["passed"] > 50 for report in reports)
    failed = (check for report in reports for check in report["results"]["failed_checks"])
    return {Finding(check["check_id"], check["resource"]) for check in failed}
