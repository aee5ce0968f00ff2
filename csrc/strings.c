/*
 * Edges → strings → output. A scan takes bytes a buffer at a time, in address order; what a
 * kernel finds in them becomes lines of text, records, counts, or entries of a table, while the
 * bytes are in the cache.
 *
 * A string that is not at its end when the buffer is has its bytes kept in front of the
 * next one (HEAD), so that it is in one piece when it ends. One that is longer than that (a
 * "giant") is told by its place, and is read again. So memory is bounded, and any string whole.
 */
#include <string.h>

#include "scan.h"

#define KEPT 128 /* bytes always kept: a run is seen only after up to 64 */

/* --- text ------------------------------------------------------------------------------- */

/* length bytes, rounded up to 32: short strings are most, and a call of memcpy costs more. */
static inline unsigned char *copy_text(unsigned char *to, const unsigned char *from,
                                       uint64_t length) {
    for (uint64_t i = 0; i < length; i += 32)
        memcpy(to + i, from + i, 32);
    return to + length;
}

static unsigned char *hex_of(unsigned char *to, uint64_t number, int digits) {
    while (digits--)
        *to++ = (unsigned char)"0123456789abcdef"[number >> (4 * digits) & 15];
    return to;
}

static unsigned char *show_utf8(unsigned char *to, const unsigned char *c, int length,
                                int32_t how) {
    if (how == FASTDUMP_UNICODE_HEX) {
        to = copy_text(to, (const unsigned char *)"<0x                             ", 3);
        for (int i = 0; i < length; i++)
            to = hex_of(to, c[i], 2);
        *to++ = '>';
        return to;
    }
    static const unsigned char red[32] = "\x1b[31;47m", plain[32] = "\x1b[0m";
    if (how == FASTDUMP_UNICODE_HIGHLIGHT)
        to = copy_text(to, red, 8);
    uint32_t code = length == 2 ? c[0] & 0x1fu : length == 3 ? c[0] & 0xfu : c[0] & 7u;
    for (int i = 1; i < length; i++)
        code = code << 6 | (c[i] & 0x3fu);
    *to++ = '\\';
    *to++ = 'u';
    to = hex_of(to, code, length == 4 ? 6 : 4);
    return how == FASTDUMP_UNICODE_HIGHLIGHT ? copy_text(to, plain, 4) : to;
}

static unsigned char *put_utf8(unsigned char *to, const unsigned char *from, uint64_t length,
                               int32_t how) {
    for (uint64_t i = 0; i < length;) {
        if (from[i] < 0x80) {
            *to++ = from[i++];
            continue;
        }
        int size = from[i] < 0xe0 ? 2 : from[i] < 0xf0 ? 3 : 4;
        to = show_utf8(to, from + i, size, how);
        i += (uint64_t)size;
    }
    return to;
}

static inline unsigned char *put_text(unsigned char *to, const unsigned char *from, uint64_t length,
                                      int32_t encoding, int32_t unicode) {
    switch (encoding) {
    case FASTDUMP_UTF16LE:
    case FASTDUMP_UTF16BE:
        from += encoding == FASTDUMP_UTF16BE;
        for (uint64_t i = 0; i < length / 2; i++)
            to[i] = from[2 * i];
        return to + length / 2;
    case FASTDUMP_UTF32LE:
    case FASTDUMP_UTF32BE:
        from += encoding == FASTDUMP_UTF32BE ? 3 : 0;
        for (uint64_t i = 0; i < length / 4; i++)
            to[i] = from[4 * i];
        return to + length / 4;
    case FASTDUMP_UTF8:
        if (unicode != FASTDUMP_UNICODE_LOCALE)
            return put_utf8(to, from, length, unicode);
    }
    return copy_text(to, from, length);
}

int64_t fastdump_text(int32_t encoding, int32_t unicode, const void *data, uint64_t length,
                      void *text_ret) {
    return put_text(text_ret, data, length, encoding, unicode) - (unsigned char *)text_ret;
}

