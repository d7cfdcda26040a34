#!/bin/sh
# shellcheck disable=SC2086 # KAFKA_HEAP_OPTS holds several options
exec java -XX:+UseSerialGC -XX:TieredStopAtLevel=1 ${KAFKA_HEAP_OPTS:-} -cp "/opt/kafka/libs/*" org.apache.kafka.connect.cli.ConnectDistributed "$@"
