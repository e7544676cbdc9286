# make demo   sets everything up and runs the policy against a synthetic robot
# make test   sets everything up and passes all tests

SHELL := /bin/bash
export PATH := $(HOME)/.cargo/bin:$(PATH)
# Seconds until the demo stops by itself; 0 runs until Ctrl-C.
DEMO_SECONDS ?= 0

.PHONY: demo replay test lint bench doc setup

setup:
	@./setup.sh --test

demo:
	@./setup.sh
	@cargo build --release --bin policy_node --bin synthetic_robot
	@./launch/demo.sh $(DEMO_SECONDS)

# Passive: libtorch's threads sleep while they wait instead of taking the cores from whatever else runs.
test: setup
	OMP_WAIT_POLICY=passive cargo test --release

lint: setup
	cargo fmt --check
	cargo clippy --release --all-targets -- -D warnings
	cargo clippy --release --all-targets --no-default-features -- -D warnings
	cargo check --release --all-targets --no-default-features --features r2r,r2r-doc-only
	RUSTDOCFLAGS="-D warnings" cargo doc --release --no-deps

# Records the demo's robot once, as a bag and as a dataset, and replays the bag through the tiny checkpoint.
replay:
	@./setup.sh
	@cargo build --release --bin benchmark_replay --bin synthetic_robot
	@test -d target/demo/bag || target/release/synthetic_robot record --bag target/demo/bag --dataset target/demo/dataset
	@target/release/benchmark_replay --params-file config/demo.yaml --params-file config/replay.yaml \
		--bag target/demo/bag --out target/demo/report

bench: setup
	cargo bench
