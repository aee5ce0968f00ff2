/*
 * Holds a kernel against the scalar one, on seeded random data; see tests/test_emulated.py.
 *
 *   kernel_check KERNEL SEED CASES
 *
 * Runs where there is neither Python nor a CPU for it: linked statically, under an emulator. Data,
 * and the array of edges, lie between pages that may not be touched.
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "scan.h"
#include "search.h"

#define MOST 20000
#define BLOCK 64
#define STRIP 4096
#define COUNT(array) (sizeof(array) / sizeof *(array))

/* --- random numbers --------------------------------------------------------------------- */

static uint64_t state;

static uint64_t next_random(void) { /* splitmix64 */
    uint64_t z = state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* 0 to limit - 1. */
static uint64_t below(uint64_t limit) { return next_random() % limit; }

/* --- data ------------------------------------------------------------------------------- */

/* The first and last byte of each class, whole characters, and halves of them. */
#define PIECE(text) {text, sizeof text - 1}
static const struct piece {
    const char *bytes;
    size_t length;
} pieces[] = {
    PIECE("\0"),
    PIECE("\t"),
    PIECE("\n"),
    PIECE("\v"),
    PIECE("\r"),
    PIECE("\x08"),
    PIECE("\x0e"),
    PIECE("\x1f"),
    PIECE(" "),
    PIECE("A"),
    PIECE("~"),
    PIECE("\x7f"),
    PIECE("\x80"),
    PIECE("\xbf"),
    PIECE("\xc0"),
    PIECE("\xdf"),
    PIECE("\xe0"),
    PIECE("\xef"),
    PIECE("\xf0"),
    PIECE("\xff"),
    PIECE("\xc3\xa9"),
    PIECE("\xe2\x82\xac"),
    PIECE("\xe2\x82"),
    PIECE("\xf0\x9f\x90\x8d"),
    PIECE("\xf0\x9f\x90"),
    PIECE("\xff\x80\xbf\x80"),
    PIECE("A\0"),
    PIECE("\0A"),
    PIECE("~\0"),
    PIECE("\0\t"),
    PIECE("\n\0"),
    PIECE("A\0\0\0"),
    PIECE("\0\0\0A"),
    PIECE("~\0\0\0"),
    PIECE("\0\0\0\t"),
    PIECE("A\0\0"),
};

/* As many edges as can be: a character of each encoding, and a byte that is none. */
static const struct piece densest[] = {
    PIECE("A\1"),       PIECE("\xe9\1"),    PIECE("A\0\1"), PIECE("\0A\1"),
    PIECE("A\0\0\0\1"), PIECE("\0\0\0A\1"), PIECE("A\1"),
};

/* count times a piece, as far as there is room; returns where it ends. */
static uint64_t put(unsigned char *data, uint64_t at, uint64_t length, const struct piece *piece,
                    uint64_t count) {
    for (; count && at < length; count--)
        for (size_t i = 0; i < piece->length && at < length; i++)
            data[at++] = (unsigned char)piece->bytes[i];
    return at;
}

static void fill(unsigned char *data, uint64_t length) {
    static const uint64_t counts[] = {1, 1, 1, 2, 3, 5, 8, 17, 33, 64, 65, 200};
    if (below(8) == 0) {
        for (uint64_t i = 0; i < length; i++)
            data[i] = (unsigned char)next_random();
        return;
    }
    uint64_t some = 1 + below(6), chosen[6], at = 0;
    for (uint64_t i = 0; i < some; i++)
        chosen[i] = below(COUNT(pieces));
    /* Rows of one piece, or each piece by chance: many short runs. */
    bool rows = below(2);
    while (at < length)
        at = put(data, at, length, &pieces[chosen[below(some)]],
                 rows ? counts[below(COUNT(counts))] : 1);
}

static uint64_t random_length(void) {
    switch (below(8)) {
    case 0:
        return below(MOST);
    case 1: /* around the ends of strips */
        return (1 + below(4)) * STRIP + below(5) - 2;
    case 2:
    case 3: /* of blocks */
        return (1 + below(20)) * BLOCK + below(5) - 2;
    default:
        return below(4 * BLOCK);
    }
}

/* Memory of at least length bytes between two pages that may not be touched: its end. */
static unsigned char *guarded(uint64_t length) {
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), size = (length + page - 1) / page * page;
    unsigned char *memory =
        mmap(NULL, size + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) ||
        mprotect(memory + page + size, page, PROT_NONE)) {
        perror("guard pages");
        exit(2);
    }
    return memory + page + size;
}

