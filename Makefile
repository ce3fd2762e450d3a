# Adit's commands. Everything else is cargo's: see CONTRIBUTING.md.

.DEFAULT_GOAL := help
.PHONY: help deps run test check bench build-deps loom fuzz-smoke soak mutations image-deps initramfs image vm vm-host
# A build uses every core by itself; two of these side by side would only wait for each other.
.NOTPARALLEL:

export CARGO_TARGET_DIR ?= $(CURDIR)/target
export CARGO_TERM_COLOR ?= auto

# Crates whose concurrency is model-checked. `--cfg loom` builds all below them anew: a target folder
# apart. Their other tests and their unit tests are not meant for it.
loom_tests := $(wildcard appliance/*/tests/loom*.rs)
loom_crates := $(sort $(foreach test,$(loom_tests),$(word 2,$(subst /, ,$(test)))))
fuzz_seconds ?= 15

help:
	@echo 'make run     build, and serve a 1 GiB demonstration volume at tcp://127.0.0.1:4420'
	@echo 'make vm      the appliance in QEMU with four NVMe drives, ready for aditctl; make vm-host a host beside it'
	@echo 'make image   the bootable images, release and dev, in target/image; make initramfs the same tree in seconds'
	@echo 'make test    run every test there is, those in QEMU included'
	@echo 'make check   formatting, lints, licences and advisories, documentation, a short fuzz run'
	@echo 'make bench   run the benchmarks of every crate (wants a quiet machine)'
	@echo 'make deps    install what these need (Debian 12 or 13); run and test do it by themselves'

deps:
	@.ci/deps test

build-deps:
	@.ci/deps build

run: build-deps
	cargo build --release --bin aditd --bin aditctl
	@appliance/target/demo.sh "$(CARGO_TARGET_DIR)/release"

# The appliance: docs/operations/image.md.
image_dir := $(CARGO_TARGET_DIR)/image
uki_bytes_max := 60000000
image_parts = --tools "$$(qemu-tests/guest/make-root)" --programs $(CARGO_TARGET_DIR)/release

image-deps:
	@.ci/deps image
	cargo build --release --bin adit-init --bin adit-agent --bin aditd --bin aditctl --bin initramfs --bin qemu-machine

initramfs: image-deps
	@for profile in release dev; do \
		$(CARGO_TARGET_DIR)/release/initramfs build $(image_parts) --profile $$profile \
			--out $(image_dir)/initramfs || exit 1; \
	done

image: image-deps
	@for profile in release dev; do \
		image/make-image $$profile "$$(qemu-tests/guest/make-root)" $(CARGO_TARGET_DIR)/release $(image_dir) && \
		$(CARGO_TARGET_DIR)/release/initramfs sbom $(image_parts) --profile $$profile \
			>$(image_dir)/adit-$$profile.spdx.json || exit 1; \
	done
	@ls -l $(image_dir)
	@size=$$(stat --format %s $(image_dir)/adit-release.efi); [ "$$size" -lt $(uki_bytes_max) ] || \
		{ echo "image: adit-release.efi takes $$size bytes, $(uki_bytes_max) are the limit" >&2; exit 1; }

vm: initramfs
	@image/vm node $(image_dir)/initramfs $(CARGO_TARGET_DIR)/release

vm-host: image-deps
	@image/vm host $(image_dir)/initramfs $(CARGO_TARGET_DIR)/release

# Binaries and tests in one go: what the tests start is what was just built. The runner's summary is last.
test: export ADIT_QEMU_TESTS ?= require
test: deps
	cargo fmt --all --check
	cargo build --workspace --bins --tests --examples
	cargo test --quiet --workspace --doc
	@$(MAKE) --no-print-directory loom
	@if cargo nextest --version >/dev/null 2>&1; then \
		cargo nextest run --workspace; \
	else \
		cargo test --no-fail-fast --workspace --lib --bins --tests -- --test-threads=1; \
	fi

loom: export RUSTFLAGS := $(RUSTFLAGS) --cfg loom
loom: export CARGO_TARGET_DIR := $(CARGO_TARGET_DIR)/loom
loom:
	cargo test --quiet $(addprefix --package ,$(loom_crates)) --test 'loom*'

check: build-deps
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- --deny warnings
	RUSTDOCFLAGS='--deny warnings' cargo doc --workspace --no-deps --document-private-items
	@if cargo deny --version >/dev/null 2>&1; then \
		cargo deny check; \
	else \
		echo 'check: licences and advisories skipped: cargo install --locked cargo-deny'; \
	fi
	@$(MAKE) --no-print-directory fuzz-smoke

# What a run finds goes to a folder of its own: the committed corpus is only read. Sanitizers are not
# stable yet: a nightly toolchain where there is one, else the pinned one, told to have them all the same.
# Regions lie where the address sanitizer keeps a gap unless it is told not to: each would be looked for
# in vain, for a tenth of a second.
fuzz-smoke: export ASAN_OPTIONS := protect_shadow_gap=0:$(ASAN_OPTIONS)
fuzz-smoke:
	@if ! cargo fuzz --version >/dev/null 2>&1; then \
		echo 'check: fuzz run skipped: it needs cargo install --locked cargo-fuzz'; \
		exit 0; \
	fi; \
	if cargo +nightly --version >/dev/null 2>&1; then \
		fuzz='cargo +nightly fuzz'; \
	else \
		fuzz='env RUSTC_BOOTSTRAP=1 cargo fuzz'; \
	fi; \
	found=$$(mktemp -d) && trap 'rm -rf "$$found"' EXIT; \
	for folder in $(wildcard appliance/*/fuzz); do \
		for target in $$($$fuzz list --fuzz-dir $$folder); do \
			echo "fuzz: $$folder $$target"; \
			mkdir -p "$$found/$$target" "$$folder/corpus/$$target"; \
			$$fuzz run --fuzz-dir $$folder $$target \
				"$$found/$$target" "$$folder/corpus/$$target" -- \
				-max_total_time=$(fuzz_seconds) -verbosity=0 || exit 1; \
		done; \
	done

# Hours of what `make test` does for seconds: random operations on pools, with power cuts.
soak_seeds ?= 20000
soak_cuts ?= 1000
soak: build-deps
	ADIT_SEEDS=$(soak_seeds) ADIT_CUTS=$(soak_cuts) ADIT_CLUSTERS=10000000 cargo test --release -p lvol --test pool -- --nocapture

# Takes mechanisms out one by one and shows that a test fails without each.
mutations: build-deps
	appliance/lvol/tests/mutations/run

bench: build-deps
	cargo bench --workspace --benches
