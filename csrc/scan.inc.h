/*
 * The vector loop that finds strings, once; included by scan_avx2.c, scan_avx512.c and scan_neon.c,
 * which bring what differs:
 *
 *   TARGET           the attribute of every function
 *   FIND             the name of the kernel
 *   ROOM             edges that emit() may write behind the last one that counts
 *   block            64 bytes in registers; load() reads them
 *   printable(), zeros(), below()
 *                    64 bits, one a byte: printable characters; zero bytes; less than a signed
 * limit emit()           the positions of the bits of a word, into an array
 *
 * Each block of 64 bytes becomes a word `units` with a bit at the last byte of each printable
 * character ("unit") of the encoding. Runs of n units are found by doubling: with
 * b1 = units, b2 = b1 & b1 << 1 says that two ended here, b4 = b2 & b2 << 2 that four did; n is
 * reached by steps k -> min(2k, n). The edges of the last word, b ^ b << 1, are where a run has
 * reached n and, one behind its last unit, where it ended. Shifts look behind, never ahead, so that
 * what a block needs of those before it is one word for each step: a run crosses blocks and chunks
 * for nothing. Data without runs costs the loads and the shifts. In encodings of 2 or 4
 * bytes a character all shifts are by as much, and the alignments share the words: where a
 * unit ends none of another alignment can (a character is not zero, its other bytes are), so the
 * edges of two runs never cross.
 *
 * UTF-8 needs to look ahead 3 bytes from the first byte of a character: its words are 3 late.
 */
#include <errno.h>
#include <string.h>

#include "scan.h"

#define INLINE TARGET static inline __attribute__((always_inline))
#define LATE_UTF8 3

/* What is carried from block to block, in registers during the loop. */
struct words {
    uint64_t carried[6];
    uint64_t runs;
    uint64_t history[8];
};

/* now << count, the bits that come in from the block before. Shifting by 0 is allowed. */
INLINE uint64_t behind(uint64_t now, uint64_t before, uint32_t count) {
    return now << count | before >> 1 >> (63 - count);
}

/* The same for a word that is carried: *before becomes now. */
INLINE uint64_t carry(uint64_t now, uint64_t *before, uint32_t count) {
    uint64_t word = behind(now, *before, count);
    *before = now;
    return word;
}

/* Bytes that belong to a printable character in UTF-8, 3 late; see is_utf8 in scan_scalar.c. */
INLINE uint64_t utf8(struct words *w, block b, uint64_t valid, bool whitespace) {
    uint64_t next = below(b, -64), high = below(b, 0) & valid; /* continuation bytes */
    uint64_t lead4 = high & ~below(b, -16), lead3 = (high & ~below(b, -32)) ^ lead4;
    next &= valid;
    uint64_t lead2 = high & ~next & ~lead3 & ~lead4;
    uint64_t plain = printable(b, FASTDUMP_7BIT, whitespace) & valid;
    uint64_t next1 = behind(next, w->history[0], 1), next2 = behind(next, w->history[0], 2);
    w->history[0] = next;
    uint64_t whole4 = carry(lead4, &w->history[1], 3) & next2 & next1 & next;
    uint64_t whole34 = (carry(lead3, &w->history[2], 3) & next2 & next1) | whole4;
    uint64_t whole = (carry(lead2, &w->history[3], 3) & next2) | whole34;
    return carry(plain, &w->history[4], 3) | whole | carry(whole, &w->history[5], 1) |
           carry(whole34, &w->history[6], 2) | carry(whole4, &w->history[7], 3);
}

/* A bit at the last byte of each unit. */
INLINE uint64_t units(struct words *w, block b, uint64_t valid, int encoding, bool whitespace) {
    if (encoding == FASTDUMP_UTF8)
        return utf8(w, b, valid, whitespace);
    uint64_t plain = printable(b, encoding, whitespace) & valid;
    if (encoding == FASTDUMP_7BIT || encoding == FASTDUMP_8BIT)
        return plain;
    uint64_t zero = zeros(b) & valid;
    uint64_t *plain0 = &w->history[0], *zero0 = &w->history[1];
    uint64_t word;
    switch (encoding) {
    case FASTDUMP_UTF16LE:
        word = zero & behind(plain, *plain0, 1);
        break;
    case FASTDUMP_UTF16BE:
        word = plain & behind(zero, *zero0, 1);
        break;
    case FASTDUMP_UTF32LE:
        word = zero & behind(zero, *zero0, 1) & behind(zero, *zero0, 2) & behind(plain, *plain0, 3);
        break;
    default:
        word = plain & behind(zero, *zero0, 1) & behind(zero, *zero0, 2) & behind(zero, *zero0, 3);
    }
    *plain0 = plain;
    *zero0 = zero;
    return word;
}

/* The edges of runs; steps doublings. */
INLINE uint64_t edges_of(struct words *w, uint64_t word, const uint32_t *shifts, uint32_t width,
                         int steps) {
    for (int i = 0; i < steps; i++)
        word &= carry(word, &w->carried[i], shifts[i]);
    return word ^ carry(word, &w->runs, width);
}

