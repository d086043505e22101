# The one entry point. `make help` lists the targets; scripts/ has the code.
#
# Variables: LINUX=, QEMU= another base (tarball, directory or git tree)
#            BUILD=         where the trees, objects and logs go (build)
#            VFIO_DMABUF_CACHE=  downloads and finished builds
#                                (~/.cache/vfio-dmabuf)
#            JOBS=          compile jobs (all processors)
#            FROM=, SIGNOFF=, TRAILER=  the sender of the series, and what he adds

MAKEFLAGS += --no-print-directory
export LINUX QEMU BUILD JOBS VFIO_DMABUF_CACHE
# What a user says reaches the shell as it is, with blanks, quotes and dollars
override TEST := $(value TEST)
override TREE := $(value TREE)
override FROM := $(value FROM)
override TRAILER := $(value TRAILER)
export TEST TREE FROM TRAILER

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' Makefile | expand -t 14

.PHONY: deps
deps:
	@scripts/deps check

.PHONY: demo
demo: deps ## boot the VM; a process vends edu-plus to 16 others, slice by slice
	@scripts/demo

.PHONY: check
check: deps ## the test command: everything that CI runs, one table at the end
	$(if $(filter i386 arm64 elsewhere,$(STEPS)),@scripts/deps arches)
	@scripts/check $(if $(STEPS),--only $(STEPS))

.PHONY: check-all
check-all: deps ## what make check leaves out: other kernels, devices, architectures
	@scripts/deps arches
	@scripts/check --only nop2pdma bochs amd-iommu virtio-iommu kconfig \
		elsewhere i386 arm64 kunit faults debug

.PHONY: torture
torture: deps ## races, random calls, failing allocations, on kernels that look [ONLY="run..."]
	@scripts/check --only torture $(if $(ONLY),--runs $(ONLY))

.PHONY: bisect
bisect: ## each commit x configuration x test, resumable (hours)
	@scripts/deps bisect
	@scripts/bisect

.PHONY: mutants
mutants: deps ## break the driver in one place after the other: a test must notice
	@scripts/mutants $(if $(ONLY),--only $(ONLY))

.PHONY: coverage
coverage: deps ## which lines of the stack the tests reach, and why not the rest
	@scripts/coverage

.PHONY: bench
bench: deps ## what mappings cost: the base kernel beside ours, in instructions
	@scripts/bench

.PHONY: docs
docs: ## the stack's pages of the kernel's documentation, rendered, no warning
	@scripts/deps docs
	@scripts/docs

.PHONY: tree
tree: deps ## build/linux: base and stack as git commits, to hack on
	@scripts/compose linux $(if $(FORCE),--force)

.PHONY: export
export: ## bring build/linux back to patches/ and the whole files [GROWS=path]
	@scripts/export linux $(if $(GROWS),--grows $(GROWS))

.PHONY: series
series: deps ## the mails for the list, checked [V=n] [FROM="Name <mail>" [SIGNOFF=1]]
	@scripts/check --only patches uapi series
	@scripts/deps docs
	@scripts/docs
	@scripts/bisect --show
	@scripts/series $(if $(V),--version $(V)) \
		$${FROM:+--from "$$FROM"} $(if $(filter 1,$(SIGNOFF)),--signoff) \
		$${TRAILER:+--trailer "$$TRAILER"}

.PHONY: qemu-tree
qemu-tree: deps ## build/qemu: the same for QEMU and edu-plus
	@scripts/compose qemu $(if $(FORCE),--force)

.PHONY: qemu-export
qemu-export: ## bring build/qemu back to qemu/
	@scripts/export qemu $(if $(GROWS),--grows $(GROWS))

.PHONY: shell
shell: deps ## a prompt in the VM, devices bound to vfio-pci [TREE=build/linux]
	@scripts/demo --shell $${TREE:+--tree "$$TREE"}

.PHONY: test
test: deps ## run one test in the VM: TEST="program [args]" [TREE=build/linux]
	$(if $(TEST),,$(error say which: TEST="program [args]"))
	@scripts/demo --run "$$TEST" $${TREE:+--tree "$$TREE"}

.PHONY: gdb
gdb: ## as make test, or make shell without TEST=, waiting for gdb
	@scripts/deps gdb
	@scripts/demo --gdb $${TEST:+--run "$$TEST"} $(if $(TEST),,--shell) \
		$${TREE:+--tree "$$TREE"}

.PHONY: clean
clean: ## remove this clone's objects and logs, not its trees, not the cache
	@scripts/clean
