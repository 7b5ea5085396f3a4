# Every command sets up what it needs; all that a machine must have is Python 3.10 to 3.13 and make.
# PYTHON: the interpreter that makes the environments.  VENV: the environment to use instead of the usual one.
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11 python3.10 python; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1 && echo $$p && exit; done; echo python3)
endif

# Paths below are relative, so it does not matter what the project's folder is called.
dev = "$(PYTHON)" tools/in_env.py "$(or $(VENV),.venv)" dev
proof = "$(PYTHON)" tools/in_env.py "$(or $(VENV),.venv-test)" dev
site = "$(PYTHON)" tools/in_env.py "$(or $(VENV),.venv-site)" site
browser = "$(PYTHON)" tools/in_env.py "$(or $(VENV),.venv-test)" browser
ifdef VENV
demo = "$(PYTHON)" tools/in_env.py "$(VENV)" demo
else
demo = "$(PYTHON)" tools/in_env.py --or .venv .venv-demo demo
endif

.PHONY: help demo test test-all test-browser nbdev-test check lab site notebooks sync dev hooks lock sbom clean
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

demo: ## train LESA on real pictures and see what it looks at (installs what it needs first)
	@$(demo) -- lesa demo $(ARGS)

test: ## prove everything: notebooks, tests, files made from the notebooks
	@$(proof) -- python tools/test.py $(ARGS)

test-all: ## the same and the slow tests (installs the package in fresh environments: minutes and gigabytes)
	@$(proof) -- python tools/test.py --slow $(ARGS)

test-browser: ## prove what a reader sees, in Chromium: the course in JupyterLab, the explorer, README on a phone
	@$(browser) -- python tools/test.py --jobs 1 tests/browser $(ARGS)

nbdev-test: ## nbdev's own run of the notebooks, right here; the tree stays as it is
	@before=$$(git status --porcelain); $(proof) -- nbdev_test $(ARGS) && \
	if [ "$$(git status --porcelain)" != "$$before" ]; then git status --short; echo "error: nbdev_test changed the files above" >&2; exit 1; fi

lock: ## pin the development environment, each file with its hash (requirements/)
	@"$(PYTHON)" tools/lock.py

sbom: ## what the pinned environment consists of, as CycloneDX: out/lesa_nb.cdx.json
	@"$(PYTHON)" tools/lock.py --sbom

check: ## what keeps the house in order, without running anything: make check ARGS=layers
	@$(dev) -- python tools/check_house.py $(ARGS)

lab: ## open the course in JupyterLab; saving leaves the notebooks clean
	@$(dev) -- python tools/lab.py $(ARGS)

site: ## the course, the package and a search as pages to read offline: out/site/index.html
	@$(site) -- python tools/make_site.py $(ARGS)

notebooks: ## run the notebooks and save their figures: make notebooks ARGS=nbs/1_layer/03_local.ipynb
	@$(dev) -- python tools/run_notebooks.py $(ARGS)

sync: ## bring package, notebooks and README up to date with the notebooks
	@$(dev) -- python tools/sync.py $(ARGS)

dev: ## make the environment for working on the notebooks (.venv)
	@$(dev)

hooks: dev ## let git merge notebooks, and refuse a commit that forgot `make sync`
	@$(dev) -- python tools/hooks.py

clean: ## remove what was built or run, and the environments for test and demo (.venv stays)
	rm -rf .venv-test .venv-demo .venv-site out build dist *.egg-info
