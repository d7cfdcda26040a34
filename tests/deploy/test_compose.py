"""Tests of docker-compose.yml as an operator uses it: a real Docker engine, the unmodified Dockerfile, real containers."""

import json
import re
import urllib.error
import urllib.parse
import urllib.request

import pytest
from conftest import HAS_STANDINS, ROOT, Stack, run, wait_for

# No package of Grafana could stand in for its image.
WITHOUT = ("grafana",) if HAS_STANDINS else ()
PULSE_PORTS = {"pulse-1": 8080, "pulse-2": 8081, "pulse-3": 8083}
REVERB_PORTS = {"reverb-1": 8082, "reverb-2": 8084}
UI_PORT = 8086
PROMETHEUS = "http://127.0.0.1:9090"


def get(port, path):
    """Returns the status and the body of a response, or None without one."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return None


def status(port):
    response = get(port, "/api/v1/status")
    return json.loads(response[1]) if response else {}


def leader():
    return next((node for node, port in PULSE_PORTS.items() if status(port).get("role") == "leader"), None)


def newest_beat():
    beats = [status(port).get("beat") for port in PULSE_PORTS.values()]
    return max(beat for beat in [-1, *beats] if beat is not None)


def windows():
    for port in REVERB_PORTS.values():
        response = get(port, "/api/v1/windows?limit=50")
        if response and response[0] == 200:
            return [window for window in json.loads(response[1])["windows"] if window.get("report")]
    return []


def is_ready(port):
    return (get(port, "/ready") or (0, ""))[0] == 200


def exported_metrics():
    """Returns the names of the metrics that the programs export."""
    lines = [line for port in (8080, UI_PORT, *REVERB_PORTS.values()) for line in get(port, "/metrics")[1].splitlines()]
    return {line.split(" ")[2] for line in lines if line.startswith("# TYPE")}


def query(expression):
    with urllib.request.urlopen(f"{PROMETHEUS}/api/v1/query?{urllib.parse.urlencode({'query': expression})}", timeout=10) as response:
        return json.load(response)["data"]["result"]


@pytest.fixture(scope="module")
def stack():
    stack = Stack("backbeat-test", "docker-compose.yml", without=WITHOUT)
    stack.down()
    try:
        stack.up()
        yield stack
    finally:
        print(stack.compose("logs", "--no-color", "--tail", "40", check=False).stdout)
        stack.down()


def test_services_after_up_are_all_ready(stack):
    expected = {"kafka", "registry", "topics", "agent-sim", "prometheus", *PULSE_PORTS, *REVERB_PORTS}
    assert expected <= set(stack.services)
    for port in (*PULSE_PORTS.values(), *REVERB_PORTS.values()):
        assert get(port, "/health")[0] == 200 and is_ready(port)
        assert get(port, "/nowhere")[0] == 404
    assert wait_for("a leader", 30, leader)


def test_page_shows_the_beats_and_the_programs(stack):
    assert is_ready(UI_PORT)
    page = wait_for("a leader on the page", 30, lambda: (lambda text: text if "★ leader" in text else None)(get(UI_PORT, "/")[1]))
    assert re.search(r'id="beat-index">\d+<', page), page
    for name in (*PULSE_PORTS, *REVERB_PORTS):
        assert name in page


def test_console_consumer_reads_beats_and_the_reports_of_the_api(stack):
    wait_for("two reports", 90, lambda: len(windows()) >= 2)
    frames = stack.console("beatframes", 5)
    assert [frame["beat_index"] for frame in frames] == [0, 1, 2, 3, 4]
    report, = stack.console("barreports", 1)
    assert report["from_beat"] == 0 and report["cluster_id"] == "dev"
    from_api = json.loads(get(8082, f"/api/v1/windows/{report['window_id']}")[1])["report"]
    for field in ("window_id", "from_beat", "to_beat", "agents_reporting", "claims", "late_claims", "invalid_claims", "issues"):
        assert report[field] == from_api[field], field


def test_reverb_logs_the_ids_of_finished_windows(stack):
    logs = stack.compose("logs", "--no-color", "reverb-1", "reverb-2").stdout
    assert re.search(r"window finished.* window_id=[0-9a-f]{32} from_beat=\d+", logs), logs[-2000:]


def test_tempo_is_changed_by_the_operators_command_and_not_without_the_token(stack):
    printed = stack.compose("run", "--rm", "backbeat", "tempo", "22").stdout
    assert printed.startswith("22 BPM in bars of 4, from beat "), printed
    request = urllib.request.Request("http://127.0.0.1:8080/api/v1/tempo", method="DELETE")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    assert refused.value.code == 401


def test_containers_are_not_root_and_have_a_read_only_root_filesystem(stack):
    for service in (*PULSE_PORTS, *REVERB_PORTS, "agent-sim"):
        inspected = stack.inspect(service)
        assert inspected["Config"]["User"] == "10001:10001"
        host = inspected["HostConfig"]
        assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"] and host["Memory"] > 0
        assert "no-new-privileges:true" in host["SecurityOpt"]
    for service in ("kafka", "registry", "prometheus"):
        host = stack.inspect(service)["HostConfig"]
        assert host["CapDrop"] == ["ALL"] and "no-new-privileges:true" in host["SecurityOpt"], service
    result = stack.compose("exec", "-T", "pulse-1", "sh", "-c", "id -u; touch /usr/local/bin/x", check=False)
    assert result.stdout.strip() == "10001" and "Read-only file system" in result.stderr


def test_clients_have_a_quota(stack):
    described = stack.compose("exec", "-T", "kafka", "/opt/kafka/bin/kafka-configs.sh", "--bootstrap-server", "kafka:29092",
                              "--describe", "--entity-type", "clients", "--entity-default").stdout
    assert "producer_byte_rate=5242880" in described, described


def test_secrets_are_neither_in_logs_nor_in_process_arguments(stack):
    secret = (ROOT / "compose" / "secrets" / "admin-token").read_text().strip()
    assert secret not in stack.compose("logs", "--no-color").stdout
    for service in PULSE_PORTS:
        assert secret not in run("docker", "top", stack.container(service), "-eo", "pid,args").stdout
        assert secret not in json.dumps(stack.inspect(service)["Config"])


def test_metrics_in_alerts_and_dashboard_are_exported(stack):
    used = set()
    for file in ("prometheus/alerts.yml", "grafana/dashboards/backbeat.json"):
        used |= set(re.findall(r"\bbackbeat_\w+", (ROOT / "compose" / file).read_text()))
    assert len(used) > 25
    # A metric with labels is exported when a label has its first value: a verdict, an objective.
    base = {re.sub(r"_(bucket|sum|count)$", "", name) for name in used}
    wait_for(lambda: f"{base - exported_metrics()} to be exported", 60, lambda: base <= exported_metrics())


def test_prometheus_scrapes_all_targets_and_answers_every_dashboard_query(stack):
    assert "prometheus" in stack.services
    wait_for("five targets to be up", 60, lambda: len([r for r in query("up") if r["value"][1] == "1"]) == 5)
    with urllib.request.urlopen(f"{PROMETHEUS}/api/v1/rules", timeout=10) as response:
        groups = json.load(response)["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 10 and all(rule["health"] in ("ok", "unknown") for rule in rules), rules
    dashboard = json.loads((ROOT / "compose" / "grafana" / "dashboards" / "backbeat.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert len(expressions) > 30
    concrete = [re.sub(r"\$__rate_interval", "1m", re.sub(r"\$(pulse|reverb)\b", ".*", e)) for e in expressions]
    unanswered = set(concrete)

    def all_answered():
        for expression in list(unanswered):
            if query(expression):
                unanswered.discard(expression)
        return not unanswered

    wait_for(lambda: f"series for {unanswered}", 90, all_answered)


def test_connect_profile_writes_reports_to_postgres(stack):
    connect = ["--profile", "connect"]
    pull = ["--pull", "never"] if HAS_STANDINS else []
    # Not with --wait, which fails when a service exits: `sinks` exits after it has created the sinks.
    stack.compose(*connect, "up", "--detach", "--build", *pull, "postgres", "connect", "sinks")

    def sql(query):
        return stack.compose(*connect, "exec", "-T", "postgres", "psql", "-U", "backbeat", "-Atc", query, check=False).stdout.strip()

    wait_for(lambda: stack.compose(*connect, "logs", "--tail", "30", "connect", "sinks").stdout, 180,
             lambda: sql("select count(*) from bar_reports") not in ("", "0"))
    wait_for("rows in a view", 10, lambda: sql("select count(*) from tempo_drift_by_day") not in ("", "0"))
    reported = [window["report"] for window in windows()]
    oldest = min(reported, key=lambda report: report["from_beat"])
    wait_for("the row of the oldest report", 30, lambda: sql(f"select claims from bar_reports where window_id = '{oldest['window_id']}'") == str(oldest["claims"]))

    def sinks_container():
        return json.loads(stack.compose(*connect, "ps", "--all", "--format", "json", "sinks").stdout)

    wait_for("the container sinks to exit", 60, lambda: sinks_container()["State"] == "exited")
    assert sinks_container()["ExitCode"] == 0
    states = stack.compose("run", "--rm", "backbeat", "sinks", "--connect-url", "http://connect:8083", "--output", "json").stdout
    assert sorted(json.loads(line)["name"] for line in states.splitlines()) == ["iceberg", "postgres"], states
    stack.compose(*connect, "rm", "--stop", "--force", "connect", "postgres", "sinks")


def test_containers_that_are_stopped_exit_with_0(stack):
    for service in ("pulse-2", "reverb-2", "agent-sim"):
        stack.compose("stop", service)
        assert stack.inspect(service)["State"]["ExitCode"] == 0, service
        stack.compose("start", service)
    wait_for("pulse-2 and reverb-2 to be healthy", 60, lambda: stack.is_healthy("pulse-2") and stack.is_healthy("reverb-2"))


def test_containers_that_are_killed_restart_and_no_beat_or_report_is_missing(stack):
    node = wait_for("a leader", 30, leader)
    before = newest_beat()
    assert before > 0
    stack.kill(node)
    stack.kill("reverb-1")
    wait_for("another leader", 30, lambda: leader() not in (None, node))
    wait_for("both containers to be healthy", 90, lambda: stack.is_healthy(node) and stack.is_healthy("reverb-1"))
    wait_for("reports of later beats", 120, lambda: any(window["report"]["from_beat"] > before + 4 for window in windows()))
    frames = stack.console("beatframes", before + 4)
    assert [frame["beat_index"] for frame in frames] == list(range(before + 4))
    audited = stack.compose("run", "--rm", "backbeat", "audit")
    assert " 0 different, 0 missing, 0 duplicate" in audited.stdout, audited.stdout


def test_down_leaves_no_container_volume_or_network():
    stack = Stack("backbeat-test", "docker-compose.yml", without=WITHOUT)
    stack.down()
    for kind in ("container", "volume", "network"):
        every = ["--all"] if kind == "container" else []
        left = run("docker", kind, "ls", *every, "--quiet", "--filter", "label=com.docker.compose.project=backbeat-test")
        assert left.stdout == "", kind
