# `make` alone prints what there is. ARGS reaches the command: make test ARGS='--test it redis'

SERVICES := deploy/services
ARGS ?=
FUZZ_SECONDS ?= 60

# Recipes with several commands stop at the first that fails.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

.PHONY: help
help:
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: demo
demo: ## The whole way in half a minute, with nothing installed: sensors, an outage, a kill -9, a verdict
	cargo run --release --locked -- demo $(ARGS)

.PHONY: test
test: ## All tests, against a Kafka, Redis and Mosquitto that are started for them and stopped afterwards
	$(SERVICES) run -- cargo test --locked $(ARGS)

# In a mount name space of its own: whatever ends it, nothing stays mounted. Two at once: most of a test is waiting.
.PHONY: fault
fault: ## The fault suite (ten minutes, root): crashes, power cuts, bad disks and clocks; FAULT_ROUNDS, FAULT_SEED
	@((EUID == 0)) || { echo 'make fault needs root and loop devices: it fills, cuts off and damages file systems of its own' >&2; exit 69; }
	$(SERVICES) run -- unshare --mount cargo test --locked --test fault -- --test-threads 2 --nocapture $(ARGS)

.PHONY: boot
boot: ## The units of deploy/systemd under a systemd that is booted for it (two minutes, root): sandbox, restarts, watchdog
	@((EUID == 0)) || { echo 'make boot needs root: it boots a systemd in name spaces of its own' >&2; exit 69; }
	cargo build --locked
	$(SERVICES) run kafka -- tests/boot/run target/debug/fieldpost

.PHONY: packages
packages: ## .deb, .rpm, archive with install.sh and the image's folder, of the static binaries that are in target/arm
	deploy/packages/build $(ARGS)

.PHONY: packages-test
packages-test: ## The packages in a Debian made for it (root): install, upgrade, remove, purge, as an image, under a booted systemd, in a virtual machine
	@((EUID == 0)) || { echo 'make packages-test needs root: it makes a Debian of its own and changes into it' >&2; exit 69; }
	$(SERVICES) run kafka -- tests/packages/run $(ARGS)

.PHONY: lint
lint: ## Format, clippy and documentation, warnings as errors; scripts and workflows when shellcheck, actionlint, zizmor are there
	cargo fmt --check
	cargo clippy --locked --all-targets --test fault -- -D warnings
	cargo clippy --locked --no-default-features --lib --bins -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items
	if command -v shellcheck >/dev/null; then shellcheck $(SERVICES) $(filter-out %/order,$(wildcard deploy/arm/*)) deploy/supply/check deploy/dist/build deploy/packages/build .ci/run tests/boot/run tests/packages/run tests/alerts tests/api-fuzz/run; fi
	if command -v actionlint >/dev/null; then actionlint; fi
	if command -v zizmor >/dev/null; then zizmor --offline --quiet .github/workflows; fi

.PHONY: dist
dist: ## All files of a release into target/dist: binaries, packages, licences, list of parts, sums; ARGS=--rehearse: of what is no release yet
	deploy/dist/build $(ARGS)

.PHONY: supply
supply: ## Licences, sources, duplicates and known weaknesses of every crate; ARGS=--advisories: not without the database
	deploy/supply/check $(ARGS)

.PHONY: fmt
fmt: ## Format the source
	cargo fmt

.PHONY: bench
bench: ## Benchmarks
	$(SERVICES) run -- cargo bench --locked $(ARGS)

# Every other run plays the cases of the seed in .cargo/config.toml.
.PHONY: explore
explore: ## The random tests of the buffer with cases of their own (half an hour); PROPTEST_CASES, PROPTEST_RNG_SEED
	PROPTEST_CASES="$${PROPTEST_CASES:-5000}" PROPTEST_RNG_SEED="$${PROPTEST_RNG_SEED:-$$RANDOM}" cargo test --locked --lib $(ARGS) -- buffer::model::a_ --nocapture

# Without the address sanitizer: the agent's own code has no unsafe, and librdkafka does not link with it.
.PHONY: fuzz
fuzz: ## Each fuzz target for FUZZ_SECONDS (60), on the nightly toolchain
	@cargo fuzz --version >/dev/null 2>&1 || { echo 'cargo-fuzz is missing: cargo install cargo-fuzz --locked' >&2; exit 69; }
	for target in $$(cargo +nightly fuzz list); do \
	  mkdir -p "fuzz/corpus/$$target"; \
	  cargo +nightly fuzz run --sanitizer none "$$target" "fuzz/corpus/$$target" "fuzz/seeds/$$target" -- -max_total_time=$(FUZZ_SECONDS); \
	done

.PHONY: alerts-test
alerts-test: ## Each alert of deploy/prometheus fires when it should, and no other (promtool; Debian's is fetched where it is missing)
	tests/alerts

.PHONY: api-fuzz
api-fuzz: ## Seeded random requests by schemathesis (from PyPI, into target/) against the HTTP interface of an agent
	cargo build --locked
	tests/api-fuzz/run target/debug/fieldpost $(ARGS)

.PHONY: page-test
page-test: ## The page in a real Chromium (two minutes): what it says over an outage, how it looks (target/page), by keyboard
	cargo build --locked
	tests/page/run target/debug/fieldpost $(ARGS)

# The compiler's own counters: fast, and without stopping the processes under test, but written at a process's end, so
# that what only a killed agent ran does not show.
.PHONY: coverage
coverage: ## Line coverage of all tests, the agent's own process included, into target/coverage
	@cargo tarpaulin --version >/dev/null 2>&1 || { echo 'cargo-tarpaulin is missing: cargo install cargo-tarpaulin --locked' >&2; exit 69; }
	$(SERVICES) run -- cargo tarpaulin --locked --engine llvm --follow-exec --skip-clean --timeout 1800 --target-dir target/coverage/build --output-dir target/coverage --out html --out stdout $(ARGS)

.PHONY: arm
arm: ## Static binaries for aarch64, ARMv7, ARMv6 and x86-64 into target/arm, checked: size, a start under qemu, memory
	deploy/arm/build
	deploy/arm/build --minimal armv7-unknown-linux-musleabihf
	deploy/arm/check
	$(SERVICES) run -- deploy/arm/check memory

.PHONY: arm-test
arm-test: ## What the ARM binaries do under qemu (three quarters of an hour): lists of tests on each, a buffer that goes between all
	deploy/arm/test exchange
	$(SERVICES) run -- deploy/arm/test aarch64-unknown-linux-musl --long
	$(SERVICES) run -- deploy/arm/test armv7-unknown-linux-musleabihf --long
	$(SERVICES) run -- deploy/arm/test arm-unknown-linux-musleabihf --core

.PHONY: arm-ci
arm-ci: ## The part of both for every change, a quarter of an hour: aarch64 from its source to a part of the tests
	cargo build --locked
	deploy/arm/build aarch64-unknown-linux-musl
	deploy/arm/check aarch64-unknown-linux-musl
	deploy/arm/test exchange host aarch64-unknown-linux-musl host
	$(SERVICES) run -- deploy/arm/test aarch64-unknown-linux-musl $(or $(ARGS),--short)

.PHONY: services-up
services-up: ## Kafka, Redis and Mosquitto that stay; then: eval "$(deploy/services env)" and cargo test
	$(SERVICES) up

.PHONY: services-down
services-down: ## Stop what services-up started and remove its data
	$(SERVICES) down
