/*
 * Patterns → hits. A search takes bytes a buffer at a time, in address order. Positions are
 * searched when all bytes that a pattern may need are there: the last ones of a buffer wait in
 * front of the next one. What filters let through is compared in full, and is mostly little.
 */
#include <string.h>

#include "search.h"

#define STRIP 4096 /* positions at a time: a word of bits for each 64 */

struct strip {
    const unsigned char *data; /* of the first position */
    uint64_t address;
    uint64_t count; /* of positions */
    uint64_t valid; /* bytes */
};

static uint64_t word_at(const unsigned char *from) {
    uint64_t word;
    memcpy(&word, from, sizeof word);
    return word;
}

static bool is_at(const struct fastdump_search *search, const struct fastdump_pattern *pattern,
                  const unsigned char *data, uint64_t valid) {
    const unsigned char *value = search->values + pattern->at, *mask = search->masks + pattern->at;
    if (pattern->length > valid)
        return false;
    for (uint64_t i = 0; i < pattern->length; i += 8)
        if ((word_at(data + i) & word_at(mask + i)) != word_at(value + i))
            return false;
    return true;
}

static void take(struct fastdump_search *search, uint64_t address, uint32_t number) {
    if (search->align > 1 && address % search->align) /* a division takes as long as all the rest */
        return;
    search->counts[number]++;
    if (search->hits)
        search->hits[search->used++] =
            (struct fastdump_hit){address, number, (uint32_t)search->region};
}

static void take_anchored(struct fastdump_search *search, const struct strip *strip) {
    fastdump_anchors_function *find = fastdump_anchors_of(search->kernel);
    for (uint64_t first = 0, some; first < search->anchored; first += some) {
        const struct fastdump_pattern *patterns = search->patterns + first;
        struct fastdump_anchor anchors[2 * PATTERNS_AT_ONCE];
        uint64_t words[STRIP / 64], blocks = (strip->count + 63) / 64;
        some = search->anchored - first;
        some = some < PATTERNS_AT_ONCE ? some : PATTERNS_AT_ONCE;
        for (uint64_t i = 0; i < 2 * some; i++) {
            uint32_t offset = patterns[i / 2].anchors[i % 2], at = patterns[i / 2].at + offset;
            anchors[i] = (struct fastdump_anchor){offset, search->values[at], search->masks[at]};
        }
        if (!find(anchors, some, strip->data, blocks, words))
            continue;
        if (strip->count % 64)
            words[blocks - 1] &= (1ull << strip->count % 64) - 1;
        for (uint64_t i = 0; i < blocks; i++)
            for (uint64_t word = words[i]; word; word &= word - 1) {
                uint64_t at = 64 * i + (uint64_t)__builtin_ctzll(word);
                for (uint64_t p = 0; p < some; p++)
                    if (is_at(search, &patterns[p], strip->data + at, strip->valid - at))
                        take(search, strip->address + at, patterns[p].number);
            }
    }
}

uint32_t fastdump_window_hash(uint32_t bytes, uint32_t hash_bits) {
    return window_hash(bytes, hash_bits);
}

static inline uint32_t window_at(const unsigned char *from) {
    uint32_t window;
    memcpy(&window, from, sizeof window);
    return window;
}

/* What begins in the strip and has a window at data + at. */
static void take_window(struct fastdump_search *search, const struct strip *strip, uint64_t at) {
    uint32_t bytes = window_at(strip->data + at) & search->fold;
    uint32_t hash = window_hash(bytes, search->bucket_bits);
    for (uint32_t i = search->buckets[hash]; i < search->buckets[hash + 1]; i++) {
        const struct fastdump_window *window = &search->windows[i];
        uint64_t start = at - window->offset; /* before the strip: a large number */
        if (window->bytes != bytes || start >= strip->count)
            continue;
        const struct fastdump_pattern *pattern = &search->patterns[window->pattern];
        if (is_at(search, pattern, strip->data + start, strip->valid - start))
            take(search, strip->address + start, pattern->number);
    }
}

static void take_windows(struct fastdump_search *search, const struct strip *strip) {
    uint64_t words[STRIP / 64 + 2], lead = -strip->address & (search->stride - 1);
    uint64_t blocks = (strip->count + search->span + 63) / 64;
    if (!fastdump_windows_of(search->kernel)(search, strip->data + lead, blocks, words))
        return;
    for (uint64_t i = 0; i < blocks; i++)
        for (uint64_t word = words[i]; word; word &= word - 1)
            take_window(search, strip, lead + 64 * i + (uint64_t)__builtin_ctzll(word));
}