/* --- one case --------------------------------------------------------------------------- */

enum pieces_of_a_stream { WHOLE, SOME, SMALL };

struct question {
    uint64_t number;
    int32_t encoding;
    int32_t whitespace;
    uint64_t min_length;
    uint64_t length;
    uint64_t capacity;
    enum pieces_of_a_stream cut;
};

static void fail(const struct question *question, const char *kernel, const char *what) {
    printf("case %" PRIu64 ", %s: %s\n"
           "encoding %d, whitespace %d, min_length %" PRIu64 ", %" PRIu64
           " bytes, capacity %" PRIu64 ", cut %d\n",
           question->number, kernel, what, question->encoding, question->whitespace,
           question->min_length, question->length, question->capacity, question->cut);
    exit(1);
}

/* All edges that a kernel finds; edges_end is the end of the array that it writes them to. */
static uint64_t find_all(int32_t kernel, const struct question *question, const unsigned char *data,
                         uint32_t *edges_end, uint32_t *all_ret) {
    struct fastdump_finder finder;
    const char *name = fastdump_kernel_name(kernel);
    if (fastdump_finder_begin(&finder, question->encoding, question->whitespace,
                              question->min_length))
        fail(question, name, "fastdump_finder_begin refused");
    uint32_t *edges = edges_end - question->capacity;
    uint64_t at = 0, total = 0;
    for (bool last = false; !last;) {
        uint64_t left = question->length - at, piece = left, count;
        last = question->cut == WHOLE || left < BLOCK || (question->cut == SOME && !below(4));
        if (!last) {
            uint64_t most = left / BLOCK;
            piece = BLOCK * (1 + below(question->cut == SMALL && most > 3 ? 3 : most));
        }
        uint64_t end = at + piece;
        do {
            int64_t taken = fastdump_find(kernel, &finder, data + at, end - at, last, (uint32_t)at,
                                          question->capacity, edges, &count);
            if (taken < 0 || (uint64_t)taken > end - at || (taken == 0 && end > at))
                fail(question, name, "it consumed nothing, or too much");
            if (count > question->capacity || total + count > MOST + BLOCK)
                fail(question, name, "too many edges");
            memcpy(all_ret + total, edges, count * sizeof *edges);
            total += count;
            at += (uint64_t)taken;
        } while (at < end);
    }
    return total;
}

static void compare(int32_t kernel, int32_t scalar, const struct question *question,
                    const unsigned char *data, uint32_t *edges_end) {
    static uint32_t found[MOST + BLOCK], wanted[MOST + BLOCK];
    struct question plain = *question;
    plain.capacity = FASTDUMP_EDGES;
    plain.cut = WHOLE;
    uint64_t right = find_all(scalar, &plain, data, edges_end, wanted);
    uint64_t count = find_all(kernel, question, data, edges_end, found);
    for (uint64_t i = 0; i < right || i < count; i++)
        if (i >= right || i >= count || found[i] != wanted[i]) {
            printf("edge %" PRIu64 " of %" PRIu64 " (scalar: of %" PRIu64 "): %" PRId64
                   ", scalar: %" PRId64 "\n",
                   i, count, right, i < count ? (int64_t)found[i] : -1,
                   i < right ? (int64_t)wanted[i] : -1);
            fail(question, fastdump_kernel_name(kernel),
                 "its edges are not those of the scalar kernel");
        }
}

/* Anchors of 1 to PATTERNS_AT_ONCE patterns, of bytes that are there and under any mask. */
static void compare_anchors(int32_t kernel, int32_t scalar, const struct question *question,
                            const unsigned char *data) {
    static const unsigned char masks[] = {0xff, 0xff, 0xff, 0xdf, 0xf0, 0x0f, 0};
    static uint64_t found[MOST / BLOCK + 1], wanted[MOST / BLOCK + 1];
    struct fastdump_anchor anchors[2 * PATTERNS_AT_ONCE];
    uint64_t count = 1 + below(PATTERNS_AT_ONCE), farthest = 0;
    if (question->length == 0)
        return;
    for (uint64_t i = 0; i < 2 * count; i++) {
        struct fastdump_anchor *anchor = &anchors[i];
        anchor->offset = (uint32_t)below(question->length < 200 ? question->length : 200);
        anchor->mask = masks[below(COUNT(masks))];
        anchor->value = data[below(question->length)] & anchor->mask;
        farthest = anchor->offset > farthest ? anchor->offset : farthest;
    }
    uint64_t blocks = (question->length - farthest) / BLOCK;
    bool any = fastdump_anchors_of(kernel)(anchors, count, data, blocks, found);
    if (any != fastdump_anchors_of(scalar)(anchors, count, data, blocks, wanted) ||
        memcmp(found, wanted, blocks * sizeof *found))
        fail(question, fastdump_kernel_name(kernel),
             "its anchors are not those of the scalar kernel");
}

