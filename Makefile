# make demo    from nothing to samples of a fine-tuned model
# make test    the tests of every module, some four minutes; with another Python: VENV=.venv-3.13 PYTHON=python3.13
# make test-all  all tests, also slow ones, those with many processes, and those that compare with transformers
#              (and torch, which is large); without Horovod, its tests are skipped: make horovod
# make bench   speed and memory, beside those of benchmarks/requirements.txt that are installed; some forty minutes
# make horovod training on many processes, beside Debian's packages of install/horovod-debian.txt; MPI=0: without MPI
# make check-gpu  what a GPU computes, beside the CPU, and how fast: a table to paste; five minutes
# make check-released MODEL=124M  a released model beside what is published of it: a table to paste; DATA=folder for test sets
# make torture faults injected by the thousand (damaged files, odd input, kills), and counts of what came of them; twelve minutes
# make samples the texts of gpt-2-samples, and make curve the picture of the loss, again from the demo's run
# make lint    what must hold before a change is proposed
# make clean   removes what the demo made

PYTHON ?= python3
VENV = .venv
# tensorflow-cpu is half the size; 'tensorflow[and-cuda]' brings what GPUs need.
TENSORFLOW ?= tensorflow
DEMO_STEPS ?= 1000

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
STDLIB = $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
# Without _*.py: _sysconfigdata_….py names folders of the machine that built Python.
CORPUS = $(STDLIB)/[!_]*.py

.NOTPARALLEL:
.PHONY: demo samples curve test test-all torture bench check-gpu check-released lint install horovod clean

demo: install models/demo data/demo.npz
	./train.py --dataset data/demo.npz --model_name demo --run_name demo --seed 1 --steps $(DEMO_STEPS) \
		--batch_size 16 --optimizer adamw --learning_rate 3e-3 --warmup_steps 50 --schedule cosine --clip_norm 1 \
		--val_every 250 --val_batch_size 16 --val_batch_count 16 --sample_every 500 --save_every 500
	./src/evaluate.py perplexity --data "$(STDLIB)/json/*.py" --model_name checkpoint/demo
	./src/generate_unconditional_samples.py --model_name checkpoint/demo --nsamples 3 --temperature 0.8 --top_k 40
	./src/interactive_conditional_samples.py --model_name checkpoint/demo --nsamples 3 --temperature 0.8 --top_k 40 \
		--length 100 --prompt "    def read(self," --include_prefix

OF_DEMO = --model_name checkpoint/demo --seed 1 --length 400
define draw
./src/generate_unconditional_samples.py $(OF_DEMO) $(2) --nsamples 12 --batch_size 12 \
	--output gpt-2-samples/unconditional-$(1).txt
./src/interactive_conditional_samples.py $(OF_DEMO) $(2) --include_prefix \
	--output gpt-2-samples/conditional-$(1).txt < gpt-2-samples/contexts.txt
endef

samples: | install checkpoint/demo/checkpoint
	$(call draw,default)
	$(call draw,temperature-0.7,--temperature 0.7)
	$(call draw,top-k-40,--top_k 40)

curve: $(VENV)/installed-tests | checkpoint/demo/checkpoint
	./src/plot_runs.py demo --output gpt-2-samples/loss.svg

checkpoint/demo/checkpoint:
	$(MAKE) demo

models/demo: | $(VENV)/installed-tokenizers
	./src/create_model.py demo --n_layer 2 --n_head 4 --n_embd 128 --n_ctx 128 --seed 1 \
		--train_vocab 4096 --corpus "$(CORPUS)"

data/demo.npz: | models/demo
	./encode.py "$(CORPUS)" data/demo.npz --model_name demo

install: $(VENV)/installed

PIP = python3 -m pip install --disable-pip-version-check --requirement

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys, ensurepip; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2> /dev/null || { \
		echo "This needs Python 3.10 to 3.13 with venv: apt install python3-venv, or make PYTHON=python3.12 …"; exit 2; }
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	sed 's/^tensorflow>/$(TENSORFLOW)>/' requirements.txt > $(VENV)/requirements.txt
	$(PIP) $(VENV)/requirements.txt
	touch $@

$(VENV)/installed-tokenizers: tests/requirements.txt $(VENV)/installed
	grep '^tokenizers' $< | $(PIP) /dev/stdin --no-deps  # of which only models from its hub need others
	touch $@

$(VENV)/installed-tests: tests/requirements.txt $(VENV)/installed
	$(PIP) $<
	touch $@

$(VENV)/installed-peers: tests/requirements-peers.txt $(VENV)/installed-tests
	$(PIP) $<
	touch $@

horovod: $(VENV)/installed-horovod

$(VENV)/installed-horovod: install/horovod.sh $(VENV)/installed
	./install/horovod.sh
	touch $@

# Where an option is named, what was installed may be of another.
ifneq ($(MPI)$(HOROVOD_GPU_OPERATIONS),)
.PHONY: $(VENV)/installed-horovod
endif

PYTEST = python3 -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test: $(VENV)/installed-tests
	$(PYTEST) -m "not slow and not processes"

test-all: $(VENV)/installed-peers
	$(PYTEST)

# With `pip install atheris`, files are also searched for by what they reach; it has wheels for Linux on x86-64 alone.
torture: $(VENV)/installed-tests
	TF_CPP_MIN_LOG_LEVEL=2 ./tests/torture.py all

bench: install
	./benchmarks/bench.py

check-gpu: install
	./benchmarks/check_gpu.py

MODEL ?= 124M

check-released: install
	./benchmarks/check_released.py --model_name "$(MODEL)" $(if $(DATA),--data "$(DATA)")

lint: $(VENV)/installed-tests
	ruff check .
	mypy
	mypy --platform win32
	hadolint Dockerfile.cpu Dockerfile.gpu
	shellcheck .ci/run install/horovod.sh tests/two_hosts.sh

clean:
	rm -rf models/demo data/demo.npz checkpoint/demo samples/demo