static void take_pointers(struct fastdump_search *search, const struct strip *strip) {
    for (uint64_t i = 0; i < search->pointers_count; i++) {
        const struct fastdump_pointers *range = &search->pointers[i];
        uint64_t start = range->start, length = range->length;
        uint64_t at = -strip->address % 8, end = strip->count;
        while (at < end && at + 8 <= strip->valid) {
            /* 64 words without a branch: most have none. */
            uint64_t some = (strip->valid - at) / 8, bits = 0;
            some = some < 64 ? some : 64;
            for (uint64_t w = 0; w < some; w++)
                bits |= word_at(strip->data + at + 8 * w) - start < length;
            for (uint64_t w = 0; bits && w < some && at + 8 * w < end; w++)
                if (word_at(strip->data + at + 8 * w) - start < length)
                    take(search, strip->address + at + 8 * w, range->number);
            at += 8 * some;
        }
    }
}

static bool is_before(const struct fastdump_hit *a, const struct fastdump_hit *b) {
    return a->address != b->address ? a->address < b->address : a->number < b->number;
}

/* By address, then by pattern: Shell's sort, which needs no memory and little where little is out
 * of order. */
static void sort(struct fastdump_hit *hits, uint64_t count) {
    static const uint64_t gaps[] = {8929, 3905, 2161, 929, 505, 209, 109, 41, 19, 5, 1};
    for (size_t g = 0; g < sizeof gaps / sizeof *gaps; g++)
        for (uint64_t gap = gaps[g], i = gap; i < count; i++) {
            struct fastdump_hit hit = hits[i];
            uint64_t to = i;
            for (; to >= gap && is_before(&hit, &hits[to - gap]); to -= gap)
                hits[to] = hits[to - gap];
            hits[to] = hit;
        }
}

/* The positions [start, end) of the buffer, of which the bytes up to valid are there. */
static void search_positions(struct fastdump_search *search, uint64_t origin, uint64_t start,
                             uint64_t end, uint64_t valid) {
    if (search->own_end <= origin + start)
        return;
    if (search->own_start > origin + start)
        start = search->own_start - origin;
    if (search->own_end < origin + end)
        end = search->own_end - origin;
    while (start < end) {
        uint64_t count = end - start < STRIP ? end - start : STRIP, used = search->used;
        struct strip strip = {search->buffer + start, origin + start, count, valid - start};
        take_anchored(search, &strip);
        if (search->stride)
            take_windows(search, &strip);
        take_pointers(search, &strip);
        if (search->hits && search->used - used > 1)
            sort(search->hits + used, search->used - used);
        start += count;
    }
}

void fastdump_search_chunk(struct fastdump_search *search, uint64_t address, uint64_t length) {
    uint64_t start = FASTDUMP_HEAD - search->kept, valid = FASTDUMP_HEAD + length;
    uint64_t wait = search->longest - 1, have = search->kept + length;
    wait = wait < have ? wait : have;
    search_positions(search, address - FASTDUMP_HEAD, start, valid - wait, valid);
    memmove(search->buffer + FASTDUMP_HEAD - wait, search->buffer + valid - wait, wait);
    search->kept = wait;
    search->next = address + length;
}

void fastdump_search_zeros(struct fastdump_search *search, uint64_t address, uint64_t length) {
    /* Of those in the middle, of which no pattern reaches an end, no more is needed. */
    uint64_t most = 2 * search->longest, part = length < most ? length : most;
    memset(search->buffer + FASTDUMP_HEAD, 0, part);
    fastdump_search_chunk(search, address, part);
    search->next = address + length;
}

void fastdump_search_end(struct fastdump_search *search) {
    if (search->begun)
        search_positions(search, search->next - FASTDUMP_HEAD, FASTDUMP_HEAD - search->kept,
                         FASTDUMP_HEAD, FASTDUMP_HEAD);
    search->begun = 0;
    search->kept = 0;
}

void fastdump_search_begin(struct fastdump_search *search) {
    search->begun = 0;
    search->kept = 0;
}

bool fastdump_search_go_on(struct fastdump_search *search, uint64_t address, uint64_t region) {
    if (search->begun && region == search->region && address == search->next)
        return true;
    fastdump_search_end(search);
    search->begun = 1;
    search->region = region;
    search->next = address;
    return false;
}

bool fastdump_search_full(const struct fastdump_search *search) {
    return search->hits && search->used + 4 * search->room > search->capacity;
}

bool fastdump_search_open(const struct fastdump_search *search) {
    return search->begun && search->next - search->kept < search->own_end;
}

int64_t fastdump_search_bytes(struct fastdump_search *search, const void *data, uint64_t length,
                              uint64_t address, uint64_t region, int32_t last) {
    const unsigned char *bytes = data;
    uint64_t done = 0;
    while (done < length && !fastdump_search_full(search)) {
        uint64_t part = length - done < search->size ? length - done : search->size;
        fastdump_search_go_on(search, address + done, region);
        memcpy(search->buffer + FASTDUMP_HEAD, bytes + done, part);
        fastdump_search_chunk(search, address + done, part);
        done += part;
    }
    if (last && done == length)
        fastdump_search_end(search);
    return (int64_t)done;
}
