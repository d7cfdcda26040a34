"""Tests of docker-compose.ha.yml: three brokers, of which one may be lost."""

from conftest import Stack, wait_for
from test_compose import WITHOUT, newest_beat, windows

UNUSED = ("prometheus", "grafana")


def test_cluster_of_three_brokers_survives_the_loss_of_one():
    stack = Stack("backbeat-ha", "docker-compose.yml", "docker-compose.ha.yml", without=(*WITHOUT, *UNUSED))
    assert "kafka-3" in stack.services
    stack.down()
    try:
        stack.up()
        wait_for("a report", 90, windows)
        printed = stack.compose("run", "--rm", "backbeat", "topics", "--replication-factor", "3").stdout
        assert "all 6 topics exist" in printed
        # Any broker leads some partitions.
        stack.compose("kill", "kafka-2")
        lost_at = newest_beat()
        assert lost_at > 0
        wait_for("reports of beats after the loss", 120, lambda: any(w["report"]["from_beat"] > lost_at for w in windows()))
        stack.compose("start", "kafka-2")
        wait_for("kafka-2 to be healthy", 90, lambda: stack.is_healthy("kafka-2"))
        audited = stack.compose("run", "--rm", "backbeat", "audit")
        assert " 0 different, 0 missing, 0 duplicate" in audited.stdout, audited.stdout
    finally:
        print(stack.compose("logs", "--no-color", "--tail", "20", check=False).stdout)
        stack.down()