/* As printf's "%7lx ". */
static unsigned char *put_number(unsigned char *to, uint64_t number, uint32_t radix) {
    unsigned char digits[24], *at = digits + sizeof digits;
    do
        *--at = (unsigned char)"0123456789abcdef"[number % radix];
    while (number /= radix);
    while (at > digits + sizeof digits - 7)
        *--at = ' ';
    uint64_t length = (uint64_t)(digits + sizeof digits - at);
    memcpy(to, at, length);
    to[length] = ' ';
    return to + length + 1;
}

/* All but the last 4 digits of an address, kept from one to the next: in registers. */
struct hex {
    uint64_t high;
    uint64_t length;
    unsigned char text[24];
};

/* The same in hexadecimal. */
static inline unsigned char *put_hex(unsigned char *to, uint64_t address, struct hex *known) {
    uint64_t high = address >> 16;
    if (high != known->high) {
        if (high == 0)
            return put_number(to, address, 16);
        known->high = high;
        known->length = (uint64_t)(put_number(known->text, address, 16) - known->text) - 5;
    }
    memcpy(to, known->text, 16);
    to += known->length;
    uint32_t low = (uint32_t)(address & 0xffff);
    uint32_t bytes = low >> 8 | (low & 0xff) << 16; /* the first digit lowest, in memory first */
    uint32_t nibbles = (bytes >> 4 & 0x000f000f) | (bytes & 0x000f000f) << 8;
    uint32_t letters = (nibbles + 0x06060606) >> 4 & 0x01010101;
    uint32_t text = nibbles + 0x30303030 + letters * ('a' - '0' - 10);
    memcpy(to, &text, 4);
    to[4] = ' ';
    return to + 5;
}

/* --- strings ---------------------------------------------------------------------------- */

static uint64_t utf8_characters(const unsigned char *text, uint64_t length) {
    uint64_t count = 0;
    for (uint64_t i = 0; i < length; i++)
        count += (text[i] & 0xc0) != 0x80;
    return count;
}

static bool is_long_enough(const struct fastdump_finder *finder, const unsigned char *from,
                           uint64_t length) {
    if (finder->encoding == FASTDUMP_UTF8)
        return utf8_characters(from, length) >= finder->min_length;
    return length / finder->width >= finder->min_length;
}

/* One whole string, length bytes at from. */
static inline void take(struct fastdump_scan *scan, const struct fastdump_finder *finder,
                        const unsigned char *from, uint64_t address, uint64_t length) {
    /* The kernel has made sure of filter units; mostly that is all. */
    if ((finder->min_length != finder->filter || finder->encoding == FASTDUMP_UTF8) &&
        !is_long_enough(finder, from, length))
        return;
    scan->strings++;
    scan->bytes += length;
    if (scan->mode == FASTDUMP_COUNT_STRINGS)
        return;
    unsigned char *line = scan->out + scan->filled, *to = line;
    if (scan->mode == FASTDUMP_TALLIES) {
        /* Of a giant no more is known. */
        uint64_t text_length = length < FASTDUMP_HEAD ? length : FASTDUMP_HEAD;
        if (finder->width > 1) { /* the output serves as a scratch pad */
            text_length = (uint64_t)(put_text(to, from, text_length, finder->encoding, 0) - to);
            from = line;
        }
        fastdump_table_add(scan->table, from, text_length, length, address, scan->region);
        return;
    }
    if (scan->prefix_length)
        to = copy_text(to, scan->prefix, scan->prefix_length);
    if (scan->radix)
        to = put_number(to, address + scan->bias, (uint32_t)scan->radix);
    unsigned char *text = to, *end = put_text(to, from, length, finder->encoding, scan->unicode);
    if (scan->separator_length == 1)
        *end = *scan->separator;
    else
        copy_text(end, scan->separator, scan->separator_length);
    uint64_t line_length = (uint64_t)(end - line) + scan->separator_length;
    if (scan->records)
        scan->records[scan->records_used++] = (struct fastdump_record){
            .address = address,
            .length = length,
            .region = (uint32_t)scan->region,
            .encoding = finder->encoding,
            .line = (uint32_t)scan->filled,
            .text = (uint32_t)(scan->filled + (uint64_t)(text - line)),
            .text_length = (uint32_t)(end - text),
            .line_length = (uint32_t)line_length,
        };
    scan->filled += line_length;
}

