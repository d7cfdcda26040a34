# `make run-dev` runs everything on this machine, `make test` tests it. Both do all the set-up that they need.

CARGO ?= cargo
# cargo-deny, built once per user. A debug build is enough: it takes a third of the time to compile.
DENY_VERSION := 0.20.2
DENY_ROOT := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/backbeat/cargo-deny-$(DENY_VERSION)
DENY := $(DENY_ROOT)/bin/cargo-deny

.PHONY: build programs prerequisites test lint run-dev logs status bench chaos simulate docs pictures jar-locks ci fmt docker docker-push test-deploy

# Programs link the system's OpenSSL.
prerequisites:
	@pkg-config --exists 'openssl >= 3' 2>/dev/null || { \
		echo "building needs pkg-config and OpenSSL's headers (Debian: apt-get install pkg-config libssl-dev)"; \
		[ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -qq --yes pkg-config libssl-dev; \
	}

build: prerequisites
	$(CARGO) build --workspace --locked

# What `make run-dev` runs, and no more.
programs: prerequisites
	$(CARGO) build --locked --package backbeat-pulse --package backbeat-reverb --package backbeat-agent-sim --package backbeat

# The end-to-end tests run the programs as users do, so the programs are built first.
test: build
	$(CARGO) test --workspace --locked

lint: prerequisites $(DENY)
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(DENY) --all-features check bans licenses sources

$(DENY):
	$(CARGO) install --quiet --locked --debug cargo-deny@$(DENY_VERSION) --root $(DENY_ROOT)

fmt:
	$(CARGO) fmt --all

# ARGS are flags of `backbeat dev`: make run-dev ARGS="--bpm 120 --agents 100"
run-dev: programs
	target/debug/backbeat dev $(ARGS)

status:
	@target/debug/backbeat status

logs:
	@tail -n 20 -F .backbeat/*.log .backbeat/*/*.log

# ARGS are the benchmarks to run, all by default: make bench ARGS="takeover beats"
bench:
	$(CARGO) build --workspace --release --locked
	target/release/bench $(ARGS)

# Runs KILLS faults on pulse and reverb, from SEED, beside LOAD busy threads, and compares all reports with the oracle's:
# make chaos KILLS=1000 LOAD=2
chaos: export KILLS ?= 50
chaos: export SEED ?= 1
chaos: export LOAD ?= 0
chaos:
	$(CARGO) build --workspace --release --locked
	target/release/chaos

# Runs the simulations with SEEDS seeds from FIRST on: make simulate SEEDS=100000. With SEEDS=1 they print the trace:
# make simulate FIRST=17 SEEDS=1
simulate: export SEEDS ?= 20000
simulate: export FIRST ?= 0
simulate:
	$(CARGO) test --release --locked -p backbeat-pulse -p backbeat-reverb --test simulation -- under_faults --nocapture

# Writes the generated parts of docs/ (cli.md, metrics.md) and docs/openapi/ anew.
docs: export UPDATE_DOCS := 1
docs: build
	$(CARGO) test --locked --package backbeat-tests --test it -- docs:: http_api::

# Takes the pictures in docs/images/ of the page anew.
pictures: export UPDATE_DOCS := 1
pictures: build
	$(CARGO) test --locked --package backbeat-tests --test it -- ui::pages_are_accessible

# Locks what Maven brings, after a version in a pom.xml was changed: the SHA-256 of each file, which devstack and the
# images compare. What Maven packs itself (*-services.jar) is left out.
jar-locks: DIR := $(shell mktemp -d)
jar-locks: MVN := mvn --batch-mode --quiet --strict-checksums
jar-locks: LOCK := find . -type f ! -name '*-services.jar' -printf '%P\n' | LC_ALL=C sort | xargs sha256sum >
jar-locks:
	cp -r devstack/pom.xml compose/console connect/plugins $(DIR)
	cd $(DIR) && $(MVN) dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory=kafka
	cd $(DIR)/console && $(MVN) dependency:copy-dependencies -DoutputDirectory=libs
	cd $(DIR)/plugins && $(MVN) package -Dplugins.dir=$(DIR)/plugins/plugins
	mkdir $(DIR)/registry && cd $(DIR)/registry && $(MVN) org.apache.maven.plugins:maven-dependency-plugin:2.10:copy \
		-Dartifact=io.apicurio:apicurio-registry-app:$$(sed -n 's/^const REGISTRY_VERSION.*"\(.*\)";/\1/p' $(CURDIR)/devstack/src/artifacts.rs):tar.gz:all \
		-DoutputDirectory=.
	cd $(DIR)/kafka && $(LOCK) $(CURDIR)/devstack/kafka.sha256
	cd $(DIR)/registry && $(LOCK) $(CURDIR)/devstack/registry.sha256
	cd $(DIR)/console/libs && $(LOCK) $(CURDIR)/compose/console/libs.sha256
	cd $(DIR)/plugins/plugins && $(LOCK) $(CURDIR)/connect/plugins/plugins.sha256
	rm -r $(DIR)

# Builds the images, named by IMAGES and VERSION: make docker IMAGES=registry.example/ VERSION=0.1.0
VERSION ?= dev
IMAGES ?=
TARGETS := backbeat-pulse backbeat-reverb backbeat-agent-sim backbeat backbeat-console backbeat-connect

docker: export DOCKER_BUILDKIT := 1
docker:
	for target in $(TARGETS); do \
		docker build --target $$target --build-arg VERSION=$(VERSION) --tag $(IMAGES)$$target:$(VERSION) . || exit 1; \
	done

docker-push:
	for target in $(TARGETS); do docker push $(IMAGES)$$target:$(VERSION) || exit 1; done

# Tests the deployment files: builds the images and runs the compose files on a real Docker engine (tests/deploy/engine.sh)
test-deploy:
	tests/deploy/engine.sh tools
	tests/deploy/engine.sh start
	target/deploy/venv/bin/pytest tests/deploy $(ARGS); status=$$?; tests/deploy/engine.sh stop && exit $$status

ci:
	.ci/run
