"""The examples as they stand: real images, and what loads, launches or deploys them."""

from __future__ import annotations

import copy
import os
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import kubernetes_validate
import pytest
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

from curate.embedding.stage import ACTOR_CPUS
from curate.pipeline import run
from curate.settings import RunSettings
from curate.settings import load as config

ROOT = Path(__file__).resolve().parents[1]
BILLION = ROOT / "examples" / "billion"
RAYJOB_SCHEMA = ROOT / "tests" / "schemas" / "rayjob.yaml"
KUBERNETES = "1.37"
# Of each cluster, the config that it is for
CLUSTERS = {
    ROOT / "cluster.yaml": ROOT / "examples" / "cluster.yaml",
    BILLION / "cluster.yaml": BILLION / "run.yaml",
}
NO_CONFIGS = {BILLION / "cluster.yaml", BILLION / "rayjob.yaml"}
CONFIGS = sorted(set((ROOT / "examples").rglob("*.yaml")) - NO_CONFIGS)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def document(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded


@pytest.fixture
def variables(monkeypatch) -> None:
    for name in ("DATA", "OUTPUT", "LISTS", "ENCODER"):
        monkeypatch.setenv(name, f"/{name.lower()}")
    monkeypatch.setenv("BUCKET", "my-bucket")


def settings_of(path: Path) -> RunSettings:
    return config.load(str(path))


# Configs


@pytest.mark.parametrize("path", CONFIGS, ids=named)
def test_configs_load(path: Path, variables) -> None:
    load = config.load_comparison if path.name.startswith("compare") else config.load
    assert load(str(path)).open


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("CURATE_TEST_DATA"), reason="CURATE_TEST_DATA is not set")
def test_pets_accounts_for_every_image(tmp_path, monkeypatch, ray_session) -> None:
    monkeypatch.setenv("DATA", os.environ["CURATE_TEST_DATA"])
    settings = config.load(
        str(ROOT / "examples" / "pets.yaml"), [f"output={tmp_path}/run", "coreset.budget=0.05"]
    )
    summary = run(settings)
    seen = {name: row.seen for name, row in summary.sources.open.items()}
    assert seen == {"tiny-imagenet": 22_850, "cifar10": 10_000, "imagenet-fullres": 160}
    assert summary.sources.target["target"].seen == 1_800
    assert all(row.rejected == 0 for row in summary.sources.open.values())
    assert summary.outcome.selected == round(0.05 * 33_010)


# Clusters for Ray's launcher


EC2 = botocore.session.get_session().get_service_model("ec2")


def check_instance(node: dict[str, Any]) -> None:
    """By AWS's own description of the call that starts it."""
    shape = EC2.operation_model("RunInstances").input_shape
    faults = ParamValidator().validate(node | {"MinCount": 1, "MaxCount": 1}, shape)
    assert not faults.has_errors(), faults.generate_report()
    assert node["InstanceType"] in EC2.shape_for("InstanceType").enum, node["InstanceType"]
    assert node.get("InstanceMarketOptions") in (None, {"MarketType": "spot"})


@pytest.mark.parametrize("path", CLUSTERS, ids=named)
def test_clusters_are_what_the_launcher_takes(path: Path) -> None:
    cluster = document(path)
    validate_config(prepare_config(copy.deepcopy(cluster)))
    for name, kind in cluster["available_node_types"].items():
        check_instance(kind["node_config"])
        assert ("InstanceMarketOptions" in kind["node_config"]) == (name != "head")
        misspelt = copy.deepcopy(cluster)
        misspelt["available_node_types"][name]["min_worker"] = 1
        with pytest.raises(Exception, match="min_worker"):
            validate_config(prepare_config(misspelt))


def test_misspelt_instances_are_refused() -> None:
    with pytest.raises(AssertionError, match="InstanceTyp"):
        check_instance({"InstanceTyp": "g5.4xlarge"})
    with pytest.raises(AssertionError, match=r"g5\.5xlarge"):
        check_instance({"InstanceType": "g5.5xlarge"})


@pytest.mark.parametrize("path", CLUSTERS, ids=named)
def test_clusters_have_the_gpus_that_their_config_asks_for(path: Path, variables) -> None:
    cluster, embed = document(path), settings_of(CLUSTERS[path]).embed
    workers = {n: k for n, k in cluster["available_node_types"].items() if n != "head"}
    decoding = [k["max_workers"] for k in workers.values() if "GPU" not in k["resources"]]
    assert embed.device == "gpu"
    for kind in workers.values():
        if "GPU" in kind["resources"]:
            assert kind["max_workers"] * kind["resources"]["GPU"] == embed.workers
    assert cluster["max_workers"] == embed.workers + sum(decoding)


