# make demo      the whole tool on rendered scenes, in a few minutes
# make test      the fast tests
# make lint      ruff and mypy
# make test-browser  the page in a real Chromium, installed with apt-get where it is missing
# make test-slow the tests that take minutes, a fresh clone's two commands among them
# make bench     loading and reading beside their peers; PHOTOS=folder of JPEGs, ANNOTATIONS=COCO's captions JSON
# make bench-recipes  whether every recipe learns, from scratch at full size; about an hour on two cores
# make bench-training  steps, chunks, frozen features and ranks beside their peers; DATA=path/to/flickr8k
# make bench-distillation  what a teacher costs, how exact stored features are, their size; DATA=path/to/flickr8k
# make bench-evaluation  exact ranks beside CLIP_benchmark's recall: speed, memory, equality
# make bench-ablations  what the five systems claim, one change at a time; hours; DATA=path/to/flickr8k WEIGHTS=FILE
# make bench-embedding  pictures and texts a second, start, memory, size of the installation; DATA=path/to/flickr8k
# make bench-search  a library beside cliplet embed, a million vectors beside FAISS, the service under load;
#                  DATA=path/to/flickr8k MODEL=exported model folder
# make bench-gpu   steps of three recipes on a GPU: speed, share of its peak, memory
# Each sets up .venv first, once; nothing is installed again until pyproject.toml or constraints.txt change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint format bench bench-recipes bench-training bench-distillation bench-evaluation \
  bench-ablations bench-embedding bench-search bench-gpu setup test-browser

demo: $(VENV)/.train
	$(BIN)/cliplet demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow -o faulthandler_timeout=3600

test-browser: $(VENV)/.dev
	@command -v chromium >/dev/null || (apt-get update -q && apt-get install -y -q chromium) || \
	  { echo "the page's tests need Chromium; on Debian and Ubuntu: apt install chromium"; exit 1; }
	$(BIN)/python -m pytest -m browser

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	@test -n "$(PHOTOS)" -a -n "$(ANNOTATIONS)" || \
	  { echo "make bench PHOTOS=folder/of/jpegs ANNOTATIONS=path/to/captions_val2017.json"; exit 1; }
	$(BIN)/python benchmarks/data.py load $(PHOTOS)
	$(BIN)/python benchmarks/data.py read $(ANNOTATIONS)

bench-recipes: $(VENV)/.dev
	@test -n "$(DATA)" || { echo "name a data set: make bench-recipes DATA=path/to/flickr8k"; exit 1; }
	$(BIN)/python benchmarks/recipes.py $(DATA)

bench-training: $(VENV)/.dev
	@test -n "$(DATA)" || { echo "name a data set: make bench-training DATA=path/to/flickr8k"; exit 1; }
	for part in step chunks heads ranks; do $(BIN)/python benchmarks/training.py $$part --data $(DATA) || exit 1; done

bench-distillation: $(VENV)/.dev
	@test -n "$(DATA)" || { echo "name a data set: make bench-distillation DATA=path/to/flickr8k"; exit 1; }
	for part in step exact size; do $(BIN)/python benchmarks/distillation.py $$part --data $(DATA) || exit 1; done

bench-evaluation: $(VENV)/.dev
	$(BIN)/python benchmarks/evaluation.py

bench-ablations: $(VENV)/.dev
	@test -n "$(DATA)" -a -n "$(WEIGHTS)" || \
	  { echo "make bench-ablations DATA=path/to/flickr8k WEIGHTS=mobilenetv2_100.safetensors"; exit 1; }
	$(BIN)/python benchmarks/ablations.py $(DATA) --weights $(WEIGHTS)

bench-embedding: $(VENV)/.dev
	@test -n "$(DATA)" || { echo "name a data set: make bench-embedding DATA=path/to/flickr8k"; exit 1; }
	$(BIN)/python benchmarks/embedding.py --data $(DATA)

bench-search: $(VENV)/.dev
	@test -n "$(DATA)" -a -n "$(MODEL)" || { echo "make bench-search DATA=path/to/flickr8k MODEL=exported/model"; exit 1; }
	mkdir -p runs/bench-search
	$(BIN)/python benchmarks/search.py index --data $(DATA) --model $(MODEL)
	$(BIN)/python benchmarks/search.py start --library runs/bench-search/bench.library
	$(BIN)/python benchmarks/search.py fits --data $(DATA) --model $(MODEL)
	$(BIN)/cliplet embed $(DATA)/images -m $(MODEL) -o runs/bench-search/images.npy
	cut -f2 $(DATA)/Flickr8k.token.txt > runs/bench-search/captions.txt
	$(BIN)/cliplet embed --texts runs/bench-search/captions.txt -m $(MODEL) -o runs/bench-search/texts.npy
	$(BIN)/python benchmarks/search.py vectors --images runs/bench-search/images.npy --texts runs/bench-search/texts.npy
	$(BIN)/python benchmarks/service.py --library runs/bench-search/bench.library

bench-gpu: $(VENV)/.dev
	$(BIN)/python benchmarks/gpu.py

setup: $(VENV)/.dev

# What is enough to train; the development tools come on top of it only where they are asked for.
$(VENV)/.train: $(VENV)/.python
	$(BIN)/python -m pip install -c constraints.txt -e '.[train]'
	touch $@

$(VENV)/.dev: $(VENV)/.python
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $(VENV)/.train $@

$(VENV)/.python: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "cliplet needs Python 3.10 or newer; name one with: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { echo "this Python cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -q 'pip>=23'
	touch $@