static void take_giant(struct fastdump_scan *scan, const struct fastdump_finder *finder,
                       uint64_t length) {
    scan->strings++;
    scan->bytes += length;
    if (scan->mode == FASTDUMP_TALLIES)
        fastdump_table_add_key(scan->table, finder->key, length, scan->region);
    else if (scan->mode != FASTDUMP_COUNT_STRINGS)
        scan->giant[scan->giants++] = (struct fastdump_giant){
            .address = finder->start,
            .length = length,
            .region = scan->region,
            .filled = scan->filled,
            .records = scan->records_used,
            .encoding = finder->encoding,
        };
}

static inline bool is_own(const struct fastdump_scan *scan, uint64_t address) {
    return address >= scan->own_start && address < scan->own_end;
}

/* An edge at a position of the buffer whose first byte would lie at origin. */
static inline void take_edge(struct fastdump_scan *scan, struct fastdump_finder *finder,
                             uint64_t origin, uint32_t edge) {
    if (!finder->open) {
        finder->open = 1;
        finder->owned = is_own(scan, origin + edge);
        finder->start = origin + edge - finder->start_delta;
        return;
    }
    finder->open = 0;
    uint64_t length = origin + edge - finder->end_delta - finder->start;
    if (finder->giant) {
        finder->giant = 0;
        take_giant(scan, finder, length);
    } else if (finder->owned) {
        take(scan, finder, scan->buffer + (finder->start - origin), finder->start, length);
    }
}

/*
 * Whole strings, two edges each: what take() does with most of them, in registers (bytes that are
 * written could be anything's, so that take() must fetch all of *scan again for each).
 */
static void take_plain(struct fastdump_scan *scan, const struct fastdump_finder *finder,
                       uint64_t origin, const uint32_t *edges, uint64_t count) {
    const unsigned char *start = scan->buffer - finder->start_delta;
    const unsigned char *end = scan->buffer - finder->end_delta;
    uint64_t bytes = 0;
    if (scan->mode == FASTDUMP_COUNT_STRINGS) {
        for (uint64_t i = 0; i < count; i += 2)
            bytes += edges[i + 1] - edges[i];
        bytes += count / 2 * (finder->start_delta - finder->end_delta);
    } else {
        unsigned char *to = scan->out + scan->filled, separator = *scan->separator;
        bool hex = scan->radix == 16;
        struct hex known = {.high = UINT64_MAX};
        origin += scan->bias - finder->start_delta;
        for (uint64_t i = 0; i < count; i += 2) {
            const unsigned char *from = start + edges[i];
            uint64_t length = (uint64_t)(end + edges[i + 1] - from);
            bytes += length;
            if (hex)
                to = put_hex(to, origin + edges[i], &known);
            to = copy_text(to, from, length);
            *to++ = separator;
        }
        scan->filled = (uint64_t)(to - scan->out);
    }
    scan->strings += count / 2;
    scan->bytes += bytes;
}

static bool is_plain(const struct fastdump_scan *scan, const struct fastdump_finder *finder) {
    if (finder->min_length != finder->filter || finder->encoding == FASTDUMP_UTF8)
        return false;
    if (scan->mode == FASTDUMP_COUNT_STRINGS)
        return true;
    return scan->mode == FASTDUMP_LINES && !scan->records && finder->width == 1 &&
           (!scan->radix || scan->radix == 16) && !scan->prefix_length &&
           scan->separator_length == 1;
}

