# colac.  `make` builds build/colac, `make demo` trains on real text, `make test` runs all tests.
# BUILD=dir builds elsewhere; CC=clang and EXTRA=-fsanitize=… work.
BUILD ?= build
CC = gcc
WARN = -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith \
       -Wcast-qual -Wvla -Werror
OPT ?= -O2 -g
CFLAGS = -std=c17 -D_GNU_SOURCE $(OPT) $(WARN) -fopenmp -I. -I$(BUILD) $(EXTRA)
LDLIBS = -ldnnl -ljansson -lxxhash -lz -ldl -lm

FOLDERS = base frontend ir passes codegen runtime driver
SOURCES = $(filter-out driver/main.c,$(wildcard $(FOLDERS:%=%/*.c)))
GENERATED = $(BUILD)/frontend/parser.c $(BUILD)/frontend/lexer.c
OBJECTS = $(SOURCES:%.c=$(BUILD)/%.o) $(GENERATED:.c=.o)
# Texts that the program carries within itself.
EMBEDDED = frontend/std.cola codegen/prelude.h
EMBEDDED_OBJECTS = $(patsubst %,$(BUILD)/%.embed.o,$(wildcard $(EMBEDDED)))
TESTS = $(patsubst tests/%.c,%,$(wildcard tests/test_*.c))

.PHONY: all test clean
all: $(BUILD)/colac

$(BUILD)/colac: $(BUILD)/driver/main.o $(BUILD)/libcolac.a
	$(CC) $(CFLAGS) $(LDFLAGS) -rdynamic -o $@ $^ $(LDLIBS)

$(BUILD)/libcolac.a: $(OBJECTS) $(EMBEDDED_OBJECTS)
	rm -f $@ && ar rcs $@ $^

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/frontend/parser.c: frontend/parser.y
	@mkdir -p $(@D)
	bison -Werror -Wcounterexamples -d -o $@ $<

$(BUILD)/frontend/lexer.c: frontend/lexer.l $(BUILD)/frontend/parser.c
	flex -o $@ $<

$(BUILD)/frontend/lexer.o: WARN = -Wall
$(BUILD)/frontend/parser.o: WARN = -Wall
$(BUILD)/frontend/%.o: $(BUILD)/frontend/%.c
	$(CC) $(CFLAGS) -MMD -MP -c -o $@ $<
$(patsubst %.c,$(BUILD)/%.o,$(wildcard frontend/*.c)): $(BUILD)/frontend/parser.c

# A text becomes `const char embedded_NAME[]` with a NUL after it (NAME: the file's name, . as _).
$(BUILD)/%.embed.o: %
	@mkdir -p $(@D)
	printf '.section .rodata\n.global embedded_%s\nembedded_%s:\n.incbin "%s"\n.byte 0\n.section .note.GNU-stack,"",@progbits\n' \
	  $(subst .,_,$(notdir $<)) $(subst .,_,$(notdir $<)) $< | $(CC) -c -x assembler -o $@ -

$(BUILD)/tests/%: tests/%.c $(BUILD)/libcolac.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -MMD -MP $(LDFLAGS) -rdynamic -o $@ $< $(BUILD)/libcolac.a -lcmocka $(LDLIBS)

clean:
	rm -rf $(BUILD)

-include $(wildcard $(BUILD)/*/*.d)
