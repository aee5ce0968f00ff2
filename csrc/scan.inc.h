/*
 * The vector loop that finds strings, once; included by scan_avx2.c, scan_avx512.c and scan_neon.c,
 * which bring what differs:
 *
 *   TARGET    the attribute of every function
 *   FIND      the name of the kernel
 *   block     64 bytes in registers; load() reads them
 *   printable(), zeros(), below()
 *             64 bits, one a byte: printable characters; zero bytes; less than a signed limit
 *   printable_zero()
 *             the same, of what is printable in one block and zero in another
 *   either()  the bits of one block or another
 *   emit()    the positions of the bits of a word, into an array, in groups that divide 64
 *
 * and may bring two more:
 *
 *   edges_of_row()    the same as edges_of_words(), for BLOCKS words
 *   edges_of_strip()  the same, from bytes, of which each is a character
 *
 * Each block of 64 bytes becomes a word `units` with a bit at the last byte of each printable
 * character ("unit") of the encoding. Runs of n units are found by doubling: with
 * b1 = units, b2 = b1 & b1 << 1 says that two ended here, b4 = b2 & b2 << 2 that four did; n is
 * reached by steps k -> min(2k, n). The edges of the last word, b ^ b << 1, are where a run has
 * reached n and, one behind its last unit, where it ended. Shifts look behind, never ahead, so that
 * what a block needs of those before it is one word for each step: a run crosses blocks and chunks
 * for nothing. In encodings of 2 or 4 bytes a character all shifts are by as much, and the
 * alignments share the words: where a unit ends none of another alignment can (a character is not
 * zero, its other bytes are), so the edges of two runs never cross.
 *
 * The words of a strip of blocks are computed in rows, a step after the other: those loops have no
 * branch, and the compiler makes them vector code too (8 words at a time with AVX-512; AVX2 takes a
 * word through all steps instead).
 *
 * UTF-8 needs to look ahead 3 bytes from the first byte of a character: its words are 3 late.
 */
#include <string.h>

#include "scan.h"

#define INLINE TARGET static inline __attribute__((always_inline))
#define BLOCKS 64
#define STRIP (64 * BLOCKS)

/* A word for each block of a strip, from [1] on; [0] is that of the block before. */
typedef uint64_t row[BLOCKS + 1];

/* A word << count, the bits that come in from the one before. Shifting by 0 is allowed. */
INLINE uint64_t behind(const uint64_t *word, uint32_t count) {
    return word[0] << count | word[-1] >> 1 >> (63 - count);
}

/* Bytes that belong to a printable character in UTF-8, 3 late; see is_utf8 in scan_scalar.c. */
INLINE void find_utf8(row *rows, uint64_t *restrict units, const unsigned char *data, int blocks,
                      uint64_t valid, bool whitespace) {
    uint64_t *plain = rows[0], *next = rows[1], *lead2 = rows[2], *lead3 = rows[3],
             *lead4 = rows[4], *whole = rows[5], *whole34 = rows[6], *whole4 = rows[7];
    for (int i = 1; i <= blocks; i++) {
        block b = load(data + (i - 1) * 64);
        uint64_t high = below(b, 0) & valid;
        next[i] = below(b, -64) & valid; /* 0x80 to 0xbf, a byte behind the first one */
        lead4[i] = high & ~below(b, -16);
        lead3[i] = (high & ~below(b, -32)) ^ lead4[i];
        lead2[i] = high & ~next[i] & ~lead3[i] & ~lead4[i];
        plain[i] = printable(b, FASTDUMP_7BIT, whitespace) & valid;
    }
    for (int i = 1; i <= blocks; i++) {
        uint64_t next1 = behind(next + i, 1), next2 = behind(next + i, 2);
        whole4[i] = behind(lead4 + i, 3) & next2 & next1 & next[i];
        whole34[i] = (behind(lead3 + i, 3) & next2 & next1) | whole4[i];
        whole[i] = (behind(lead2 + i, 3) & next2) | whole34[i];
    }
    for (int i = 1; i <= blocks; i++)
        units[i] = behind(plain + i, 3) | whole[i] | behind(whole + i, 1) | behind(whole34 + i, 2) |
                   behind(whole4 + i, 3);
}

/* Characters of 2 or 4 bytes; rows are what is remembered from strip to strip. */
INLINE void find_wide(row *rows, uint64_t *restrict units, const unsigned char *data, int blocks,
                      uint64_t valid, int encoding, bool whitespace) {
    uint64_t *plain = rows[0], *zero = rows[1];
#pragma GCC unroll 8
    for (int i = 1; i <= blocks; i++) {
        block b = load(data + (i - 1) * 64);
        plain[i] = printable(b, encoding, whitespace) & valid;
        zero[i] = zeros(b) & valid;
    }
    for (int i = 1; i <= blocks; i++)
        switch (encoding) {
        case FASTDUMP_UTF16LE:
            units[i] = zero[i] & behind(plain + i, 1);
            break;
        case FASTDUMP_UTF16BE:
            units[i] = plain[i] & behind(zero + i, 1);
            break;
        case FASTDUMP_UTF32LE:
            units[i] = zero[i] & behind(zero + i, 1) & behind(zero + i, 2) & behind(plain + i, 3);
            break;
        case FASTDUMP_UTF32BE:
            units[i] = plain[i] & behind(zero + i, 1) & behind(zero + i, 2) & behind(zero + i, 3);
            break;
        }
}

