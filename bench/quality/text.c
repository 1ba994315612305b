/* The text of the experiment: documents from files, cleaned, split, without duplicates,
 * shuffled.
 *     text LIST OUT
 * LIST has a line a file: source, tab, path (plain, .gz or .dz).  A dictionary's file is cut
 * into its entries; any other file is one document.  Written: OUT/train.txt, and for each
 * source OUT/valid-SOURCE.txt and OUT/test-SOURCE.txt.  Counts go to standard output.
 *
 * Everything is a function of the texts: a document's split is the hash of its name (1 of 100
 * documents is `valid`, 4 are `test`), its place the hash of its name under another seed.  A
 * paragraph of LEAST_PARAGRAPH bytes or more stands once in all: held-out text is seen first,
 * so that training text loses what is held out.  Shorter ones (`=back`, `Example::`) are syntax
 * of their source and stay. */
#include <ctype.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include <zlib.h>

enum { LEAST_PARAGRAPH = 40, MAX_SOURCES = 16, SET_BITS = 22 };
enum { VALID_PERCENT = 1, TEST_PERCENT = 4 };
enum { SPLIT_SEED = 1, ORDER_SEED = 2 };

typedef enum Split { TEST, VALID, TRAIN, SPLITS } Split; /* as paragraphs are seen */
static const char *const split_names[] = {"test", "valid", "train"};

typedef struct Document {
    char *name, *text;
    int source;
    Split split;
    uint64_t place;
} Document;

static Document *documents;
static size_t document_count, document_space;
static char *sources[MAX_SOURCES];
static int source_count;

static void stop(const char *what, const char *name) {
    fprintf(stderr, "text: %s: %s\n", name, what);
    exit(1);
}

static void *allocate(void *old, size_t bytes) {
    void *memory = realloc(old, bytes);
    if (!memory)
        stop("no memory", "realloc");
    return memory;
}

static char *copy(const char *from, size_t length) {
    char *text = allocate(NULL, length + 1);
    memcpy(text, from, length);
    text[length] = 0;
    return text;
}

static int source_number(const char *name) {
    int i = 0;
    while (i < source_count && strcmp(sources[i], name) != 0)
        i++;
    if (i == MAX_SOURCES)
        stop("too many sources", name);
    if (i == source_count)
        sources[source_count++] = copy(name, strlen(name));
    return i;
}

/* The whole file; a zero byte becomes a space. */
static char *read_text(const char *path) {
    gzFile file = gzopen(path, "rb");
    if (!file)
        stop("cannot be opened", path);
    size_t length = 0, space = 1 << 20;
    char *text = allocate(NULL, space);
    for (int got; (got = gzread(file, text + length, (unsigned)(space - length - 1))) != 0;) {
        if (got < 0)
            stop("cannot be read", path);
        length += (size_t)got;
        if (length + 1 == space)
            text = allocate(text, space *= 2);
    }
    gzclose(file);
    for (size_t i = 0; i < length; i++)
        text[i] = text[i] ? text[i] : ' ';
    text[length] = 0;
    return text;
}

static void add_document(int source, const char *name, size_t name_length, char *text) {
    if (document_count == document_space)
        documents = allocate(documents,
                             (document_space = 2 * document_space + 1024) * sizeof *documents);
    Document *document = &documents[document_count++];
    size_t prefix = strlen(sources[source]) + 1;
    document->name = allocate(NULL, prefix + name_length + 1);
    sprintf(document->name, "%s/%.*s", sources[source], (int)name_length, name);
    document->text = text;
    document->source = source;
    size_t length = strlen(document->name);
    int percent = (int)(XXH64(document->name, length, SPLIT_SEED) % 100);
    document->split = percent < VALID_PERCENT                  ? VALID
                      : percent < VALID_PERCENT + TEST_PERCENT ? TEST
                                                               : TRAIN;
    document->place = XXH64(document->name, length, ORDER_SEED);
}

/* ---- the dictionaries --------------------------------------------------------------- */

/* The length of a tag that says where an article is from, at `at`: [1913 Webster], [PJC +
 * WordNet 1.5]; 0 where there is none.  A tag is made of these words alone. */
