#!/bin/bash
# Translates KAFKA_A_B=v to a.b=v, as Apache's image does.
set -eu
settings=/tmp/server.properties
env | grep '^KAFKA_' | grep -vE '^KAFKA_(HEAP_OPTS|OPTS)=' | while IFS='=' read -r key value; do
    key=${key#KAFKA_}
    echo "$(echo "${key//_/.}" | tr '[:upper:]' '[:lower:]')=$value"
done > $settings
java=(java -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp "/opt/kafka/libs/*")
"${java[@]}" kafka.tools.StorageTool format -t "$CLUSTER_ID" -c $settings --ignore-formatted
# shellcheck disable=SC2086 # KAFKA_HEAP_OPTS holds several options
exec "${java[@]}" ${KAFKA_HEAP_OPTS:-} kafka.Kafka $settings
