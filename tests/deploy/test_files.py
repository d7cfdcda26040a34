"""Static checks of the deployment files: lints, and consistency with each other and with the programs."""

import json
import re
import shutil

import pytest
import yaml
from conftest import ROOT, run

OVERLAYS = ["development", "production"]
KUBERNETES = "1.34"


def manifests(overlay):
    built = run("kustomize", "build", ROOT / "k8s" / "overlays" / overlay).stdout
    return built, [document for document in yaml.safe_load_all(built) if document]


def of_kind(documents, *kinds):
    return [document for document in documents if document["kind"] in kinds]


def pods(documents):
    """Returns the pod templates, each with the name of its workload."""
    workloads = of_kind(documents, "StatefulSet", "Deployment", "Job")
    return [(workload["metadata"]["name"], workload["spec"]["template"]) for workload in workloads]


def test_files_pass_their_linters():
    run("hadolint", "Dockerfile")
    run("yamllint", "--strict", "--config-file", "tests/deploy/yamllint.yml", "compose", "k8s", "tests/deploy")
    scripts = [path for folder in ("compose", "tests/deploy") for path in (ROOT / folder).rglob("*.sh")]
    run("shellcheck", ROOT / ".ci" / "run", *scripts)


def test_alerts_pass_their_tests_and_have_a_runbook_entry():
    rules = ROOT / "compose" / "prometheus"
    run("promtool", "check", "config", "prometheus.yml", cwd=rules)
    run("promtool", "test", "rules", "alerts_test.yml", cwd=rules)
    alerts = re.findall(r"- alert: (\w+)", (rules / "alerts.yml").read_text())
    tests = (rules / "alerts_test.yml").read_text()
    runbook = (ROOT / "docs" / "operations.md").read_text()
    assert len(alerts) > 10
    for alert in alerts:
        assert f"name: {alert} fires" in tests and f"name: {alert} stays silent" in tests, alert
        assert f"### {alert}\n" in runbook, f"docs/operations.md has no section for {alert}"