/* A filter that some windows pass, with any stride. */
static void compare_windows(int32_t kernel, int32_t scalar, const struct question *question,
                            const unsigned char *data) {
    static const uint32_t strides[] = {1, 2, 4};
    static uint64_t found[MOST / BLOCK + 1], wanted[MOST / BLOCK + 1];
    static uint32_t filter[1 << 5];
    if (question->length < 3)
        return;
    for (uint64_t i = 0; i < COUNT(filter); i++)
        filter[i] = (uint32_t)(next_random() & next_random());
    struct fastdump_search search = {.filter = filter,
                                     .hash_bits = 5 + (uint32_t)below(6),
                                     .fold = below(2) ? 0xffffffff : 0xdfdfdfdf,
                                     .stride = strides[below(COUNT(strides))]};
    uint64_t blocks = (question->length - 3) / BLOCK;
    bool any = fastdump_windows_of(kernel)(&search, data, blocks, found);
    if (any != fastdump_windows_of(scalar)(&search, data, blocks, wanted) ||
        memcmp(found, wanted, blocks * sizeof *found))
        fail(question, fastdump_kernel_name(kernel), "its windows are not those of the scalar one");
}

static int32_t kernel_named(const char *name) {
    const char *found;
    for (int32_t i = 0; (found = fastdump_kernel_name(i)) != NULL; i++)
        if (!strcmp(found, name) && fastdump_kernel_supported(i))
            return i;
    printf("there is no kernel %s\n", name);
    exit(1);
}

int main(int argc, char **argv) {
    static const uint64_t min_lengths[] = {1,  2,  3,  4,  5,  6,  7,  8,  9,
                                           10, 16, 17, 32, 33, 63, 64, 65, 100};
    static const uint64_t capacities[] = {
        FASTDUMP_LEAST_EDGES, FASTDUMP_LEAST_EDGES + 1, 200, 1000, STRIP, STRIP + 8, 4300,
        FASTDUMP_EDGES};
    if (argc != 4) {
        fprintf(stderr, "usage: kernel_check KERNEL SEED CASES\n");
        return 2;
    }
    state = strtoull(argv[2], NULL, 10);
    uint64_t cases = strtoull(argv[3], NULL, 10), bytes = 0;
    printf("seed %" PRIu64 "\n", state);
    int32_t kernel = kernel_named(argv[1]), scalar = kernel_named("scalar");
    unsigned char *data_end = guarded(MOST);
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    unsigned char *data_start = data_end - (MOST + page - 1) / page * page;
    uint32_t *edges_end = (uint32_t *)(void *)guarded(FASTDUMP_EDGES * sizeof *edges_end);
    for (uint64_t i = 0; i < cases; i++) {
        struct question question = {
            .number = i,
            .encoding = (int32_t)below(FASTDUMP_UTF8 + 1),
            .whitespace = (int32_t)below(2),
            .min_length = min_lengths[below(COUNT(min_lengths))],
            .length = random_length(),
            .capacity = capacities[below(COUNT(capacities))],
            .cut = (enum pieces_of_a_stream)below(3),
        };
        bool dense = below(8) == 0;
        if (dense) {
            question.min_length = 1;
            if (below(2))
                question.length = STRIP * (1 + below(4));
        }
        unsigned char *data = below(4) ? data_end - question.length : data_start;
        if (dense)
            put(data, 0, question.length, &densest[question.encoding], MOST);
        else
            fill(data, question.length);
        compare(kernel, scalar, &question, data, edges_end);
        compare_anchors(kernel, scalar, &question, data);
        compare_windows(kernel, scalar, &question, data);
        bytes += question.length;
    }
    printf("%" PRIu64 " cases, %" PRIu64 " bytes: the same edges, anchors and windows\n", cases,
           bytes);
    return 0;
}
