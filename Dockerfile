# The images of BACKBEAT. Targets: backbeat-pulse, backbeat-reverb, backbeat-agent-sim, backbeat (the CLI),
# backbeat-console (kafka-console-consumer with an Avro deserializer) and backbeat-connect (a Kafka Connect worker with
# the plugins that the sinks in connect/ need). `make docker` builds them all.

FROM rust:1.95-slim-bookworm AS chef
# Programs link the system's OpenSSL; zlib and zstd are built from source.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates g++ gcc libc6-dev libssl-dev make pkg-config \
    && rm -rf /var/lib/apt/lists/*
RUN cargo install --locked cargo-chef@0.1.78
WORKDIR /build

FROM chef AS plan
COPY . .
RUN cargo chef prepare --recipe-path recipe.json

FROM chef AS build
COPY --from=plan /build/recipe.json .
# The dependencies are a layer of their own, which stays cached until Cargo.lock changes.
RUN cargo chef cook --release --locked --recipe-path recipe.json \
    --package backbeat-pulse --package backbeat-reverb --package backbeat-agent-sim --package backbeat
COPY . .
RUN cargo build --release --locked \
    --package backbeat-pulse --package backbeat-reverb --package backbeat-agent-sim --package backbeat
# Debug information is three quarters of the binaries' size.
WORKDIR /build/target/release
RUN strip --strip-debug pulse reverb agent-sim backbeat

FROM debian:bookworm-slim AS runtime
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libssl3 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 backbeat \
    && useradd --uid 10001 --gid backbeat --no-create-home --home-dir /var/lib/backbeat backbeat \
    && install --directory --owner backbeat --group backbeat /var/lib/backbeat
ARG VERSION=dev
LABEL org.opencontainers.image.title="BACKBEAT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
# A numeric user id: Kubernetes cannot verify runAsNonRoot for a user name.
USER 10001:10001
WORKDIR /var/lib/backbeat
ENV BACKBEAT_ADMIN_HOST=0.0.0.0 BACKBEAT_DATA_DIR=/var/lib/backbeat

FROM runtime AS backbeat-pulse
COPY --from=build /build/target/release/pulse /usr/local/bin/
VOLUME /var/lib/backbeat
EXPOSE 8080 9000
HEALTHCHECK --interval=10s --timeout=6s --start-period=30s CMD ["pulse", "--check", "live"]
ENTRYPOINT ["pulse"]

FROM runtime AS backbeat-reverb
COPY --from=build /build/target/release/reverb /usr/local/bin/
EXPOSE 8082
HEALTHCHECK --interval=10s --timeout=6s --start-period=30s CMD ["reverb", "--check", "live"]
ENTRYPOINT ["reverb"]

FROM runtime AS backbeat-agent-sim
COPY --from=build /build/target/release/agent-sim /usr/local/bin/
ENTRYPOINT ["agent-sim"]

FROM runtime AS backbeat
COPY --from=build /build/target/release/backbeat /usr/local/bin/
ENTRYPOINT ["backbeat"]

FROM debian:bookworm-slim AS maven
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates maven \
    && rm -rf /var/lib/apt/lists/*

FROM maven AS serde
WORKDIR /serde
COPY compose/console/pom.xml compose/console/libs.sha256 ./
# Each file must be the one of the lock, and there must be no other.
RUN mvn --batch-mode --quiet --strict-checksums dependency:copy-dependencies -DoutputDirectory=libs
WORKDIR /serde/libs
# hadolint ignore=DL4006
RUN sha256sum --check --strict --quiet ../libs.sha256 \
    && test "$(find . -type f | wc -l)" = "$(wc -l < ../libs.sha256)"

FROM apache/kafka:4.3.1 AS backbeat-console
COPY --from=serde /serde/libs /opt/backbeat/serde
COPY compose/console/console.sh /usr/local/bin/console
ENTRYPOINT ["console"]

FROM maven AS plugins
COPY connect/plugins /plugins
RUN mvn --batch-mode --quiet --strict-checksums --file /plugins/pom.xml package -Dplugins.dir=/opt/connect/plugins
WORKDIR /opt/connect/plugins
# As above; *-services.jar is packed here.
# hadolint ignore=DL4006
RUN sha256sum --check --strict --quiet /plugins/plugins.sha256 \
    && test "$(find . -type f ! -name '*-services.jar' | wc -l)" = "$(wc -l < /plugins/plugins.sha256)"

FROM apache/kafka:4.3.1 AS backbeat-connect
USER 0
# A new named volume takes the owner of the directory that it is mounted on; the worker must be able to write there.
RUN install -d -o appuser /warehouse /files
# appuser, as a number for the same reason as above.
USER 1000
COPY --from=plugins /opt/connect/plugins /opt/connect/plugins
COPY connect/worker.properties /opt/connect/worker.properties
EXPOSE 8083
ENTRYPOINT ["/opt/kafka/bin/connect-distributed.sh", "/opt/connect/worker.properties"]