/* The same of a whole strip of UTF-16: but for the first, the byte before each is in memory. */
INLINE void find_utf16(row *rows, uint64_t *restrict units, const unsigned char *data, int encoding,
                       bool whitespace) {
    find_wide(rows, units, data, 1, ~0ull, encoding, whitespace);
    const unsigned char *last = data + STRIP - 64;
#pragma GCC unroll 8
    for (int i = 2; i <= BLOCKS; i++) {
        block b = load(data + (i - 1) * 64), before = load(data + (i - 1) * 64 - 1);
        units[i] = encoding == FASTDUMP_UTF16LE ? printable_zero(before, b, whitespace)
                                                : printable_zero(b, before, whitespace);
    }
    rows[0][BLOCKS] = printable(load(last), encoding, whitespace);
    rows[1][BLOCKS] = zeros(load(last));
}

/* A bit at the last byte of each unit. */
INLINE void find_units(row *rows, uint64_t *restrict units, const unsigned char *data, int blocks,
                       uint64_t valid, int encoding, bool whitespace) {
    switch (encoding) {
    case FASTDUMP_7BIT:
    case FASTDUMP_8BIT:
#pragma GCC unroll 8
        for (int i = 1; i <= blocks; i++) {
            units[i] = printable(load(data + (i - 1) * 64), encoding, whitespace) & valid;
        }
        break;
    case FASTDUMP_UTF8:
        find_utf8(rows, units, data, blocks, valid, whitespace);
        break;
    case FASTDUMP_UTF16LE:
    case FASTDUMP_UTF16BE:
        if (blocks == BLOCKS) {
            find_utf16(rows, units, data, encoding, whitespace);
            break;
        } /* fall through */
    default:
        find_wide(rows, units, data, blocks, valid, encoding, whitespace);
    }
}

INLINE void both_ended(const uint64_t *restrict row, uint64_t *restrict row_ret, int blocks,
                       uint32_t shift) {
    for (int i = 1; i <= blocks; i++)
        row_ret[i] = row[i] & behind(row + i, shift);
}

/*
 * Units → edges: found_ret[0] is the word of the first block. Returns a bit for each word that is
 * not 0, that of the first lowest.
 */
INLINE uint64_t edges_of_words(struct fastdump_finder *finder, uint64_t *restrict units, int blocks,
                               uint64_t *restrict found_ret) {
    row other;
    uint64_t *from = units, *to = other, some = 0;
    for (int i = 0; i < 6 && finder->shifts[i]; i++) {
        from[0] = finder->carried[i];
        finder->carried[i] = from[blocks];
        both_ended(from, to, blocks, finder->shifts[i]);
        uint64_t *swapped = from;
        from = to;
        to = swapped;
    }
    from[0] = finder->runs;
    finder->runs = from[blocks];
    for (int i = 1; i <= blocks; i++)
        found_ret[i - 1] = from[i] ^ behind(from + i, finder->width);
    for (int i = 0; i < blocks; i++)
        some |= (uint64_t)(found_ret[i] != 0) << i;
    return some;
}
#ifndef edges_of_row
#define edges_of_row(finder, units, found_ret) edges_of_words(finder, units, BLOCKS, found_ret)
#endif

/*
 * Wide characters are rare. If no word has two units one behind the other, no run has three, but
 * for one that began in the row before, which ends in the first word.
 */
INLINE bool is_quiet(const struct fastdump_finder *finder, const uint64_t *units) {
    uint64_t pairs = 0;
    for (int i = 1; i <= BLOCKS; i++)
        pairs |= units[i] & units[i] >> finder->width;
    return finder->filter > 2 && !pairs;
}

/*
 * edges_of_row() of such a row. A pair that ends in the last word ends in its first bits, which no
 * shift carries on.
 */
INLINE uint64_t edges_of_quiet_row(struct fastdump_finder *finder, uint64_t *units,
                                   uint64_t *found_ret) {
    memset(found_ret, 0, BLOCKS * sizeof *found_ret);
    uint64_t some = edges_of_words(finder, units, 1, found_ret);
    memset(finder->carried, 0, sizeof finder->carried);
    finder->carried[0] = units[BLOCKS];
    finder->runs = 0;
    return some;
}