static size_t tag_length(const char *at) {
    static const char *const words[] = {"1913 Webster",
                                        "Webster 1913 Suppl",
                                        "Century Dict",
                                        "WordNet",
                                        "sense",
                                        "break",
                                        "PJC",
                                        "RDH",
                                        "AS",
                                        "RP",
                                        "GG",
                                        "CM",
                                        "MW"};
    if (*at != '[')
        return 0;
    const char *start = at++;
    at += *at == '+';
    for (bool any = false; *at; any = true) {
        size_t length = 0;
        for (size_t i = 0; i < sizeof words / sizeof *words && !length; i++)
            if (strncmp(at, words[i], strlen(words[i])) == 0)
                length = strlen(words[i]);
        if (!length && any) /* versions, years, and what joins */
            length = strspn(at, "0123456789.,+ ");
        if (!length)
            return any && *at == ']' ? (size_t)(at - start) + 1 : 0;
        at += length;
    }
    return 0;
}

/* A line without tags and indentation, runs of spaces as one; what is left of it.  -1: the line
 * was a tag and nothing else. */
static long clean_gcide(const char *line, size_t length, char *out) {
    size_t written = 0;
    bool tagged = false;
    for (size_t i = 0; i < length;) {
        size_t tag = tag_length(line + i);
        if (tag && tag <= length - i) {
            tagged = true;
            i += tag;
            continue;
        }
        bool space = line[i] == ' ' || line[i] == '\t';
        if (!space || (written && out[written - 1] != ' '))
            out[written++] = space ? ' ' : line[i];
        i++;
    }
    while (written && out[written - 1] == ' ')
        written--;
    return tagged && !written ? -1 : (long)written;
}

/* An entry begins with a line that is not indented, after an empty line. */
static void add_entries(int source, const char *text, bool gcide) {
    size_t size = strlen(text), used = 0;
    char *entry = allocate(NULL, size + 2); /* the entry at hand, cleaned */
    const char *name = NULL;
    size_t name_length = 0;
    bool after_empty = true;
    for (const char *line = text;;) {
        size_t length = strcspn(line, "\n");
        bool starts = after_empty && length && line[0] != ' ' && line[0] != '\t';
        if ((starts || !*line) && name && strncmp(name, "00-database", 11) != 0)
            add_document(source, name, name_length, copy(entry, used));
        if (!*line)
            break;
        if (starts) {
            name = line;
            name_length = length;
            used = 0;
        }
        long kept = (long)length;
        if (gcide)
            kept = clean_gcide(line, length, entry + used);
        else
            memcpy(entry + used, line, length);
        if (kept >= 0) {
            used += (size_t)kept;
            entry[used++] = '\n';
        }
        after_empty = length == 0;
        line += length + (line[length] == '\n');
    }
    free(entry);
}

static void add_list(const char *path) {
    char *list = read_text(path);
    for (char *line = strtok(list, "\n"); line; line = strtok(NULL, "\n")) {
        char *tab = strchr(line, '\t');
        if (!tab)
            stop("a line is not SOURCE, tab, PATH", path);
        *tab = 0;
        int source = source_number(line);
        char *text = read_text(tab + 1);
        bool gcide = strcmp(line, "gcide") == 0;
        if (gcide || strcmp(line, "foldoc") == 0) {
            add_entries(source, text, gcide);
            free(text);
        } else {
            /* The name is the path below the package's folder, wherever that was unpacked. */
            const char *name = strstr(tab + 1, "/usr/share/");
            name = name ? name : tab + 1;
            add_document(source, name, strlen(name), text);
        }
    }
    free(list);
}

/* ---- paragraphs --------------------------------------------------------------------- */

static uint64_t *seen; /* hashes, open addressing; 0: free */
static size_t seen_count;

/* True the first time. */
static bool is_new(uint64_t hash) {
    size_t mask = ((size_t)1 << SET_BITS) - 1, at = (size_t)hash & mask;
    hash += hash == 0;
    while (seen[at] && seen[at] != hash)
        at = (at + 1) & mask;
    if (seen[at])
        return false;
    if (++seen_count > mask / 4 * 3)
        stop("the table is full: raise SET_BITS", "paragraphs");
    seen[at] = hash;
    return true;
}