INLINE uint64_t find_in(struct fastdump_finder *finder, const unsigned char *data, uint64_t length,
                        bool last, uint32_t base, uint64_t capacity, uint32_t *edges_ret,
                        uint64_t *count_ret, int encoding, bool whitespace, uint32_t width,
                        int steps, const uint32_t *shifts) {
    struct words w;
    memcpy(w.carried, finder->carried, sizeof w.carried);
    memcpy(w.history, finder->history, sizeof w.history);
    w.runs = finder->runs;
    uint64_t at = 0, count = 0;
    /* Four blocks at a time: most of them have no edge, one branch passes over all. */
    while (length - at >= 256 + (uint64_t)last && count + 256 + ROOM <= capacity) {
        __builtin_prefetch(data + at + 2048);
        __builtin_prefetch(data + at + 2112);
        __builtin_prefetch(data + at + 2176);
        __builtin_prefetch(data + at + 2240);
        uint64_t found[4], any = 0;
        for (int i = 0; i < 4; i++) {
            uint64_t word = units(&w, load(data + at + i * 64), ~0ull, encoding, whitespace);
            found[i] = edges_of(&w, word, shifts, width, steps);
            any |= found[i];
        }
        if (any)
            for (int i = 0; i < 4; i++)
                count += emit(edges_ret + count, found[i], base + (uint32_t)(at + i * 64));
        at += 256;
    }
    while (length - at >= 64 + (uint64_t)last && count + 64 + ROOM <= capacity) {
        uint64_t word = units(&w, load(data + at), ~0ull, encoding, whitespace);
        uint64_t found = edges_of(&w, word, shifts, width, steps);
        count += emit(edges_ret + count, found, base + (uint32_t)at);
        at += 64;
    }
    if (last && length - at <= 64 && count + 128 + ROOM <= capacity) {
        /* What is left, and behind it bytes that are nothing: neither printable nor zero. */
        unsigned char rest[64] = {0};
        uint64_t left = length - at, valid = left < 64 ? (1ull << left) - 1 : ~0ull;
        memcpy(rest, data + at, left);
        for (int i = 0; i < 2; i++, valid = 0) {
            uint64_t word = units(&w, load(rest), valid, encoding, whitespace);
            uint64_t found = edges_of(&w, word, shifts, width, steps);
            count += emit(edges_ret + count, found, base + (uint32_t)(at + (uint64_t)i * 64));
        }
        at = length;
        memset(&w, 0, sizeof w);
    }
    memcpy(finder->carried, w.carried, sizeof w.carried);
    memcpy(finder->history, w.history, sizeof w.history);
    finder->runs = w.runs;
    *count_ret = count;
    return at;
}

/*
 * One function for each encoding and number of doublings, so that all is constant in its loop;
 * the default, n = 4, has constant shifts too.
 */
#define FUNCTION(name, encoding, whitespace, width, steps, shifts)                                 \
    TARGET static uint64_t name(struct fastdump_finder *finder, const unsigned char *data,         \
                                uint64_t length, bool last, uint32_t base, uint64_t capacity,      \
                                uint32_t *edges_ret, uint64_t *count_ret) {                        \
        const uint32_t four[6] = {width, 2 * width};                                               \
        (void)four;                                                                                \
        return find_in(finder, data, length, last, base, capacity, edges_ret, count_ret, encoding, \
                       whitespace, width, steps, shifts);                                          \
    }
#define FUNCTIONS(name, encoding, width)                                                           \
    FUNCTION(name##_4, encoding, false, width, 2, four)                                            \
    FUNCTION(name##_short, encoding, false, width, 3, finder->shifts)                              \
    FUNCTION(name##_long, encoding, false, width, 6, finder->shifts)                               \
    FUNCTION(name##_1, encoding, false, width, 0, finder->shifts)                                  \
    FUNCTION(name##_white, encoding, true, width, 6, finder->shifts)
FUNCTIONS(seven_bit, FASTDUMP_7BIT, 1)
FUNCTIONS(eight_bit, FASTDUMP_8BIT, 1)
FUNCTIONS(utf16le, FASTDUMP_UTF16LE, 2)
FUNCTIONS(utf16be, FASTDUMP_UTF16BE, 2)
FUNCTIONS(utf32le, FASTDUMP_UTF32LE, 4)
FUNCTIONS(utf32be, FASTDUMP_UTF32BE, 4)
FUNCTIONS(utf8, FASTDUMP_UTF8, 1)

typedef uint64_t function(struct fastdump_finder *, const unsigned char *, uint64_t, bool, uint32_t,
                          uint64_t, uint32_t *, uint64_t *);
#define ROW(name) {name##_1, name##_4, name##_short, name##_long, name##_white}
static function *const functions[][5] = {
    ROW(seven_bit), ROW(eight_bit), ROW(utf16le), ROW(utf16be),
    ROW(utf32le),   ROW(utf32be),   ROW(utf8),
};

int64_t FIND(struct fastdump_finder *finder, const unsigned char *data, uint64_t length, bool last,
             uint32_t base, uint64_t capacity, uint32_t *edges_ret, uint64_t *count_ret) {
    uint32_t filter = finder->filter;
    int column = finder->whitespace ? 4 : filter == 1 ? 0 : filter == 4 ? 1 : filter <= 8 ? 2 : 3;
    return (int64_t)functions[finder->encoding][column](finder, data, length, last, base, capacity,
                                                        edges_ret, count_ret);
}