INLINE uint64_t find_edges(struct fastdump_finder *finder, const unsigned char *data, int blocks,
                           uint64_t valid, int encoding, bool whitespace,
                           uint64_t *restrict found_ret) {
    const bool wide = encoding > FASTDUMP_8BIT && encoding != FASTDUMP_UTF8;
    const int history = encoding == FASTDUMP_UTF8 ? 8 : wide ? 2 : 0;
#ifdef edges_of_strip
    if (blocks == BLOCKS && !history)
        return edges_of_strip(finder, data, encoding, whitespace, found_ret);
#endif
    row rows[8], units;
    for (int i = 0; i < history; i++)
        rows[i][0] = finder->history[i];
    find_units(rows, units, data, blocks, valid, encoding, whitespace);
    for (int i = 0; i < history; i++)
        finder->history[i] = rows[i][blocks];
    if (blocks == BLOCKS && wide && is_quiet(finder, units))
        return edges_of_quiet_row(finder, units, found_ret);
    if (blocks == BLOCKS)
        return edges_of_row(finder, units, found_ret);
    return edges_of_words(finder, units, blocks, found_ret);
}

/* Whether a strip is zeros: after one block of them, more change nothing. */
INLINE bool is_zero(const unsigned char *data) {
    block any = load(data);
    for (int at = 0; at < STRIP && zeros(any) == ~0ull; at += STRIP / 8)
#pragma GCC unroll 8
        for (int i = at; i < at + STRIP / 8; i += 64)
            any = either(any, load(data + i));
    return zeros(any) == ~0ull;
}

INLINE int64_t find_in(struct fastdump_finder *finder, const unsigned char *data, uint64_t length,
                       bool last, uint32_t base, uint64_t capacity, uint32_t *edges_ret,
                       uint64_t *count_ret, int encoding, bool whitespace) {
    uint64_t at = 0, count = 0, found[BLOCKS];
    while (length - at >= STRIP + (uint64_t)last && count + STRIP <= capacity) {
        uint64_t some =
            is_zero(data + at)
                ? find_edges(finder, data + at, 1, ~0ull, encoding, whitespace, found)
                : find_edges(finder, data + at, BLOCKS, ~0ull, encoding, whitespace, found);
        /* In a heap a third of the words has edges: no branch, which would be guessed wrong. */
        for (; some; some &= some - 1) {
            uint32_t i = (uint32_t)__builtin_ctzll(some);
            count += emit(edges_ret + count, found[i], base + (uint32_t)at + i * 64);
        }
        at += STRIP;
    }
    /* Block by block is slow: a strip that an empty array has room for is left to the next call. */
    bool strips = capacity >= STRIP && length - at >= STRIP + (uint64_t)last;
    while (!strips && length - at >= 64 + (uint64_t)last && count + 64 <= capacity) {
        find_edges(finder, data + at, 1, ~0ull, encoding, whitespace, found);
        count += emit(edges_ret + count, found[0], base + (uint32_t)at);
        at += 64;
    }
    if (last && length - at <= 64 && count + 128 <= capacity) {
        /* What is left, and behind it bytes that are nothing: neither printable nor zero. */
        unsigned char rest[64] = {0};
        uint64_t left = length - at, valid = left < 64 ? (1ull << left) - 1 : ~0ull;
        memcpy(rest, data + at, left);
        for (uint32_t i = 0; i < 2; i++, valid = 0) {
            find_edges(finder, rest, 1, valid, encoding, whitespace, found);
            count += emit(edges_ret + count, found[0], base + (uint32_t)at + i * 64);
        }
        at = length;
    }
    *count_ret = count;
    return (int64_t)at;
}

/* A function for each encoding, so that it is constant in the loop. */
#define FUNCTION(name, encoding, whitespace)                                                       \
    TARGET static int64_t name(struct fastdump_finder *finder, const unsigned char *data,          \
                               uint64_t length, bool last, uint32_t base, uint64_t capacity,       \
                               uint32_t *edges_ret, uint64_t *count_ret) {                         \
        return find_in(finder, data, length, last, base, capacity, edges_ret, count_ret, encoding, \
                       whitespace);                                                                \
    }
#define FUNCTIONS(name, encoding)                                                                  \
    FUNCTION(name, encoding, false)                                                                \
    FUNCTION(name##_white, encoding, true)
FUNCTIONS(seven_bit, FASTDUMP_7BIT)
FUNCTIONS(eight_bit, FASTDUMP_8BIT)
FUNCTIONS(utf16le, FASTDUMP_UTF16LE)
FUNCTIONS(utf16be, FASTDUMP_UTF16BE)
FUNCTIONS(utf32le, FASTDUMP_UTF32LE)
FUNCTIONS(utf32be, FASTDUMP_UTF32BE)
FUNCTIONS(utf8, FASTDUMP_UTF8)

int64_t FIND(struct fastdump_finder *finder, const unsigned char *data, uint64_t length, bool last,
             uint32_t base, uint64_t capacity, uint32_t *edges_ret, uint64_t *count_ret) {
    static fastdump_find_function *const functions[][2] = {
        {seven_bit, seven_bit_white}, {eight_bit, eight_bit_white}, {utf16le, utf16le_white},
        {utf16be, utf16be_white},     {utf32le, utf32le_white},     {utf32be, utf32be_white},
        {utf8, utf8_white},
    };
    return functions[finder->encoding][finder->whitespace](finder, data, length, last, base,
                                                           capacity, edges_ret, count_ret);
}
