# The two commands: `make demo` and `make test`. Both make .venv from the hashed lock and find what they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := scaivaultd plugins contrib_dns tests bench packaging
# Everything that is built bears the time of the last commit, so that it can be built again.
EPOCH = $(or $(SOURCE_DATE_EPOCH),$(shell git log -1 --format=%ct 2>/dev/null),1580601600)
RELEASE ?= bookworm
CONTAINERS ?= $(if $(shell command -v podman),podman,docker)
BENCHES := issuance start reads store http01_listener tlsalpn01_listener

.PHONY: demo test check bench soak clean lock docs man package deb image release venv new-venv packages test-packages bench-packages help
.DEFAULT_GOAL := help

help: ## Show this help
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: venv packages ## From a fresh checkout to a certificate; KEEP=1 leaves it running
	@$(BIN)/scaivaultd demo $(if $(KEEP),--keep)

test: venv packages test-packages ## The whole test suite, with real servers
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

check: venv ## Lint, types, architecture, lock and docs drift
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/architecture tests/test_drift.py

bench: venv packages bench-packages ## Measure against peers; prints figures, decides nothing
	@for bench in $(BENCHES); do echo "== $$bench"; $(BIN)/python bench/$$bench.py || exit 1; done

soak: venv ## Let 500 certificates of a minute live through faults for some minutes
	@$(BIN)/python bench/soak.py

docs: venv man ## Reference pages, man pages, and the site in build/site
	$(BIN)/python -m scaivaultd.reference docs/reference
	$(BIN)/mkdocs build --strict

man: venv
	@$(BIN)/python -m scaivaultd.reference_man build/man

lock: ## Resolve the dependencies anew (needs uv)
	uv pip compile pyproject.toml --extra embedded --extra lexicon --extra otel --group dev --universal --python-version 3.11 \
	    --generate-hashes --no-emit-index-url --no-header --upgrade -o requirements.lock

package: venv ## Wheel and source distribution, with their lock and bill of materials, into dist/
	@SOURCE_DATE_EPOCH=$(EPOCH) $(BIN)/python -m hatchling build -d dist
	@$(BIN)/python packaging/runtime_lock.py --to dist/requirements.txt
	@SOURCE_DATE_EPOCH=$(EPOCH) $(BIN)/python packaging/sbom.py --to dist/scaivaultd.cdx.json

deb: venv man ## Debian package into dist/; RELEASE=trixie for Debian 13
	@SOURCE_DATE_EPOCH=$(EPOCH) $(BIN)/python packaging/build_deb.py --release $(RELEASE) --to dist

image: package ## Container image, with podman or docker
	@$(CONTAINERS) build --file packaging/container/Containerfile --tag scaivaultd:latest .

release: docs ## All that a release has, from a clean tree with its tag; ANYWAY=1 to rehearse
	@$(BIN)/python packaging/release.py --check $(if $(ANYWAY),|| true)
	@rm -rf dist
	@$(MAKE) --no-print-directory package
	@$(MAKE) --no-print-directory deb RELEASE=bookworm
	@$(MAKE) --no-print-directory deb RELEASE=trixie
	@$(BIN)/python packaging/release.py --sums dist
	@cat dist/SHA256SUMS

clean: ## Remove everything that make has made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

venv: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "scaivaultd needs Python 3.11 or later; this is `$(PYTHON) -V 2>&1`. Say: make PYTHON=python3.12 ..." >&2; exit 1; }
	@test -x $(BIN)/pip || $(MAKE) --no-print-directory new-venv
	@echo "installing Python packages from requirements.lock ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# Debian's python3 comes without ensurepip: the package python3-venv brings it.
new-venv:
	@rm -rf $(VENV)
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || .ci/debian-packages python3-venv
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "$(PYTHON) cannot make virtual environments: its package for that is missing (Debian: python3-venv)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

packages:
	@command -v pebble >/dev/null && command -v pebble-challtestsrv >/dev/null || .ci/debian-packages pebble
	@command -v openssl >/dev/null || .ci/debian-packages openssl

# Peers of the issuance bench; without them it says so and goes on.
bench-packages:
	@command -v lego >/dev/null || .ci/debian-packages lego || true

# The tests of dns-01 ask a real BIND; the calls in docs/how-to/use-rest.md are run as they stand.
test-packages:
	@command -v named >/dev/null && command -v dnssec-signzone >/dev/null || .ci/debian-packages bind9
	@command -v curl >/dev/null && command -v jq >/dev/null || .ci/debian-packages curl jq
	@command -v promtool >/dev/null || .ci/debian-packages prometheus
	@command -v certbot >/dev/null && command -v lego >/dev/null || .ci/debian-packages certbot lego
	@command -v groff >/dev/null || .ci/debian-packages groff
	@command -v systemd-socket-activate >/dev/null && command -v pgrep >/dev/null || .ci/debian-packages systemd procps iproute2
