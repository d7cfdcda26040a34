#!/bin/sh
# shellcheck disable=SC2086 # KAFKA_HEAP_OPTS holds several options
exec java -XX:+UseSerialGC ${KAFKA_HEAP_OPTS:-} -cp "/opt/kafka/libs/*" kafka.admin.ConfigCommand "$@"
