#!/bin/sh
# shellcheck disable=SC2086 # they are several
exec java -XX:+UseSerialGC -XX:TieredStopAtLevel=1 ${KAFKA_HEAP_OPTS:-} -cp "/opt/kafka/libs/*" org.apache.kafka.connect.cli.ConnectDistributed "$@"
