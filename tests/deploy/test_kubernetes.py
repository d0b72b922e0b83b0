"""The manifests fit each other and the processes they start: every name, port, flag and variable in them exists."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from tests.deploy.processes import ROOT, module_of, read

Document = dict[str, Any]

API = {
    "Deployment": "apps/v1",
    "StatefulSet": "apps/v1",
    "Service": "v1",
    "PersistentVolumeClaim": "v1",
    "PodDisruptionBudget": "policy/v1",
    "NetworkPolicy": "networking.k8s.io/v1",
}
POD_IP = "10.0.0.7"
POD_NAME = "vllm-5f6c-abcde"
FROM_FIELDS = {"status.podIP": POD_IP, "metadata.name": POD_NAME}


@cache
def documents() -> list[Document]:
    found = [
        document
        for path in sorted((ROOT / "deploy/kubernetes").glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
    ]
    assert len(found) > 10
    return found


def of_kind(kind: str) -> list[Document]:
    return [document for document in documents() if document["kind"] == kind]


def workloads() -> list[Document]:
    return of_kind("Deployment") + of_kind("StatefulSet")


def workload(name: str) -> Document:
    (found,) = [document for document in workloads() if document["metadata"]["name"] == name]
    return found


def pod(name: str) -> Document:
    """Its template."""
    template: Document = workload(name)["spec"]["template"]
    return template


def containers() -> Iterator[tuple[Document, Document]]:
    """Every container, with its pod's template."""
    for document in workloads():
        template = document["spec"]["template"]
        for container in template["spec"]["containers"]:
            yield template, container


def ours() -> list[tuple[Document, Document]]:
    return [(template, container) for template, container in containers() if module_of(container.get("command", ()))]


def environ(container: Document) -> dict[str, str]:
    """As the kubelet makes it; references to variables defined before are filled in."""
    found: dict[str, str] = {}
    for entry in container.get("env", ()):
        if "value" in entry:
            text = entry["value"]
            assert isinstance(text, str), f"{entry['name']}: {text!r} must be quoted"
            for name, value in found.items():
                text = text.replace(f"$({name})", value)
            assert "$(" not in text, f"{entry['name']}: {text!r}"
            found[entry["name"]] = text
        elif "fieldRef" in entry["valueFrom"]:
            found[entry["name"]] = FROM_FIELDS[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        else:
            assert entry["valueFrom"]["secretKeyRef"]["optional"], entry
    return found


def settings_of(name: str, container_name: str = "") -> Any:
    (container,) = [one for one in pod(name)["spec"]["containers"] if one["name"] == (container_name or name.split("-")[-1])]
    return read(container["command"], environ(container))


def ports(container: Document) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container.get("ports", ())}


def pods_with(labels: dict[str, str]) -> list[Document]:
    found = []
    for document in workloads():
        template = document["spec"]["template"]
        if labels.items() <= template["metadata"]["labels"].items():
            found.append(template)
    return found


def service(host: str, port: int) -> Document:
    """The pod template behind an address; fails where there is no such Service."""
    (found,) = [document for document in of_kind("Service") if document["metadata"]["name"] == host]
    (entry,) = [entry for entry in found["spec"]["ports"] if entry["port"] == port]
    (template,) = pods_with(found["spec"]["selector"])
    assert entry["targetPort"] in ports(template["spec"]["containers"][0])
    return template


def test_documents_are_of_known_kinds_and_no_two_share_a_name() -> None:
    assert all(API[document["kind"]] == document["apiVersion"] for document in documents())
    names = [(document["kind"], document["metadata"]["name"]) for document in documents()]
    assert len(set(names)) == len(names)
    assert all("namespace" not in document["metadata"] for document in documents())  # kubectl apply -n decides


def test_selectors_find_the_pods_that_they_are_written_for() -> None:
    for document in workloads():
        wanted = document["spec"]["selector"]["matchLabels"]
        assert pods_with(wanted) == [document["spec"]["template"]]
    for document in of_kind("Service"):
        assert len(pods_with(document["spec"]["selector"])) == 1, document["metadata"]["name"]
    for document in of_kind("PodDisruptionBudget"):
        assert len(pods_with(document["spec"]["selector"]["matchLabels"])) == 1


def test_every_process_of_headway_starts_with_what_it_is_told() -> None:
    """Flags and variables that do not exist, or values of the wrong kind, are refused by the process's own settings."""
    modules = {module_of(container["command"]) for _, container in ours()}
    assert modules == {"controlplane", "dataplane", "trainer", "worker_agent"}
    for _, container in ours():
        read(container["command"], environ(container))


def test_images_are_of_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {container["image"] for _, container in ours()} == {f"headway:{version}"}


def test_processes_listen_where_their_pods_say_and_for_other_hosts() -> None:
    control, data, trainer = (settings_of(f"headway-{name}") for name in ("controlplane", "dataplane", "trainer"))
    listening = {
        "headway-controlplane": {"grpc": control.listen[0], "metrics": f"{control.metrics_host}:{control.metrics_port}"},
        "headway-trainer": {"grpc": trainer.listen[0], "metrics": f"{trainer.metrics_host}:{trainer.metrics_port}"},
        "headway-dataplane": {"http": f"{data.host}:{data.port}", "admin": f"{data.admin_host or data.host}:{data.admin_port}"},
    }
    for name, addresses in listening.items():
        (container,) = pod(name)["spec"]["containers"]
        assert {port: f"0.0.0.0:{number}" for port, number in ports(container).items()} == addresses
        scraped = pod(name)["metadata"]["annotations"]["prometheus.io/port"]
        assert int(scraped) == ports(container).get("metrics", ports(container).get("admin"))


