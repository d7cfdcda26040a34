"""Tests of `make docker` and `make docker-push` with a real image registry."""

import json
import re
import socket
import subprocess
import urllib.request

from conftest import ROOT, run, wait_for


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_images_are_built_pushed_and_labelled_with_their_version(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    config = tmp_path / "registry.yml"
    config.write_text(f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {tmp_path}/images\nhttp:\n  addr: {address}\n")
    targets = re.search(r"^TARGETS := (.*)$", (ROOT / "Makefile").read_text(), re.M).group(1).split()
    with subprocess.Popen(["docker-registry", "serve", config], stderr=subprocess.DEVNULL) as registry:
        def get_json(path):
            try:
                with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as response:
                    return json.load(response)
            except OSError:
                return None

        try:
            wait_for("the image registry", 30, lambda: get_json("/v2/") is not None)
            run("make", "docker", "docker-push", f"IMAGES={address}/", "VERSION=0.0.1")
            assert sorted(get_json("/v2/_catalog")["repositories"]) == sorted(targets)
            for target in targets:
                assert get_json(f"/v2/{target}/tags/list")["tags"] == ["0.0.1"]
            labels = json.loads(run("docker", "image", "inspect", f"{address}/backbeat-pulse:0.0.1").stdout)[0]["Config"]["Labels"]
            assert labels["org.opencontainers.image.version"] == "0.0.1"
        finally:
            registry.terminate()
            run("docker", "image", "rm", "--force", *(f"{address}/{target}:0.0.1" for target in targets), check=False)
