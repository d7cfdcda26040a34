#!/bin/sh
# shellcheck disable=SC2086 # they are several
exec java -XX:+UseSerialGC ${KAFKA_HEAP_OPTS:-} -cp "/opt/kafka/libs/*:${CLASSPATH:-}" org.apache.kafka.tools.consumer.ConsoleConsumer "$@"