@pytest.mark.parametrize("path", CLUSTERS, ids=named)
def test_clusters_install_the_locked_dependencies(path: Path) -> None:
    cluster = document(path)
    for remote, local in cluster["file_mounts"].items():
        assert (ROOT / local).is_file(), "from the checkout's root, where `ray up` is called"
        assert remote == f"/home/{cluster['auth']['ssh_user']}/{Path(local).name}"
    install = next(line for line in cluster["setup_commands"] if "pip install" in line)
    assert "-r ~/pyproject.toml -c ~/constraints.txt boto3" in install
    assert f"--python {locked_python()} " in " ".join(cluster["setup_commands"])


def started(cluster: dict[str, Any], wanted: list[dict[str, float]], **scores: float) -> Counter:
    """Workers by type that Ray's autoscaler starts from nothing for what tasks and actors claim.
    scores: of a type, how lately it could not be had; 0 is just now."""
    types = {
        name: NodeTypeConfig(name, 0, kind["max_workers"], resources=kind["resources"])
        for name, kind in cluster["available_node_types"].items()
        if name != "head"
    }
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=types,
        max_num_nodes=cluster["max_workers"],
        resource_requests=ResourceRequestUtil.group_by_count(
            [ResourceRequestUtil.make(one) for one in wanted]
        ),
        recoverable_resource_availabilities=scores,
    )
    reply = ResourceDemandScheduler().schedule(request)
    assert not reply.infeasible_resource_requests
    return Counter({one.instance_type: one.count for one in reply.to_launch})


def test_a_billion_gets_gpus_for_its_actors_and_cpus_for_its_readers() -> None:
    cluster = document(BILLION / "cluster.yaml")
    actors, readers = [{"GPU": 1, "CPU": ACTOR_CPUS}] * 64, [{"CPU": 0.5}] * 320
    beside = [{"CPU": 0.5}] * 64 * 31  # of 16 CPUs an actor leaves room for as many
    both = started(cluster, actors + beside + readers)
    gpus = {name: count for name, count in both.items() if name.startswith("gpu")}
    assert sum(gpus.values()) == 64 and both.total() - 64 == 5
    assert max(gpus.values()) - min(gpus.values()) <= 1, "as the comment says, in equal parts"
    assert all(name.startswith("cpu") for name in started(cluster, readers))
    assert started(cluster, actors, gpu_l4=0, gpu_l40s=0) == {"gpu_a10g": 64}


# Kubernetes


def check_rayjob(job: dict[str, Any]) -> None:
    """As the API server with KubeRay's definitions does, where nothing unknown is let pass."""
    jsonschema.validate(job, document(RAYJOB_SCHEMA))
    for group in groups_of(job):
        pods = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pods"}}
        kubernetes_validate.validate(
            pods | {"template": group["template"]}, KUBERNETES, strict=True
        )


def groups_of(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def container_of(group: dict[str, Any]) -> dict[str, Any]:
    (container,) = group["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def rayjob() -> dict[str, Any]:
    return document(BILLION / "rayjob.yaml")


def locked_python() -> str:
    match = re.search(r"on Python (3\.\d+)", (ROOT / "constraints.txt").read_text())
    assert match
    return match.group(1)


def locked(package: str) -> str:
    match = re.search(rf"^{package}==([\d.]+)", (ROOT / "constraints.txt").read_text(), re.M)
    assert match
    return match.group(1)


def test_rayjob_is_what_kuberay_takes() -> None:
    check_rayjob(rayjob())


WORKERS = "spec.rayClusterSpec.workerGroupSpecs"


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ("spec", "shutdownAfterJobFinish", True),
        ("spec", "backoffLimit", "5"),
        ("spec", "submissionMode", "HttpMode"),
        ("spec.rayClusterSpec", "enableInTreeAutoscaler", True),
        ("spec.rayClusterSpec", "enableInTreeAutoscaling", "yes"),
        ("spec.rayClusterSpec.autoscalerOptions", "idleTimeoutSecond", 60),
        ("spec.rayClusterSpec.headGroupSpec.rayStartParams", "num-cpus", 0),
        (f"{WORKERS}.0", "maxReplica", 64),
        (f"{WORKERS}.0", "minReplicas", "0"),
        (f"{WORKERS}.0.template.spec", "nodeSelektor", {}),
        (f"{WORKERS}.1.template.spec.containers.0", "envfrom", []),
        (f"{WORKERS}.1.template.spec.containers.0.resources", "limit", {}),
        (f"{WORKERS}.1.template.spec.tolerations.0", "operator", True),
    ],
)
def test_rayjob_with_a_mistake_is_refused(place: str, key: str, value: Any) -> None:
    job = rayjob()
    inside: Any = job
    for part in place.split("."):
        inside = inside[int(part) if part.isdigit() else part]
    inside[key] = value
    with pytest.raises(jsonschema.ValidationError, match=f"{key}|{re.escape(repr(value))}"):
        check_rayjob(job)


