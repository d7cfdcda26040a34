"""What the deployment tests stand on. `make test-deploy` sets it all up: see engine.sh."""

import json
import os
import pathlib
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORK = ROOT / "target" / "deploy"
TOOLS = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "backbeat" / "deploy" / "bin"
# Whether the engine is our own, with stand-ins for images that nobody can pull here.
HAS_STANDINS = not (WORK / "engine-is-theirs").exists()

if HAS_STANDINS:
    os.environ["DOCKER_HOST"] = f"unix://{WORK}/engine/docker.sock"
    os.environ["DOCKER_CONFIG"] = str(WORK / "engine" / "config")
    os.environ["DOCKER_BUILDKIT"] = "1"
os.environ["PATH"] = os.pathsep.join([str(WORK / "venv" / "bin"), str(TOOLS), os.environ["PATH"]])


def run(*command, check=True, cwd=ROOT, timeout=1800, **more):
    """Runs a command, and returns what it did; fails with what it said."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, timeout=timeout, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False, **more)
    if check and done.returncode != 0:
        pytest.fail(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done


def wait_for(what, seconds, look):
    """What `look` returns, once that is true. `what` is waited for: a text, or a function that gives one in the end."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.5)
    pytest.fail(f"waited {seconds} s for {what() if callable(what) else what}")


class Stack:
    """A project of docker compose."""

    def __init__(self, name, *files, without=()):
        self.command = ["docker", "compose", "--project-name", name]
        for file in files:
            self.command += ["--file", ROOT / "compose" / file]
        services = run(*self.command, "config", "--services").stdout.split()
        self.services = [service for service in services if service not in without]

    def compose(self, *args, **more):
        return run(*self.command, *args, **more)

    def up(self):
        # Nothing is pulled where there is nothing to pull from.
        pull = ["--pull", "never"] if HAS_STANDINS else []
        self.compose("up", "--detach", "--build", *pull, "--wait", "--wait-timeout", "300", *self.services)

    def console(self, topic, records):
        """The first records of a topic, as the stock consumer prints them."""
        said = self.compose("run", "--rm", "console", topic, "--from-beginning", "--max-messages", str(records), timeout=180)
        return [json.loads(line) for line in said.stdout.splitlines() if line.startswith("{")]

    def container(self, service):
        return self.compose("ps", "--all", "--quiet", service).stdout.strip()

    def inspect(self, service):
        return json.loads(run("docker", "inspect", self.container(service)).stdout)[0]

    def is_healthy(self, service):
        state = self.inspect(service)["State"]
        return state["Running"] and state["Health"]["Status"] == "healthy"

    def kill(self, service):
        """Kills its process as a crash would: the engine does not start again what it killed itself."""
        pid = self.inspect(service)["State"]["Pid"]
        if HAS_STANDINS:
            os.kill(pid, 9)
        else:
            # The engine may be another machine's.
            run("docker", "run", "--rm", "--privileged", "--pid", "host", "debian:bookworm-slim", "sh", "-c", f"kill -9 {pid}")

    def down(self):
        self.compose("--profile", "*", "down", "--volumes", "--timeout", "20")
