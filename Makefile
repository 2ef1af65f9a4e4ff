# Run `make help` for what there is.
SHELL := /bin/bash
GO ?= go
TAGS := nobadger,nomysql,nopgx
TOOLS := $(GO) tool -modfile=test/tools/go.mod
BIN := .bin

.DEFAULT_GOAL := help

help: ## Show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

build: ## Build .bin/caddy-auth, static
	@mkdir -p $(BIN)
	CGO_ENABLED=0 $(GO) build -trimpath -tags $(TAGS) -o $(BIN)/caddy-auth ./cmd/caddy-auth

test: deps ## Install what the tests need (as root, through apt) and run them all
	$(GO) test -timeout 20m ./...

deps: ## Install what the tests need, or say what to install
	@test/deps.sh

race: deps ## The tests under the race detector
	$(GO) test -race ./...

lint: ## gofumpt, go vet, staticcheck, caddy fmt
	@test -z "$$($(TOOLS) gofumpt -l cmd caddymodule internal test upstream examples)" || { $(TOOLS) gofumpt -d cmd caddymodule internal test upstream examples; exit 1; }
	$(GO) vet ./...
	$(TOOLS) staticcheck ./...
	$(GO) run ./cmd/caddy-auth fmt --diff Caddyfile.example > /dev/null

fmt: ## Format everything
	$(TOOLS) gofumpt -w cmd caddymodule internal test upstream examples
	$(GO) run ./cmd/caddy-auth fmt --overwrite Caddyfile.example

fuzz: ## Every fuzz target for FUZZTIME (default 30s)
	test/fuzz.sh $${FUZZTIME:-30s}

bench-micro: ## Go benchmarks and their allocations
	$(GO) test -run '^$$' -bench . -benchmem ./internal/verifier ./internal/jwt ./internal/assertion ./internal/cache ./internal/redact ./caddymodule

bench: deps ## CPU per request against plain Caddy, both loaded at once (some sixteen minutes); writes docs/benchmarks.*
	@mkdir -p $(BIN) && $(GO) build -o $(BIN)/load ./test/load
	$(BIN)/load -write docs

bench-peers: deps ## The same beside forward_auth and nginx auth_request (some four minutes)
	@mkdir -p $(BIN) && $(GO) build -o $(BIN)/load ./test/load
	$(BIN)/load -only peers -write docs

bench-growth: deps ## Cost against keys, identities, revocations, gateways (some ten minutes)
	@mkdir -p $(BIN) && $(GO) build -o $(BIN)/load ./test/load
	$(BIN)/load -only growth -write docs

profile: ## CPU and allocation profiles of a gateway and of plain Caddy under load, in PROFILES (default /tmp/caddy-auth-profiles)
	mkdir -p $${PROFILES:-/tmp/caddy-auth-profiles}
	@mkdir -p $(BIN) && $(GO) build -o $(BIN)/load ./test/load
	$(BIN)/load -only profile -profile $${PROFILES:-/tmp/caddy-auth-profiles}

soak: deps ## The long tests: properties, the bound of a revocation, crashes, then an hour of everything (SOAK_FOR)
	CADDY_AUTH_SOAK=1 $(GO) test -timeout 60m -count=1 -run 'Bound|Crashes' -v ./test/fleet
	CADDY_AUTH_SOAK=1 $(GO) test -timeout 60m -count=1 -run 'Property|BytesPerIdentity' -v ./test/e2e ./test/machine ./internal/cache
	$(GO) test -timeout 4h -count=1 -run 'Soak$$' -v ./test/fleet -soak-for $${SOAK_FOR:-1h}

reliability: deps ## Break Redis and PostgreSQL in every way under traffic; writes the table of docs/reliability.md (some minutes)
	CADDY_AUTH_RELIABILITY=1 $(GO) test -timeout 30m -count=1 -run Outage_Matrix ./test/fleet

mutate: ## Break the revocation protocol, and what attackers tried, in one line at a time: a test must notice (some twenty minutes)
	test/mutate/run.sh

.PHONY: help build test deps race lint fmt fuzz bench-micro bench bench-peers bench-growth profile soak reliability mutate