def test_dashboard_panels_have_unique_ids_queries_and_a_data_source():
    dashboard = json.loads((ROOT / "compose" / "grafana" / "dashboards" / "backbeat.json").read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids)) > 20
    sources = yaml.safe_load((ROOT / "compose/grafana/provisioning/datasources/prometheus.yml").read_text())
    uids = {source["uid"] for source in sources["datasources"]}
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            assert panel["targets"] and panel["datasource"]["uid"] in uids, panel["title"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_manifests_are_valid_for_kubernetes(overlay, tmp_path):
    built, _ = manifests(overlay)
    file = tmp_path / f"{overlay}.yaml"
    file.write_text(built)
    run("kubernetes-validate", "--kubernetes-version", KUBERNETES, "--strict", file)


def test_notify_component_is_valid_in_the_production_overlay(tmp_path):
    k8s = tmp_path / "k8s"
    shutil.copytree(ROOT / "k8s", k8s)
    with (k8s / "overlays" / "production" / "kustomization.yaml").open("a") as file:
        file.write("components: [../../components/notify]\n")
    built = run("kustomize", "build", k8s / "overlays" / "production").stdout
    (tmp_path / "notify.yaml").write_text(built)
    run("kubernetes-validate", "--kubernetes-version", KUBERNETES, "--strict", tmp_path / "notify.yaml")
    deployment, = [document for document in yaml.safe_load_all(built)
                   if document and document["metadata"]["name"] == "backbeat-notify"]
    container, = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example/backbeat:0.1.0"
    volumes = {volume["name"] for volume in deployment["spec"]["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_manifest_selectors_and_references_resolve(overlay):
    _, documents = manifests(overlay)
    templates = pods(documents)
    assert {name for name, _ in templates} == {"pulse", "reverb", "backbeat-ui", "backbeat-topics"}

    def selected(labels):
        return [t for _, t in templates if labels.items() <= t["metadata"]["labels"].items()]

    ports = {port["name"] for _, t in templates for c in t["spec"]["containers"] for port in c.get("ports", [])}
    for service in of_kind(documents, "Service"):
        pod, = selected(service["spec"]["selector"])
        names = {port["name"] for container in pod["spec"]["containers"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names
    for document in of_kind(documents, "PodDisruptionBudget", "StatefulSet", "Deployment"):
        assert len(selected(document["spec"]["selector"]["matchLabels"])) == 1, document["metadata"]["name"]
    for policy in of_kind(documents, "NetworkPolicy"):
        if "Ingress" in policy["spec"]["policyTypes"]:
            assert len(selected(policy["spec"]["podSelector"]["matchLabels"])) == 1
            assert {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]} <= ports

    maps = {document["metadata"]["name"] for document in of_kind(documents, "ConfigMap")}
    generated = {document["metadata"]["name"] for document in of_kind(documents, "Secret")}
    created_by_hand = {"backbeat-raft", "backbeat-admin", *(f"backbeat-kafka-{program}" for program in ("pulse", "reverb", "ui", "topics"))}
    for name, template in templates:
        spec = template["spec"]
        for constraint in spec.get("topologySpreadConstraints", []):
            assert len(selected(constraint["labelSelector"]["matchLabels"])) == 1
        secrets = {volume["secret"]["secretName"] for volume in spec.get("volumes", []) if "secret" in volume}
        assert secrets <= (generated or created_by_hand), name
        mounts = {mount["name"] for container in spec["containers"] for mount in container["volumeMounts"]}
        claims = {"data"} if name == "pulse" else set()
        assert mounts == {volume["name"] for volume in spec.get("volumes", [])} | claims, name
        for container in spec["containers"]:
            assert {source["configMapRef"]["name"] for source in container["envFrom"]} <= maps, name


def test_egress_of_all_pods_is_restricted_in_production():
    _, documents = manifests("production")
    egress = {policy["metadata"]["name"]: policy["spec"] for policy in of_kind(documents, "NetworkPolicy")
              if policy["spec"]["policyTypes"] == ["Egress"]}
    expression, = egress["egress"]["podSelector"]["matchExpressions"]
    assert (expression["key"], expression["operator"]) == ("app.kubernetes.io/name", "In")
    labels = [template["metadata"]["labels"][expression["key"]] for _, template in pods(documents)]
    assert sorted(labels) == sorted(expression["values"])
    settings, = [document["data"] for document in of_kind(documents, "ConfigMap")]
    servers = [settings["KAFKA_BOOTSTRAP_SERVERS"].split(":")[0], settings["SCHEMA_REGISTRY_URL"].split("/")[2].split(":")[0]]
    namespaces = [peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
                  for rule in egress["egress"]["egress"] for peer in rule["to"]]
    assert {server.split(".")[1] for server in servers} < set(namespaces), (servers, namespaces)
    rule, = egress["pulse-egress"]["egress"]
    assert rule["to"] == [{"podSelector": egress["pulse-egress"]["podSelector"]}]
    assert [port["port"] for port in rule["ports"]] == ["raft"]
    rule, = egress["ui-egress"]["egress"]
    expression, = rule["to"][0]["podSelector"]["matchExpressions"]
    assert (sorted(expression["values"]), rule["ports"]) == (["pulse", "reverb"], [{"protocol": "TCP", "port": "http"}])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_restricted_and_probed_at_the_programs_ports(overlay):
    _, documents = manifests(overlay)
    admin_ports = {"pulse": 8080, "reverb": 8082, "backbeat-ui": 8086}
    # The page is to be reached while Kafka does not answer, since it says so.
    readiness = {"backbeat-ui": "/health"}
    sources = {"backbeat-ui": "backbeat/src/ui.rs"}
    for name, template in pods(documents):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] and not spec["automountServiceAccountToken"]
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
            assert security["capabilities"]["drop"] == ["ALL"]
            assert container["resources"]["requests"]["memory"] and container["resources"]["limits"]["memory"]
        if name in admin_ports:
            container, = spec["containers"]
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            assert ports["http"] == admin_ports[name]
            assert template["metadata"]["annotations"]["prometheus.io/port"] == str(admin_ports[name])
            probes = [container[probe]["httpGet"] for probe in ("livenessProbe", "readinessProbe")]
            assert [(probe["path"], probe["port"]) for probe in probes] == [
                ("/health", "http"), (readiness.get(name, "/ready"), "http")]
    for program, port in admin_ports.items():
        # The default port of the program.
        source = (ROOT / sources.get(program, f"{program}/src/shell/args.rs")).read_text()
        assert re.search(rf"default_value_t = {port}\)]\n    (pub admin_)?port", source), program


def test_pulse_peers_equal_the_pods_of_the_stateful_set():
    for overlay in OVERLAYS:
        _, documents = manifests(overlay)
        pulse, = of_kind(documents, "StatefulSet")
        container, = pulse["spec"]["template"]["spec"]["containers"]
        peers = next(entry["value"] for entry in container["env"] if entry["name"] == "BACKBEAT_PEERS").split(",")
        service = pulse["spec"]["serviceName"]
        expected = [f"pulse-{index}=pulse-{index}.{service}:9000" for index in range(pulse["spec"]["replicas"])]
        assert peers == expected
