# The commands of this repository. `make test` and `cargo run --release` are all a newcomer needs.

# A folder beside the checkout with the whole flights file and the yardstick of `make bench`.
# Tests use it when it is there and say so when it is not.
SHARED ?= ../shared
export EDDYLINE_SHARED := $(abspath $(SHARED))

.PHONY: test prepare lint bench openapi run

# Everything that can fail: unit tests, house rules, every endpoint, crash tests, OpenAPI drift.
test: prepare
	cargo test

# Installs what the tests need, and says what will be skipped and why.
prepare:
	@tests/prepare.sh

lint:
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --lib

# Speed and size against the ceiling of this machine; `make bench ONLY="one hundred"` runs a part.
bench:
	loadtest/bench.py $(ONLY)

# The committed OpenAPI document, from the code.
openapi:
	cargo run --quiet -- openapi > openapi/eddyline.json.new
	mv openapi/eddyline.json.new openapi/eddyline.json

run:
	cargo run --release
