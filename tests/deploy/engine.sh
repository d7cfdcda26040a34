#!/usr/bin/env bash
# engine.sh tools | start | stop: the tools and the Docker engine of `make test-deploy`.
#
# If a Docker engine with compose answers, the tests use it and pull images as usual. Otherwise, on Debian as root, this
# script installs and starts an engine with all its state in target/deploy. That engine may have no image registry within
# reach, so the base images that the tested files name are built locally under the same names: Debian by debootstrap, Rust
# from this machine, Kafka, the schema registry, PostgreSQL and Prometheus from their public packages. See standin/.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$here/../../target/deploy
cache=${XDG_CACHE_HOME:-$HOME/.cache}/backbeat/deploy
mkdir -p "$work" "$cache/bin"
work=$(cd "$work" && pwd)

has_own_engine() { [ ! -e "$work/engine-is-external" ]; }

require() { # command=package ...: installs the packages of missing commands
    local missing=()
    for pair in "$@"; do command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}"); done
    [ ${#missing[@]} -eq 0 ] && return
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "install ${missing[*]}" >&2
        exit 1
    fi
    apt-get update -q
    # Keeps Debian from starting the installed services.
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends "${missing[@]}"
}

go_tool() { # module@version package output ldflags: builds a Go program; go install refuses modules with replacements
    [ -x "$3" ] && return
    command -v go >/dev/null || { echo "install Go, or Docker with compose" >&2; exit 1; }
    local source copy
    source=$(go mod download -json "$1" | python3 -c 'import json, sys; print(json.load(sys.stdin)["Dir"])')
    copy=$(mktemp -d "$work/source.XXXXXX")
    cp -r "$source/." "$copy/"
    chmod -R u+w "$copy"
    (cd "$copy" && go build -trimpath -buildvcs=false -ldflags "-s -w $4" -o "$3" "$2")
    rm -rf "$copy"
}

tools() {
    require docker-registry=docker-registry yamllint=yamllint shellcheck=shellcheck promtool=prometheus amtool=prometheus-alertmanager java=openjdk-17-jre-headless mvn=maven
    if [ ! -x "$work/venv/bin/hadolint" ]; then
        python3 -m venv "$work/venv"
        "$work/venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/requirements.txt"
    fi
    go_tool sigs.k8s.io/kustomize/kustomize/v5@v5.6.0 . "$cache/bin/kustomize" ""
    if docker compose version >/dev/null 2>&1 && docker info >/dev/null 2>&1 && [ -z "${DOCKER_HOST:-}" ]; then
        touch "$work/engine-is-external"
        return
    fi
    rm -f "$work/engine-is-external"
    require dockerd=docker.io iptables=iptables debootstrap=debootstrap
    go_tool github.com/docker/compose/v2@v2.40.3 ./cmd "$cache/bin/docker-compose" "-X github.com/docker/compose/v2/internal.Version=v2.40.3"
    go_tool github.com/docker/buildx@v0.29.1 ./cmd/buildx "$cache/bin/docker-buildx" "-X github.com/docker/buildx/version.Version=v0.29.1"
}

start() {
    has_own_engine || return 0
    local engine=$work/engine
    mkdir -p "$engine/data" "$engine/exec" "$engine/config/cli-plugins"
    cp -u "$cache/bin/docker-compose" "$cache/bin/docker-buildx" "$engine/config/cli-plugins/"
    export DOCKER_HOST=unix://$engine/docker.sock DOCKER_CONFIG=$engine/config DOCKER_BUILDKIT=1
    if ! docker info >/dev/null 2>&1; then
        echo '{}' > "$engine/daemon.json"
        setsid nohup dockerd --config-file "$engine/daemon.json" --data-root "$engine/data" --exec-root "$engine/exec" \
            --pidfile "$engine/dockerd.pid" --host "$DOCKER_HOST" --storage-driver overlay2 > "$engine/dockerd.log" 2>&1 &
        for _ in $(seq 1 60); do docker info >/dev/null 2>&1 && break; sleep 0.5; done
        docker info >/dev/null || { tail -n 20 "$engine/dockerd.log" >&2; exit 1; }
    fi
    base_images
}

has_image() { docker image inspect "$1" >/dev/null 2>&1; }

# A hash of the stand-in's files.
version() { cat "$here/standin/$1"/* | sha256sum | cut -c 1-16; }

has_standin() { # image stand-in: returns true if the image was built from the present files of the stand-in
    [ "$(docker image inspect --format '{{index .Config.Labels "standin"}}' "$1" 2>/dev/null)" = "$(version "$2")" ]
}

build_standin() { # image stand-in context
    docker build --quiet --label "standin=$(version "$2")" --tag "$1" "$3"
}

base_images() {
    local context
    if ! has_image debian:bookworm-slim; then
        if [ ! -f "$cache/debian.tar" ]; then
            debootstrap --variant=minbase bookworm "$work/debian" > "$work/debootstrap.log"
            rm -rf "$work"/debian/var/cache/apt/archives/*.deb "$work"/debian/var/lib/apt/lists/*
            tar -C "$work/debian" -c . > "$cache/debian.tar"
            rm -rf "$work/debian"
        fi
        docker import "$cache/debian.tar" backbeat-standin/debian
        context=$(mktemp -d)
        cp "$here/standin/debian/Dockerfile" "$context"
        # The certificate authorities that this machine trusts in addition to Debian's own.
        mkdir "$context/trusted"
        find /usr/local/share/ca-certificates -name '*.crt' -exec cp {} "$context/trusted/" \;
        docker build --quiet --tag debian:bookworm-slim "$context"
        rm -rf "$context"
    fi
    if ! has_image rust:1.95-slim-bookworm; then
        context=$(mktemp -d)
        mkdir "$context/toolchain"
        cp -a "$(rustc --print sysroot)/bin" "$(rustc --print sysroot)/lib" "$context/toolchain/"
        cp "$here/standin/rust/Dockerfile" "$context"
        docker build --quiet --tag rust:1.95-slim-bookworm "$context"
        rm -rf "$context"
    fi
    if ! has_standin apache/kafka:4.3.1 kafka; then
        context=$(mktemp -d)
        cp "$here"/standin/kafka/* "$here/../../devstack/pom.xml" "$context"
        mvn --batch-mode --quiet --file "$context/pom.xml" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$context/libs"
        build_standin apache/kafka:4.3.1 kafka "$context"
        rm -rf "$context"
    fi
    if ! has_standin apicurio/apicurio-registry:3.0.9 registry; then
        context=$(mktemp -d)
        cp "$here"/standin/registry/* "$context"
        (cd "$context" && mvn --batch-mode --quiet org.apache.maven.plugins:maven-dependency-plugin:2.10:copy \
            -Dartifact=io.apicurio:apicurio-registry-app:3.0.9:tar.gz:all -DoutputDirectory=.)
        build_standin apicurio/apicurio-registry:3.0.9 registry "$context"
        rm -rf "$context"
    fi
    has_standin postgres:15-bookworm postgres || build_standin postgres:15-bookworm postgres "$here/standin/postgres"
    has_standin prom/prometheus:v3.5.0 prometheus || build_standin prom/prometheus:v3.5.0 prometheus "$here/standin/prometheus"
}

stop() {
    has_own_engine || return 0
    local pid
    pid=$(cat "$work/engine/dockerd.pid" 2>/dev/null) || return 0
    kill "$pid" 2>/dev/null || return 0
    for _ in $(seq 1 60); do kill -0 "$pid" 2>/dev/null || return 0; sleep 0.5; done
    echo "the Docker engine did not stop within 30 s" >&2
    exit 1
}

case "${1:-}" in
    tools | start | stop) "$1" ;;
    *) echo "usage: engine.sh tools|start|stop" >&2; exit 2 ;;
esac
