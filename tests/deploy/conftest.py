"""Helpers of the deployment tests. `make test-deploy` sets up their tools and the Docker engine: see engine.sh."""

import json
import os
import pathlib
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORK = ROOT / "target" / "deploy"
TOOLS = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "backbeat" / "deploy" / "bin"
# True if engine.sh started the Docker engine; its base images are then stand-ins for images that may be out of reach.
HAS_STANDINS = not (WORK / "engine-is-external").exists()

if HAS_STANDINS:
    os.environ["DOCKER_HOST"] = f"unix://{WORK}/engine/docker.sock"
    os.environ["DOCKER_CONFIG"] = str(WORK / "engine" / "config")
    os.environ["DOCKER_BUILDKIT"] = "1"
os.environ["PATH"] = os.pathsep.join([str(WORK / "venv" / "bin"), str(TOOLS), os.environ["PATH"]])


def run(*command, check=True, cwd=ROOT, timeout=1800, **options):
    """Runs a command and returns its result; with `check`, fails the test with its output if it exits with an error."""
    result = subprocess.run([str(part) for part in command], cwd=cwd, timeout=timeout, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False, **options)
    if check and result.returncode != 0:
        pytest.fail(f"{' '.join(map(str, command))} exited with {result.returncode}:\n"
                    f"{result.stdout[-4000:]}\n{result.stderr[-4000:]}")
    return result


def wait_for(description, seconds, poll):
    """Returns the first true value of `poll`; fails the test after `seconds`. `description` is a text, or a function that
    returns one when the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = poll()
        if value:
            return value
        time.sleep(0.5)
    pytest.fail(f"waited {seconds} s for {description() if callable(description) else description}")


class Stack:
    """A docker compose project."""

    def __init__(self, name, *files, without=()):
        self.command = ["docker", "compose", "--project-name", name]
        for file in files:
            self.command += ["--file", ROOT / "compose" / file]
        services = run(*self.command, "config", "--services").stdout.split()
        self.services = [service for service in services if service not in without]

    def compose(self, *args, **options):
        return run(*self.command, *args, **options)

    def up(self):
        # The stand-ins exist locally only; an image registry may be out of reach.
        pull = ["--pull", "never"] if HAS_STANDINS else []
        self.compose("up", "--detach", "--build", *pull, "--wait", "--wait-timeout", "300", *self.services)

    def console(self, topic, records):
        """Returns the first records of a topic, as kafka-console-consumer prints them."""
        result = self.compose("run", "--rm", "console", topic, "--from-beginning", "--max-messages", str(records), timeout=180)
        return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]

    def container(self, service):
        return self.compose("ps", "--all", "--quiet", service).stdout.strip()

    def inspect(self, service):
        return json.loads(run("docker", "inspect", self.container(service)).stdout)[0]

    def is_healthy(self, service):
        state = self.inspect(service)["State"]
        return state["Running"] and state["Health"]["Status"] == "healthy"

    def kill(self, service):
        """Kills the process of a container, as a crash would: the engine does not restart a container that it killed itself."""
        pid = self.inspect(service)["State"]["Pid"]
        if HAS_STANDINS:
            os.kill(pid, 9)
        else:
            # The engine may run on another machine.
            run("docker", "run", "--rm", "--privileged", "--pid", "host", "debian:bookworm-slim", "sh", "-c", f"kill -9 {pid}")

    def down(self):
        self.compose("--profile", "*", "down", "--volumes", "--timeout", "20")
