"""Tests of docker-compose.swarm.yml on a swarm of one node."""

import time

import pytest
import yaml
from conftest import ROOT, Stack, run, wait_for
from test_compose import PULSE_PORTS, is_ready, newest_beat, windows

STACK = "backbeat-swarm"
SECRETS = {"backbeat-raft-secret": "a-secret-of-the-swarm-test", "backbeat-admin-token": "a-token-of-the-swarm-test", "backbeat-kafka": "# nothing\n"}


def stack_file():
    """Returns the shipped file, changed for a swarm of one node: Kafka and the schema registry are part of the stack, there
    are no placement constraints, and names resolve to containers and ports are the host's, because this kernel may lack IPVS."""
    compose = yaml.safe_load((ROOT / "compose" / "docker-compose.yml").read_text())
    stack = yaml.safe_load((ROOT / "compose" / "docker-compose.swarm.yml").read_text())
    for service in stack["services"].values():
        service["deploy"].pop("placement")
        service["deploy"]["endpoint_mode"] = "dnsrr"
        for port in service["ports"]:
            port["mode"] = "host"
    # Two tasks cannot publish the same port of one host.
    stack["services"]["reverb"]["deploy"]["replicas"] = 1
    stack["services"]["reverb"]["deploy"]["update_config"]["order"] = "stop-first"
    for name in ("kafka", "registry", "topics"):
        source = compose["services"][name]
        service = {key: source[key] for key in ("image", "command", "hostname") if key in source}
        service["environment"] = {**source["environment"], "BACKBEAT_CLUSTER": "swarm"}
        service["networks"] = ["backbeat"]
        service["deploy"] = {"endpoint_mode": "dnsrr", "restart_policy": {"condition": "on-failure", "delay": "2s"}}
        stack["services"][name] = service
    return yaml.safe_dump(stack)


def replicas():
    """Returns for each service the number of running tasks and the number of desired ones."""
    listed = run("docker", "stack", "services", STACK, "--format", "{{.Name}} {{.Replicas}}").stdout
    return {name.removeprefix(f"{STACK}_"): tuple(count.split(" ")[0].split("/")) for name, count in
            (line.split(" ", 1) for line in listed.splitlines())}


@pytest.fixture
def swarm(tmp_path):
    Stack("backbeat-test", "docker-compose.yml").compose("build", "topics", "pulse-1", "reverb-1")
    run("docker", "swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1:2377")
    try:
        for secret, content in SECRETS.items():
            run("docker", "secret", "create", secret, "-", input=content)
        file = tmp_path / "stack.yml"
        file.write_text(stack_file())
        environment = {"KAFKA_BOOTSTRAP_SERVERS": "kafka:29092", "SCHEMA_REGISTRY_URL": "http://registry:8080/apis/ccompat/v7",
                       "BACKBEAT_BPM": "24", "BACKBEAT_BAR": "4", "BACKBEAT_CLUSTER": "swarm"}
        # `docker stack deploy` interpolates variables from its own environment.
        assignments = [f"{name}={value}" for name, value in environment.items()]
        run("env", *assignments, "docker", "stack", "deploy", "--resolve-image", "never", "--compose-file", file, STACK)
        yield
    finally:
        print(run("docker", "stack", "ps", "--no-trunc", STACK, check=False).stdout)
        run("docker", "stack", "rm", STACK, check=False)
        time.sleep(5)
        run("docker", "swarm", "leave", "--force", check=False)
        wait_for("the containers to be removed", 60, lambda: not run(
            "docker", "ps", "--quiet", "--filter", f"label=com.docker.stack.namespace={STACK}").stdout)
        # Leaving a swarm does not remove its volumes.
        volumes = run("docker", "volume", "ls", "--quiet", "--filter", f"label=com.docker.stack.namespace={STACK}").stdout.split()
        if volumes:
            run("docker", "volume", "rm", *volumes)


def test_swarm_updated_node_by_node_continues_beats_and_reports(swarm):
    services = {*PULSE_PORTS, "reverb", "kafka", "registry"}
    wait_for("every service to run", 180, lambda: all(replicas().get(name, ("0", "1"))[0] == "1" for name in services))
    wait_for("every program to be ready", 120, lambda: all(
        is_ready(port) for port in (*PULSE_PORTS.values(), 8082)))

    def newest_report():
        return max((window["from_beat"] for window in windows()), default=-1)

    wait_for("a report", 90, lambda: newest_report() >= 0)
    before = newest_beat()
    assert before >= 0
    for node in PULSE_PORTS:
        run("docker", "service", "update", "--force", "--detach=false", f"{STACK}_{node}", timeout=180)
        wait_for(f"{node} to be ready", 60, lambda node=node: is_ready(PULSE_PORTS[node]))
    wait_for("beats after the update", 60, lambda: newest_beat() > before + 4)
    after = newest_beat()
    wait_for("reports of beats after the update", 90, lambda: newest_report() > after)
