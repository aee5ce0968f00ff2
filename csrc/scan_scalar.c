/*
 * Finds strings byte by byte, in plain C: the oracle that the vector kernels are held against. It
 * shares no code with them, only their interface: edges at the same positions.
 */
#include <string.h>

#include "scan.h"
#include "search.h"
#include "words.h"

#define NOTHING (-1) /* before the first byte, and behind the last */

/* Of struct fastdump_finder it uses history[0..2] and carried[0..3] so: */
struct scalar {
    uint64_t bytes;  /* the last 8, the latest lowest */
    uint64_t known;  /* 0xff for each of them that was there */
    uint64_t count;  /* of bytes so far, modulo 4: of which alignment the next one is */
    uint64_t run[4]; /* units so far, for each alignment */
};

/* The byte that came `back` bytes before the latest one. */
static int byte_at(const struct scalar *s, int back) {
    return s->known >> (8 * back) & 1 ? (int)(s->bytes >> (8 * back) & 0xff) : NOTHING;
}

static bool is_printable(int c, bool whitespace) {
    return (c >= 0x20 && c <= 0x7e) || c == '\t' || (whitespace && c >= '\n' && c <= '\r');
}

static bool is_next(int c) { return c >= 0x80 && c <= 0xbf; }

/*
 * The length of the character that begins `back` bytes before the latest one, 0 if there is none.
 * As GNU strings has it: lead bytes up to 0xff, no look at what the bits stand for.
 */
static int utf8_length(const struct scalar *s, int back, bool whitespace) {
    int lead = byte_at(s, back);
    if (is_printable(lead, whitespace))
        return 1;
    int length = lead < 0xc0 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    for (int i = 1; i < length; i++)
        if (back - i < 0 || !is_next(byte_at(s, back - i)))
            return 0;
    return length;
}

/* Whether the byte 3 before the latest one belongs to a printable character. */
static bool is_utf8(const struct scalar *s, bool whitespace) {
    for (int before = 0; before < 4; before++)
        if (utf8_length(s, 3 + before, whitespace) > before)
            return true;
    return false;
}

/* Whether a character ends with the latest byte (of UTF-8: the one 3 before is part of one). */
static bool is_unit(const struct scalar *s, const struct fastdump_finder *finder) {
    bool w = finder->whitespace;
    switch (finder->encoding) {
    case FASTDUMP_7BIT:
        return is_printable(byte_at(s, 0), w);
    case FASTDUMP_8BIT:
        return is_printable(byte_at(s, 0), w) || byte_at(s, 0) > 0x7f;
    case FASTDUMP_UTF16LE:
        return is_printable(byte_at(s, 1), w) && byte_at(s, 0) == 0;
    case FASTDUMP_UTF16BE:
        return byte_at(s, 1) == 0 && is_printable(byte_at(s, 0), w);
    case FASTDUMP_UTF32LE:
        return is_printable(byte_at(s, 3), w) && byte_at(s, 2) == 0 && byte_at(s, 1) == 0 &&
               byte_at(s, 0) == 0;
    case FASTDUMP_UTF32BE:
        return byte_at(s, 3) == 0 && byte_at(s, 2) == 0 && byte_at(s, 1) == 0 &&
               is_printable(byte_at(s, 0), w);
    default:
        return is_utf8(s, w);
    }
}

/* One more byte: whether there is an edge at it. */
static bool step(struct scalar *s, const struct fastdump_finder *finder, int c) {
    s->bytes = s->bytes << 8 | (uint64_t)(c & 0xff);
    s->known = s->known << 8 | (c == NOTHING ? 0 : 0xff);
    uint64_t *run = &s->run[s->count++ % finder->width];
    if (is_unit(s, finder))
        return ++*run == finder->filter;
    bool ended = *run >= finder->filter;
    *run = 0;
    return ended;
}

int64_t fastdump_find_scalar(struct fastdump_finder *finder, const unsigned char *data,
                             uint64_t length, bool last, uint32_t base, uint64_t capacity,
                             uint32_t *edges_ret, uint64_t *count_ret) {
    struct scalar s = {finder->history[0], finder->history[1], finder->history[2], {0}};
    memcpy(s.run, finder->carried, sizeof s.run);
    uint64_t at = 0, count = 0;
    for (; at < length && count + 9 <= capacity; at++)
        if (step(&s, finder, data[at]))
            edges_ret[count++] = base + (uint32_t)at;
    if (last && at == length) {
        for (uint32_t i = 0; i < 8; i++)
            if (step(&s, finder, NOTHING))
                edges_ret[count++] = base + (uint32_t)at + i;
        memset(&s, 0, sizeof s);
    }
    finder->history[0] = s.bytes;
    finder->history[1] = s.known;
    finder->history[2] = s.count;
    memcpy(finder->carried, s.run, sizeof s.run);
    *count_ret = count;
    return (int64_t)at;
}

bool fastdump_anchors_scalar(const struct fastdump_anchor *anchors, uint64_t count,
                             const unsigned char *data, uint64_t blocks, uint64_t *words_ret) {
    bool any = false;
    memset(words_ret, 0, blocks * sizeof *words_ret);
    for (uint64_t at = 0; at < 64 * blocks; at++)
        for (uint64_t i = 0; i < 2 * count; i += 2) {
            const struct fastdump_anchor *a = &anchors[i], *b = &anchors[i + 1];
            if ((data[at + a->offset] & a->mask) == a->value &&
                (data[at + b->offset] & b->mask) == b->value) {
                words_ret[at / 64] |= 1ull << at % 64;
                any = true;
            }
        }
    return any;
}

bool fastdump_windows_scalar(const struct fastdump_search *search, const unsigned char *data,
                             uint64_t blocks, uint64_t *words_ret) {
    uint64_t any = 0;
    for (uint64_t i = 0; i < blocks; i++) {
        uint64_t word = 0;
        for (uint64_t at = 0; at < 64; at += search->stride) {
            uint32_t bytes;
            memcpy(&bytes, data + 64 * i + at, sizeof bytes);
            uint32_t hash = window_hash(bytes & search->fold, search->hash_bits);
            word |= (uint64_t)(search->filter[hash / 32] >> hash % 32 & 1) << at;
        }
        words_ret[i] = word;
        any |= word;
    }
    return any;
}

uint64_t fastdump_near_scalar(const struct fastdump_range *windows, const uint64_t *words,
                              uint64_t count, uint32_t *near_ret) {
    const struct fastdump_near near = fastdump_near(windows);
    uint64_t found = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint32_t half = (uint32_t)(words[i] >> 32);
        bool is_near = false;
        for (int range = 0; range < near.count; range++)
            is_near |= half - near.first[range] <= near.more[range];
        near_ret[found] = (uint32_t)i; /* no branch, which would be guessed wrong */
        found += is_near;
    }
    return found;
}
