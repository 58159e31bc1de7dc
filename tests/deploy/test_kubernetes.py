"""The manifests as kustomize builds them: against Kubernetes' schemas, and against rules of ours."""

from __future__ import annotations

import runpy
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # comes with transformers
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from stream_app import settings
from stream_app.content.app import group_role
from stream_app.errors import ConfigurationError
from stream_app.worker import ROLES
from tests.deploy.alerts import ROOT
from tests.deploy.crds import CRDS
from tests.deploy.tools import tool

pytestmark = pytest.mark.deploy
OVERLAYS = ("dev", "prod")
VERSIONS = ("1.30", "1.37")
"""Of Kubernetes: the oldest that the manifests are for, and the newest with schemas."""
STOP_S = 37
Manifest = dict[str, Any]


def built(root: Path, overlay: str) -> list[Manifest]:
    """What would be applied. Raises CalledProcessError."""
    command = [tool("kubectl"), "kustomize", str(root / "deploy/kubernetes/overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return [*yaml.safe_load_all(done.stdout)]


def complaints(root: Path, overlay: str) -> list[str]:
    """What is wrong with the manifests of an overlay."""
    try:
        manifests = built(root, overlay)
    except subprocess.CalledProcessError as error:
        return [error.stderr]
    found = [f"{name(one)}: {what}" for one in manifests for what in _against_schema(one)]
    found = found or [*_workloads(manifests), *_references(manifests)]
    return found or [*_scaling(manifests)]


def name(manifest: Manifest) -> str:
    """Kind and name."""
    return f"{manifest['kind']} {manifest['metadata']['name']}"


def _against_schema(manifest: Manifest) -> Iterator[str]:
    import kubernetes_validate  # only `make check-deploy` installs it

    if (schema := CRDS.get(manifest["kind"])) is not None:
        yield from (error.message for error in Draft202012Validator(schema).iter_errors(manifest))
        return
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
            yield f"{version}: {error}"


def _pods(manifests: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    """Each workload of our images, and its pod."""
    for one in manifests:
        pod = one.get("spec", {}).get("template", {})
        if pod and "stream-app" in pod["spec"]["containers"][0]["image"]:
            yield one, pod


def environment(manifests: list[Manifest], container: Manifest) -> dict[str, str]:
    """What a container is started with; secrets as a text."""
    maps = {one["metadata"]["name"]: one["data"] for one in manifests if one["kind"] == "ConfigMap"}
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        found |= maps[source["configMapRef"]["name"]]
    return found | {one["name"]: one.get("value", "secret") for one in container.get("env", ())}


def _workloads(manifests: list[Manifest]) -> Iterator[str]:
    found = {}
    for one, pod in _pods(manifests):
        spec, (container,) = pod["spec"], pod["spec"]["containers"]
        about, guard = name(one), container["securityContext"]
        if ":" not in container["image"] or container["image"].endswith(":latest"):
            yield f"{about}: its image is not pinned"
        if not (guard["readOnlyRootFilesystem"] and guard["capabilities"] == {"drop": ["ALL"]}):
            yield f"{about}: it may write its root file system, or has capabilities"
        if guard["allowPrivilegeEscalation"] or not spec["securityContext"]["runAsNonRoot"]:
            yield f"{about}: it may become root"
        if not {"requests", "limits"} <= container["resources"].keys():
            yield f"{about}: its resources have no bounds"
        try:
            given = environment(manifests, container)
            known = {
                f"STREAM_APP_{section}_{field}".upper()
                for section, kind in settings.SECTIONS.items()
                for field in kind.__struct_fields__
            }
            if unknown := given.keys() - known - {"STREAM_APP_BROKER"}:
                yield f"{about}: no settings: {unknown}"
            settings.load(environment=given)
        except ConfigurationError as error:
            yield f"{about}: {error}"
        if container["args"][0] == "worker":
            found[container["args"][1]] = one
            yield from (f"{about}: {what}" for what in _worker(one, spec, container))
    if found.keys() != ROLES.keys():
        yield f"roles: {sorted(found)}"


def _worker(one: Manifest, spec: Manifest, container: Manifest) -> Iterator[str]:
    probes = {kind: container.get(f"{kind}Probe", {}) for kind in ("startup", "liveness", "readiness")}
    paths = {kind: probe.get("httpGet", {}).get("path") for kind, probe in probes.items()}
    if paths != {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}:
        yield f"probes: {paths}"
    if spec["terminationGracePeriodSeconds"] < STOP_S:
        yield "it is killed before it could come to rest"
    places = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    kept = {claim["metadata"]["name"] for claim in one["spec"].get("volumeClaimTemplates", ())}
    if places.get("state") != "/var/lib/stream-app" or places.get("tmp") != "/tmp":  # noqa: S108
        yield "there is no place for its state, or for temporary files"
    if container["args"][1] in ("interests", "serve") and "state" not in kept:
        yield "its state does not outlive the pod"


def _matches(selector: Manifest, labels: Manifest) -> bool:
    return bool(selector) and selector.items() <= labels.items()


def _references(manifests: list[Manifest]) -> Iterator[str]:
    """Whoever selects pods by labels finds some."""
    templates = [one["spec"]["template"] for one in manifests if "template" in one.get("spec", {})]
    labels = [template["metadata"]["labels"] for template in templates]
    ports = {p["name"] for t in templates for c in t["spec"]["containers"] for p in c.get("ports", ())}
    for one in manifests:
        spec = one.get("spec", {})
        if one["kind"] in ("Service", "PodDisruptionBudget"):
            selector = spec["selector"].get("matchLabels", spec["selector"])
            if sum(_matches(selector, found) for found in labels) != 1:
                yield f"{name(one)} does not select one workload: {selector}"
        if one["kind"] == "NetworkPolicy":
            selector = spec["podSelector"].get("matchLabels", {})
            if selector and not any(_matches(selector, found) for found in labels):
                yield f"{name(one)} selects nothing"
        if one["kind"] == "PodMonitor":
            (expression,) = spec["selector"]["matchExpressions"]
            if (
                set(expression["values"]) != ROLES.keys()
                or spec["podMetricsEndpoints"][0]["port"] not in ports
            ):
                yield f"{name(one)} does not scrape every role"
    budgets = {one["metadata"]["name"] for one in manifests if one["kind"] == "PodDisruptionBudget"}
    if budgets != ROLES.keys():
        yield f"disruption budgets: {sorted(budgets)}"


def _scaling(manifests: list[Manifest]) -> Iterator[str]:
    """Never more workers than partitions, by the lag of groups that exist."""
    data = next(one["data"] for one in manifests if one["kind"] == "ConfigMap")
    loaded = settings.load(environment=data)
    groups = {role: loaded.group(role) for role in ROLES} | {"content": loaded.group(group_role(loaded))}
    replicas = {
        name(one): one["spec"].get("replicas", 1) for one in manifests if "template" in one.get("spec", {})
    }
    for one in manifests:
        if one["kind"] != "ScaledObject":
            continue
        spec, role = one["spec"], one["metadata"]["name"]
        if f"{spec['scaleTargetRef']['kind']} {spec['scaleTargetRef']['name']}" not in replicas:
            yield f"{name(one)} scales nothing"
        kafka = loaded.kafka
        most = kafka.shared_partitions if role == "content" else kafka.partitions
        if not 1 <= spec["minReplicaCount"] <= spec["maxReplicaCount"] <= most:
            yield f"{name(one)}: up to {spec['maxReplicaCount']} workers for {most} partitions"
        for trigger in spec["triggers"]:
            if trigger["metadata"]["consumerGroup"] != groups[role]:
                yield f"{name(one)}: {trigger['metadata']['consumerGroup']} is not the group of the role"
            if trigger["metadata"]["bootstrapServers"] != kafka.broker:
                yield f"{name(one)} asks another broker"
            if kafka.uses_sasl and "authenticationRef" not in trigger:
                yield f"{name(one)} cannot log in"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_is_wrong(overlay: str) -> None:
    assert complaints(ROOT, overlay) == []


def test_production_ranks_on_a_gpu_and_logs_in() -> None:
    manifests = built(ROOT, "prod")
    ranker = next(one for one in manifests if name(one) == "Deployment ranker")["spec"]["template"]["spec"]
    (container,) = ranker["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert ranker["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    loaded = settings.load(environment=environment(manifests, container))
    assert (loaded.ranking.device, loaded.kafka.security_protocol) == ("cuda", "SASL_SSL")
    for one, pod in _pods(manifests):
        mounts = {m["mountPath"] for m in pod["spec"]["containers"][0]["volumeMounts"]}
        assert "/etc/stream-app/kafka" in mounts, name(one)


def test_the_operators_rules_are_prometheus_rules() -> None:
    made = runpy.run_path(str(ROOT / "deploy/kubernetes/generate.py"))["text"]()
    written = (ROOT / "deploy/kubernetes/base/rules.yml").read_text(encoding="utf-8")
    if written != made:
        pytest.fail("base/rules.yml is not up to date: run `python deploy/kubernetes/generate.py`")


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("base/ranker.yml", "terminationGracePeriodSeconds: 40", "terminationGracePeriodSeconds: 20"),
        ("base/ranker.yml", "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false"),
        ("base/ranker.yml", "containerPort: 8600", "containerPort: status"),
        ("base/content.yml", "path: /readyz", "path: /ready"),
        ("base/content.yml", "livenessProbe", "livelinessProbe"),
        ("base/interests.yml", "args: [worker, interests]", "args: [worker, content]"),
        ("base/interests.yml", "mountPath: /var/lib/stream-app", "mountPath: /var/lib/state"),
        ("base/disruption.yml", "component: trainer", "component: learner"),
        ("base/network.yml", "podSelector: {matchLabels", "podSelector: {matchLabel"),
        ("overlays/prod/kustomization.yml", "value: 16}", "value: 17}"),
        ("base/scaling.yml", "consumerGroup: stream-app-ranker", "consumerGroup: ranker"),
        ("base/scaling.yml", "lagThreshold", "lagTreshold"),
        ("base/monitoring.yml", "port: status", "port: metrics"),
        ("base/kustomization.yml", "STREAM_APP_KAFKA_PARTITIONS=8", "STREAM_APP_KAFKA_PARTITION=8"),
        ("base/kustomization.yml", "newTag: 0.1.0-cpu", "newTag: latest"),
        ("overlays/prod/kustomization.yml", "SASL_MECHANISM=SCRAM-SHA-512", "SASL_MECHANISM=SCRAM"),
        ("overlays/prod/kustomization.yml", "path: gpu.yml", "path: gpus.yml"),
    ],
)  # fmt: skip
def test_what_is_broken_is_noticed(tmp_path: Path, file: str, old: str, new: str) -> None:
    shutil.copytree(ROOT / "deploy/kubernetes", tmp_path / "deploy/kubernetes")
    path = tmp_path / "deploy/kubernetes" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert complaints(tmp_path, "prod") != []
