# make demo   sets everything up and runs the policy against a synthetic robot
# make test   sets everything up and passes all tests

SHELL := /bin/bash
export PATH := $(HOME)/.cargo/bin:$(PATH)
# Seconds until the demo stops by itself; 0 runs until Ctrl-C.
DEMO_SECONDS ?= 0

.PHONY: demo test lint bench doc setup

setup:
	@./setup.sh --test

demo:
	@./setup.sh
	@cargo build --release --bin policy_node --bin synthetic_robot
	@./launch/demo.sh $(DEMO_SECONDS)

test: setup
	cargo test --release

lint: setup
	cargo fmt --check
	cargo clippy --release --all-targets -- -D warnings
	cargo clippy --release --all-targets --no-default-features -- -D warnings
	cargo check --release --all-targets --no-default-features --features r2r,r2r-doc-only
	RUSTDOCFLAGS="-D warnings" cargo doc --release --no-deps

bench: setup
	cargo bench
