#!/bin/sh
# console TOPIC [flags of kafka-console-consumer]: prints committed records as JSON, one per line. By default
# kafka-console-consumer reads uncommitted, so it would print the records of aborted transactions too.
set -eu
topic=${1:?"name a topic: console barreports [--from-beginning] [--max-messages N]"}
shift
export CLASSPATH="/opt/backbeat/serde/*"
export KAFKA_HEAP_OPTS="${KAFKA_HEAP_OPTS:--Xmx128m}"
exec /opt/kafka/bin/kafka-console-consumer.sh \
    --bootstrap-server "${KAFKA_BOOTSTRAP_SERVERS:-kafka:29092}" \
    --topic "$topic" --isolation-level read_committed \
    --formatter-property value.deserializer=io.apicurio.registry.serde.avro.AvroKafkaDeserializer \
    --formatter-property "value.deserializer.apicurio.registry.url=${APICURIO_REGISTRY_URL:-http://registry:8080/apis/registry/v3}" \
    "$@"