def test_rayjob_runs_the_config_in_the_image(variables) -> None:
    job, text = rayjob(), (BILLION / "rayjob.yaml").read_text()
    program, script, option, path = shlex.split(job["spec"]["entrypoint"])
    assert (program, option) == ("python", "--config")
    assert (ROOT / script).is_file()
    # The config is a file of the ConfigMap, made as the head of the manifest says
    head = groups_of(job)[0]
    (mount,) = container_of(head)["volumeMounts"]
    (volume,) = head["template"]["spec"]["volumes"]
    assert mount["name"] == volume["name"]
    assert Path(path).parent == Path(mount["mountPath"])
    made = re.search(r"create configmap (\S+) --from-file=(\S+)", text)
    assert made and made.group(1) == volume["configMap"]["name"]
    assert ROOT / made.group(2) == BILLION / Path(path).name
    # What it fills in from the environment, the Secret has, on every node
    used = set(re.findall(r"\$\{(\w+)\}", (ROOT / made.group(2)).read_text()))
    assert used and used <= set(re.findall(r"--from-literal=(\w+)", text))
    for group in groups_of(job):
        assert container_of(group)["envFrom"] == [{"secretRef": {"name": "curate"}}]
    assert "create secret generic curate " in text


def test_rayjob_has_the_gpus_that_its_config_asks_for(variables) -> None:
    job = rayjob()
    embed = settings_of(BILLION / "run.yaml").embed
    head, gpu, decode = groups_of(job)
    assert gpu["maxReplicas"] == embed.workers == 64
    assert gpu["minReplicas"] == decode["minReplicas"] == 0
    types = document(BILLION / "cluster.yaml")["available_node_types"]
    for group in (gpu, decode):
        affinity = group["template"]["spec"]["affinity"]["nodeAffinity"]
        (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        (match,) = term["matchExpressions"]
        same = {k["node_config"]["InstanceType"]: k for k in types.values()}
        for name in match["values"]:
            resources = same[name]["resources"]
            limits = container_of(group)["resources"]["limits"]
            assert resources.get("GPU", 0) == int(limits.get("nvidia.com/gpu", 0))
            assert resources["CPU"] - 1 == int(limits["cpu"])
    for group in (head, gpu, decode):
        resources = container_of(group)["resources"]
        assert resources["requests"] == resources["limits"]
    capacity = [g["template"]["spec"]["nodeSelector"] for g in (head, gpu, decode)]
    assert [c["karpenter.sh/capacity-type"] for c in capacity] == ["on-demand", "spot", "spot"]


# The image


def test_every_node_runs_one_image_of_the_locked_versions() -> None:
    job = rayjob()
    assert len({container_of(group)["image"] for group in groups_of(job)}) == 1
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == locked("ray")
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert f"FROM python:{locked_python()}-" in dockerfile
    assert "-r pyproject.toml -c constraints.txt" in dockerfile
    for cluster in CLUSTERS:
        (uv,) = re.findall(r"uv==([\d.]+)", dockerfile)
        assert f"/uv/{uv}/" in " ".join(document(cluster)["setup_commands"])
    # Kubernetes cannot tell of a user's name whether it is root
    assert re.search(r"^USER \d+$", dockerfile, re.M)
    for group in groups_of(job):
        assert group["template"]["spec"]["securityContext"] == {"runAsNonRoot": True}


def test_the_image_has_what_runs() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines and all((ROOT / name).exists() for name in kept)
    project = (ROOT / "pyproject.toml").read_text()
    needed = {"curate", "jobs", "examples", "pyproject.toml", "constraints.txt"}
    needed |= set(re.findall(r'^readme = "(.+)"', project, re.M))
    needed |= set(re.findall(r'^license-files = \["(.+)"\]', project, re.M))
    assert needed <= kept