/* One encoding: its edges are its strings' in their order. */
static void scan_one(struct fastdump_scan *scan, uint64_t origin, uint64_t length, bool last) {
    struct fastdump_finder *finder = scan->finder;
    const unsigned char *data = scan->buffer + FASTDUMP_HEAD;
    bool own = is_own(scan, origin + FASTDUMP_HEAD) &&
               is_own(scan, origin + FASTDUMP_HEAD + length + 2 * KEPT);
    bool plain = is_plain(scan, finder);
    uint64_t done = 0, count, i;
    do {
        done += (uint64_t)fastdump_find(scan->kernel, finder, data + done, length - done, last,
                                        (uint32_t)(FASTDUMP_HEAD + done), FASTDUMP_EDGES,
                                        scan->edges, &count);
        i = 0;
        if (own) { /* so that no edge needs to be asked whose it is */
            if (finder->open && count)
                take_edge(scan, finder, origin, scan->edges[i++]);
            if (plain) {
                uint64_t whole = (count - i) & ~1ull;
                take_plain(scan, finder, origin, scan->edges + i, whole);
                i += whole;
            }
            for (; i + 1 < count; i += 2) {
                uint64_t start = scan->edges[i] - finder->start_delta;
                uint64_t end = scan->edges[i + 1] - finder->end_delta;
                take(scan, finder, scan->buffer + start, origin + start, end - start);
            }
        }
        for (; i < count; i++)
            take_edge(scan, finder, origin, scan->edges[i]);
    } while (done < length);
}

/* Several encodings: small steps, of each of which all strings are taken by their addresses. */
static void scan_several(struct fastdump_scan *scan, uint64_t origin, uint64_t length, bool last) {
    const uint64_t step = 4096; /* bytes have at most as many edges: the capacity suffices */
    const unsigned char *data = scan->buffer + FASTDUMP_HEAD;
    uint64_t counts[FASTDUMP_FINDERS], next[FASTDUMP_FINDERS], done = 0;
    do {
        uint64_t part = length - done < step ? length - done : step;
        bool is_last = last && done + part == length;
        for (uint64_t f = 0; f < scan->finders; f++) {
            fastdump_find(scan->kernel, &scan->finder[f], data + done, part, is_last,
                          (uint32_t)(FASTDUMP_HEAD + done), FASTDUMP_EDGES,
                          scan->edges + f * FASTDUMP_EDGES, &counts[f]);
            next[f] = 0;
        }
        for (;;) { /* of those that end in this step, the one that starts first */
            uint64_t first = scan->finders, start = UINT64_MAX;
            for (uint64_t f = 0; f < scan->finders; f++) {
                struct fastdump_finder *finder = &scan->finder[f];
                const uint32_t *edges = scan->edges + f * FASTDUMP_EDGES;
                if (!finder->open && next[f] < counts[f])
                    take_edge(scan, finder, origin, edges[next[f]++]);
                if (finder->open && next[f] < counts[f] && finder->start < start) {
                    start = finder->start;
                    first = f;
                }
            }
            if (first == scan->finders)
                break;
            take_edge(scan, &scan->finder[first], origin,
                      scan->edges[first * FASTDUMP_EDGES + next[first]++]);
        }
        done += part;
    } while (done < length);
}

/* Keep what strings that go on will need, in front of the next buffer. */
static void keep(struct fastdump_scan *scan, uint64_t address, uint64_t length) {
    uint64_t end = address + length, have = scan->kept + length;
    uint64_t most = have < KEPT ? have : KEPT;
    for (uint64_t f = 0; f < scan->finders; f++) {
        struct fastdump_finder *finder = &scan->finder[f];
        if (!finder->open || !finder->owned || finder->giant)
            continue;
        uint64_t need = end - finder->start;
        if (need <= FASTDUMP_HEAD) {
            most = need > most ? need : most;
            continue;
        }
        finder->giant = 1;
        if (scan->mode == FASTDUMP_TALLIES) {
            unsigned char *text = scan->out + scan->filled; /* for a moment */
            const unsigned char *from = scan->buffer + FASTDUMP_HEAD + length - need;
            uint64_t known = FASTDUMP_HEAD;
            known = (uint64_t)(put_text(text, from, known, finder->encoding, scan->unicode) - text);
            finder->key = fastdump_table_key(scan->table, text, known, finder->start, scan->region);
        }
    }
    unsigned char *data = scan->buffer + FASTDUMP_HEAD;
    memmove(data - most, data + length - most, most);
    scan->kept = most;
    scan->next = end;
}