static bool is_empty(const char *line, size_t length) {
    size_t i = 0;
    while (i < length && isspace((unsigned char)line[i]))
        i++;
    return i == length;
}

/* The hash of what is not space; two texts that differ in their line breaks alone are one. */
static uint64_t paragraph_hash(const char *at, size_t length, char *scratch, size_t *visible) {
    *visible = 0;
    for (size_t i = 0; i < length; i++)
        if (!isspace((unsigned char)at[i]))
            scratch[(*visible)++] = at[i];
    return XXH64(scratch, *visible, 0);
}

typedef struct Counts {
    long documents, paragraphs, bytes, dropped, dropped_bytes;
} Counts;
static Counts counts[MAX_SOURCES][SPLITS];

static void write_paragraphs(const Document *document, FILE *file, char *scratch) {
    Counts *count = &counts[document->source][document->split];
    bool any = false;
    for (const char *at = document->text; *at;) {
        const char *end = at;
        size_t length;
        while (*end && !is_empty(end, length = strcspn(end, "\n")))
            end += length + (end[length] == '\n');
        size_t bytes = (size_t)(end - at), visible;
        if (bytes) {
            uint64_t hash = paragraph_hash(at, bytes, scratch, &visible);
            if (visible < LEAST_PARAGRAPH || is_new(hash)) {
                fwrite(at, 1, bytes, file);
                fputs(at[bytes - 1] == '\n' ? "\n" : "\n\n", file);
                count->paragraphs++;
                count->bytes += (long)bytes + (at[bytes - 1] == '\n' ? 1 : 2);
                any = true;
            } else {
                count->dropped++;
                count->dropped_bytes += (long)bytes;
            }
        }
        at = end;
        while (*at && is_empty(at, length = strcspn(at, "\n")))
            at += length + (at[length] == '\n');
    }
    count->documents += any;
}

static FILE *create(const char *folder, const char *name, const char *source) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s%s%s.txt", folder, name, *source ? "-" : "", source);
    FILE *file = fopen(path, "wb");
    if (!file)
        stop("cannot be written", path);
    return file;
}

static void finish(FILE *file) {
    if (ferror(file) || fclose(file))
        stop("not all could be written", "output");
}

static int by_place(const void *a, const void *b) {
    const Document *x = a, *y = b;
    if (x->place != y->place)
        return x->place < y->place ? -1 : 1;
    int order = strcmp(x->name, y->name);
    return order ? order : strcmp(x->text, y->text);
}

static void write_split(const char *folder, Split split, int source, char *scratch) {
    FILE *file = create(folder, split_names[split], split == TRAIN ? "" : sources[source]);
    for (size_t i = 0; i < document_count; i++)
        if (documents[i].split == split && (split == TRAIN || documents[i].source == source))
            write_paragraphs(&documents[i], file, scratch);
    finish(file);
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: text LIST OUT\n");
        return 2;
    }
    add_list(argv[1]);
    qsort(documents, document_count, sizeof *documents, by_place);
    seen = calloc((size_t)1 << SET_BITS, sizeof *seen);
    size_t longest = 1;
    for (size_t i = 0; i < document_count; i++) {
        size_t length = strlen(documents[i].text);
        longest = length > longest ? length : longest;
    }
    char *scratch = allocate(NULL, longest);
    if (!seen)
        stop("no memory", "calloc");
    for (Split split = TEST; split < TRAIN; split++)
        for (int source = 0; source < source_count; source++)
            write_split(argv[2], split, source, scratch);
    write_split(argv[2], TRAIN, 0, scratch);
    printf("%-8s %-6s %10s %10s %10s %18s\n", "source", "split", "documents", "paragraphs",
           "bytes", "duplicates dropped");
    for (int source = 0; source < source_count; source++)
        for (Split split = TEST; split < SPLITS; split++) {
            const Counts *c = &counts[source][split];
            printf("%-8s %-6s %10ld %10ld %10ld %8ld, %ld bytes\n", sources[source],
                   split_names[split], c->documents, c->paragraphs, c->bytes, c->dropped,
                   c->dropped_bytes);
        }
    return 0;
}
