# colac.  `make` builds build/colac, `make demo` trains on real text, `make test` runs all tests.
# BUILD=dir builds elsewhere; CC=clang and EXTRA=-fsanitize=… work; V=1 shows the commands.
BUILD ?= build
V ?= 0
SHOW = $(if $(filter 1,$(V)),,@echo "  $(1)" $@;)
CC = gcc
WARN = -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith \
       -Wcast-qual -Wvla -Werror
OPT ?= -O2 -g
CFLAGS = -std=c17 -D_GNU_SOURCE $(OPT) $(WARN) -fopenmp -I. -I$(BUILD) $(EXTRA)
LDLIBS = -ldnnl -ljansson -lxxhash -lz -ldl -lm

FOLDERS = base frontend ir passes codegen runtime cuda driver
SOURCES = $(filter-out driver/main.c,$(wildcard $(FOLDERS:%=%/*.c)))
GENERATED = $(BUILD)/frontend/parser.c $(BUILD)/frontend/lexer.c
OBJECTS = $(SOURCES:%.c=$(BUILD)/%.o) $(GENERATED:.c=.o)
# Texts that the program carries within itself.
EMBEDDED = frontend/std.cola codegen/prelude.h codegen/prelude_c.h cuda/prelude_cuda.h
EMBEDDED_OBJECTS = $(patsubst %,$(BUILD)/%.embed.o,$(wildcard $(EMBEDDED)))
TESTS = $(patsubst tests/%.c,%,$(wildcard tests/test_*.c))

.PHONY: all tests test gpu-test gpu-bench demo format lint asan golden test-long bench docs clean
all: $(BUILD)/colac

# Missing Debian packages are installed (or the line to run is printed) before anything is built.
PACKAGES = $(BUILD)/.packages-build $(if $(findstring clang,$(CC)),$(BUILD)/.packages-clang)
.PRECIOUS: $(BUILD)/.packages-%
$(BUILD)/.packages-%:
	@mkdir -p $(@D)
	@tools/packages $*
	@touch $@

$(BUILD)/colac: $(BUILD)/driver/main.o $(BUILD)/libcolac.a
	$(call SHOW,CC)$(CC) $(CFLAGS) $(LDFLAGS) -rdynamic -o $@ $^ $(LDLIBS)

$(BUILD)/libcolac.a: $(OBJECTS) $(EMBEDDED_OBJECTS)
	$(call SHOW,AR)rm -f $@ && ar qcs $@ $^

$(BUILD)/%.o: %.c | $(PACKAGES)
	@mkdir -p $(@D)
	$(call SHOW,CC)$(CC) $(CFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/frontend/parser.c: frontend/parser.y | $(PACKAGES)
	@mkdir -p $(@D)
	$(call SHOW,BISON)bison -Werror -Wcounterexamples -d -o $@ $<

$(BUILD)/frontend/lexer.c: frontend/lexer.l $(BUILD)/frontend/parser.c
	$(call SHOW,FLEX)flex -o $@ $<

$(BUILD)/frontend/lexer.o: WARN = -Wall
$(BUILD)/frontend/parser.o: WARN = -Wall
$(BUILD)/frontend/%.o: $(BUILD)/frontend/%.c
	$(call SHOW,CC)$(CC) $(CFLAGS) -MMD -MP -c -o $@ $<
$(patsubst %.c,$(BUILD)/%.o,$(wildcard frontend/*.c)): $(BUILD)/frontend/parser.c

# A text becomes `const char embedded_NAME[]` with a NUL after it (NAME: the file's name, . as _).
$(BUILD)/%.embed.o: % | $(PACKAGES)
	@mkdir -p $(@D)
	$(call SHOW,EMBED)printf '.section .rodata\n.global embedded_%s\nembedded_%s:\n.incbin "%s"\n.byte 0\n.section .note.GNU-stack,"",@progbits\n' \
	  $(subst .,_,$(notdir $<)) $(subst .,_,$(notdir $<)) $< | $(CC) -c -x assembler -o $@ -

$(BUILD)/bench/%: bench/%.c $(BUILD)/libcolac.a
	@mkdir -p $(@D)
	$(call SHOW,CC)$(CC) $(CFLAGS) -MMD -MP $(LDFLAGS) -rdynamic -o $@ $< $(BUILD)/libcolac.a $(LDLIBS)

$(BUILD)/tests/%: tests/%.c $(BUILD)/libcolac.a | $(BUILD)/.packages-test
	@mkdir -p $(@D)
	$(call SHOW,CC)$(CC) $(CFLAGS) -MMD -MP $(LDFLAGS) -rdynamic -o $@ $< $(filter %.o,$^) $(BUILD)/libcolac.a -lcmocka $(LDLIBS)

# Tests that run CUDA C on the host; the compiled texts call the emulator that is in the test.
EMULATOR = $(patsubst %.c,$(BUILD)/%.o,$(wildcard tests/emulator/*.c))
$(BUILD)/tests/test_emulator $(BUILD)/tests/test_cuda_kernels: $(EMULATOR)

# A driver, NVRTC and cuBLASLt without a card: LD_LIBRARY_PATH=$(BUILD)/tests/simulated leads colac to it.
SIMULATOR = $(wildcard tests/simulator/*.[ch] tests/emulator/*.[ch]) cuda/api.h cuda/library.def
$(BUILD)/tests/simulated/libcuda.so.1: $(SIMULATOR)
	@mkdir -p $(@D)
	$(call SHOW,CC)$(CC) $(CFLAGS) -fPIC -shared -o $@ $(filter %.c,$^) -ldl
	@ln -sf libcuda.so.1 $(@D)/libnvrtc.so.13 && ln -sf libcuda.so.1 $(@D)/libcublasLt.so.13

tests: $(BUILD)/colac $(BUILD)/tests/simulated/libcuda.so.1 $(TESTS:%=$(BUILD)/tests/%)
test: tests
	@tests/run $(BUILD)

# More of the same: a hundred thousand mutated texts, larger graphs.
test-long: tests
	@COLAC_FUZZ=100000 TEST_TIMEOUT=7200 tests/run $(BUILD)

# The whole suite under AddressSanitizer and UndefinedBehaviorSanitizer.
asan:
	@$(MAKE) BUILD=$(BUILD)-asan OPT="-O1 -g" \
	  EXTRA="-fsanitize=address,undefined -fno-sanitize-recover=undefined" test

# Rewrites the expectations of all golden tests; read the diff before committing it.
golden: tests
	@GOLDEN=write tests/run $(BUILD)
	@git diff --stat -- tests/golden docs

# For a machine with a card (docs/cuda.md): whether it computes what the CPU does; how fast.
gpu-test: $(BUILD)/colac
	@tests/gpu $(BUILD)
gpu-bench: $(BUILD)/colac
	@bench/gpu $(BUILD)

demo: $(BUILD)/colac | $(BUILD)/.packages-demo
	@tools/demo $(BUILD)

docs/ops.md: ir/ops.def ir/ops.c $(BUILD)/colac
	$(BUILD)/colac help ops > $@
docs: docs/ops.md

# Headers are laid out by hand: their lists and aligned comments are tables.
C_FILES = $(wildcard $(FOLDERS:%=%/*.c) tests/*.c tests/emulator/*.c tests/simulator/*.c bench/*.c bench/limit/*.c)
format: | $(BUILD)/.packages-develop
	clang-format -i $(C_FILES)

# What each tool looks for, and why the rest is left out: .clang-tidy; and of cppcheck, autoVariables:
# a frame refers to what lives on the stack of the function that expands it.
LINTED = $(SOURCES) driver/main.c bench/products.c
lint: $(GENERATED) | $(BUILD)/.packages-develop
	cppcheck -q -j 2 --std=c11 --enable=warning,portability,performance --inline-suppr \
	  --suppress=missingIncludeSystem --suppress=autoVariables --error-exitcode=1 -I. $(LINTED)
	printf '%s\n' $(LINTED) | xargs -P 2 -n 8 sh -c \
	  'clang-tidy --quiet "$$@" -- -std=c17 -D_GNU_SOURCE -fopenmp -I. -I$(BUILD)' clang-tidy

# A step beside its products (bench/run), then every product of it, cut into tiles and whole.
bench: $(BUILD)/colac $(BUILD)/bench/products
	@bench/run $(BUILD)
	@$(BUILD)/bench/products

clean:
	rm -rf $(BUILD)

-include $(wildcard $(BUILD)/*/*.d $(BUILD)/*/*/*.d)