void fastdump_scan_chunk(struct fastdump_scan *scan, uint64_t address, uint64_t length, bool last) {
    uint64_t origin = address - FASTDUMP_HEAD;
    if (scan->finders == 1)
        scan_one(scan, origin, length, last);
    else
        scan_several(scan, origin, length, last);
    keep(scan, address, length);
    if (last)
        scan->begun = 0;
}

void fastdump_scan_zeros(struct fastdump_scan *scan, uint64_t address, uint64_t length) {
    /* After one block of zeros, more of them change nothing. */
    memset(scan->buffer + FASTDUMP_HEAD, 0, 64);
    fastdump_scan_chunk(scan, address, 64, false);
    scan->kept = 64;
    scan->next = address + length;
}

void fastdump_scan_end(struct fastdump_scan *scan) {
    if (scan->begun)
        fastdump_scan_chunk(scan, scan->next, 0, true);
}

void fastdump_scan_begin(struct fastdump_scan *scan) {
    for (uint64_t f = 0; f < scan->finders; f++) {
        const struct fastdump_finder *finder = &scan->finder[f];
        fastdump_finder_begin(&scan->finder[f], finder->encoding, finder->whitespace,
                              finder->min_length);
    }
    scan->begun = 0;
    scan->kept = 0;
}

bool fastdump_scan_go_on(struct fastdump_scan *scan, uint64_t address, uint64_t region) {
    if (scan->begun && region == scan->region && address == scan->next)
        return true;
    fastdump_scan_end(scan);
    scan->begun = 1;
    scan->kept = 0;
    scan->region = region;
    scan->bias = scan->biases ? scan->biases[region] : 0;
    scan->next = address;
    return false;
}

uint64_t fastdump_scan_records(const struct fastdump_scan *scan) {
    uint64_t most = 0;
    for (uint64_t f = 0; f < scan->finders; f++) {
        const struct fastdump_finder *finder = &scan->finder[f];
        most += (scan->size + KEPT) / (finder->filter * finder->width + 1) + 2;
    }
    return most;
}

uint64_t fastdump_scan_room(const struct fastdump_scan *scan) {
    /* At most, each of two bytes becomes "\x1b[31;47m\u00e9\x1b[0m". */
    uint64_t text = 0, line = scan->prefix_length + scan->separator_length + 24;
    for (uint64_t f = 0; f < scan->finders; f++)
        text += scan->finder[f].encoding == FASTDUMP_UTF8 ? 9 : 1;
    return text * (scan->size + FASTDUMP_HEAD) + line * fastdump_scan_records(scan);
}

bool fastdump_scan_full(const struct fastdump_scan *scan) {
    if (scan->mode != FASTDUMP_LINES)
        return false;
    if (scan->giants + 4 * scan->finders > FASTDUMP_GIANTS ||
        scan->filled + 4 * scan->room > scan->capacity)
        return true;
    return scan->records &&
           scan->records_used + 4 * fastdump_scan_records(scan) > scan->records_capacity;
}

bool fastdump_scan_open(const struct fastdump_scan *scan) {
    for (uint64_t f = 0; f < scan->finders; f++)
        if (scan->finder[f].open && scan->finder[f].owned)
            return true;
    return false;
}

int64_t fastdump_scan_bytes(struct fastdump_scan *scan, const void *data, uint64_t length,
                            uint64_t address, uint64_t region, int32_t last) {
    const unsigned char *bytes = data;
    uint64_t done = 0;
    while (done < length && !fastdump_scan_full(scan)) {
        uint64_t part = length - done < scan->size ? length - done : scan->size;
        fastdump_scan_go_on(scan, address + done, region);
        memcpy(scan->buffer + FASTDUMP_HEAD, bytes + done, part);
        done += part;
        fastdump_scan_chunk(scan, address + done - part, part, last && done == length);
    }
    if (last && length == 0)
        fastdump_scan_end(scan);
    return (int64_t)done;
}