def test_addresses_lead_to_services() -> None:
    controls = workload("headway-controlplane")
    for number, address in enumerate(settings_of("headway-dataplane").control):
        host, _, port = address.rpartition(":")
        replica, _, subdomain = host.partition(".")
        assert replica == f"headway-controlplane-{number}"
        assert subdomain == controls["spec"]["serviceName"]
        assert service(subdomain, int(port)) == controls["spec"]["template"]
    assert number + 1 == controls["spec"]["replicas"]
    for name, container in (("headway-controlplane", ""), ("headway-trainer", ""), ("vllm", "agent")):
        url = urlsplit(settings_of(name, container).redis_url)
        assert service(url.hostname or "", url.port or 0) == pod("headway-redis")
    assert service("headway", 80) == pod("headway-dataplane")


def test_an_agent_finds_the_engine_beside_it_and_names_it_by_its_pod() -> None:
    agent = settings_of("vllm", "agent")
    engine, _ = pod("vllm")["spec"]["containers"]
    arguments = dict(argument.split("=", 1) for argument in engine["args"] if "=" in argument)
    events = json.loads(arguments["--kv-events-config"])
    assert (events["enable_kv_cache_events"], events["publisher"]) == (True, "zmq")
    assert agent.kv_events == events["endpoint"].replace("*", "127.0.0.1")
    assert agent.kv_replay == events["replay_endpoint"].replace("*", "127.0.0.1")
    assert agent.engine_url == f"http://127.0.0.1:{arguments['--port']}"
    assert agent.url == f"http://{POD_IP}:{arguments['--port']}"
    assert agent.worker == POD_NAME
    assert ports(engine) == {"http": int(arguments["--port"])}
    assert "--enable-prompt-tokens-details" in engine["args"]


def test_probes_ask_ports_that_there_are() -> None:
    asked = 0
    for _, container in containers():
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            http = container.get(kind, {}).get("httpGet")
            if http is not None:
                assert http["port"] in ports(container)
                assert http["path"] in ("/health", "/ready")
                assert (kind == "readinessProbe") == (http["path"] == "/ready")
                asked += 1
    assert asked >= 8


def test_a_pod_has_the_time_to_end_well() -> None:
    for name in ("headway-dataplane", "vllm"):
        spec = pod(name)["spec"]
        (pause,) = [one["lifecycle"]["preStop"]["exec"]["command"] for one in spec["containers"] if "lifecycle" in one]
        drain_s = settings_of(name).drain_timeout_s if name == "headway-dataplane" else 0
        assert spec["terminationGracePeriodSeconds"] > int(pause[1]) + drain_s


def test_no_pod_is_told_of_services_in_variables_that_look_like_settings() -> None:
    assert all(template["spec"]["enableServiceLinks"] is False for template, _ in containers())


def test_mounts_have_volumes_and_processes_write_only_there() -> None:
    for template, container in containers():
        volumes = {volume["name"] for volume in template["spec"].get("volumes", ())}
        assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes
    claims = {document["metadata"]["name"] for document in of_kind("PersistentVolumeClaim")}
    trainer = pod("headway-trainer")["spec"]
    assert {volume["persistentVolumeClaim"]["claimName"] for volume in trainer["volumes"]} == claims
    assert settings_of("headway-trainer").data_dir == trainer["containers"][0]["volumeMounts"][0]["mountPath"]
    data = pod("headway-dataplane")["spec"]["containers"][0]
    assert environ(data)["HF_HOME"] == data["volumeMounts"][0]["mountPath"]


def test_our_containers_run_as_the_user_of_the_image() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    for template, container in ours():
        security = {**template["spec"].get("securityContext", {}), **container["securityContext"]}
        assert (security["runAsNonRoot"], security["allowPrivilegeEscalation"]) == (True, False)
        assert f"--uid {security['runAsUser']} " in dockerfile


@pytest.mark.parametrize("policy", of_kind("NetworkPolicy"), ids=lambda policy: policy["metadata"]["name"])
def test_a_network_policy_names_pods_and_ports_that_there_are(policy: Document) -> None:
    (template,) = pods_with(policy["spec"]["podSelector"]["matchLabels"])
    names = {name for container in template["spec"]["containers"] for name in ports(container)}
    components = {template["metadata"]["labels"]["app.kubernetes.io/component"] for template, _ in containers()}
    for rule in policy["spec"]["ingress"]:
        assert {port["port"] for port in rule["ports"]} <= names
        for peer in rule.get("from", ()):
            selector = peer["podSelector"]
            wanted = {selector["matchLabels"]["app.kubernetes.io/component"]} if "matchLabels" in selector else set()
            for expression in selector.get("matchExpressions", ()):
                if expression["key"].endswith("component"):
                    wanted |= set(expression["values"])
            assert wanted
            assert wanted <= components


def test_whoever_needs_redis_the_control_plane_or_an_engine_is_let_in() -> None:
    allowed = {}
    for policy in of_kind("NetworkPolicy"):
        for rule in policy["spec"]["ingress"]:
            for peer in rule.get("from", ()):
                text = json.dumps(peer)
                name = policy["metadata"]["name"]
                allowed[name] = {one for one in ("controlplane", "dataplane", "trainer", "engine") if f'"{one}"' in text}
    assert allowed == {
        "headway-redis": {"controlplane", "trainer", "engine"},
        "headway-controlplane": {"dataplane"},
        "headway-engine": {"dataplane"},
    }
