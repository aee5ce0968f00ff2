/*
 * What the words of memory point to: into modules, to types, to chunks of the heap. Looked at once,
 * while they are in the cache; what is found is kept, for owners.c.
 *
 * Most words point nowhere near. So a kernel looks at their upper halves first: whether these are
 * those of an address in at most three windows. Only such words are held against the windows.
 */
#include <string.h>

#include "words.h"

/* --- pages ------------------------------------------------------------------------------ */

#define PAGE_WORDS (FASTDUMP_CLASS_PAGE / 8)
#define LINE_WORDS 8
#define LINES 8
#define SAMPLES (LINES * LINE_WORDS)

#define HIGH 0x8080808080808080u /* of each byte */
#define ALL 0x0101010101010101u

/* Whether every fourth sample has at least so many different bytes: of 128 random ones 101. */
static inline bool has_different_bytes(const uint64_t *samples, int least) {
    int count = 1; /* zero */
    for (int i = 0; i < SAMPLES; i += 4)
        count += __builtin_popcountll((((samples[i] & ~HIGH) + ~HIGH) | samples[i]) & HIGH);
    if (count < least)
        return false;
    uint64_t rows[32] = {0};
    unsigned char *seen = (unsigned char *)rows;
    for (int i = 0; i < SAMPLES; i += 4)
        for (int byte = 0; byte < 64; byte += 8)
            seen[samples[i] >> byte & 0xff] = 1;
    count = 0;
    for (int i = 0; i < 32; i++)
        count += __builtin_popcountll(rows[i]);
    return count >= least;
}

/* By every ninth cache line, so that no power of 2 repeats in them: what a page of 4 KiB holds. */
CLONED
static int page_class(const uint64_t *words) {
    uint64_t samples[SAMPLES], zero = 0, pointers = 0, text = 0;
    for (int line = 0; line < LINES; line++)
        memcpy(samples + line * LINE_WORDS, words + line * 9 * LINE_WORDS, LINE_WORDS * 8);
    for (int i = 0; i < SAMPLES; i++) {
        uint64_t word = samples[i];
        zero += word == 0;
        pointers += !(word & 0xffff800000000007) & ((int64_t)word > UINT32_MAX);
        /* Where a byte carries into the next one, it is above 0x7f. */
        text += ((word + ALL * (0x80 - 0x20)) & ~word & HIGH) == HIGH;
    }
    if (zero == SAMPLES) {
        for (int i = 0; i < PAGE_WORDS; i++)
            if (words[i])
                return FASTDUMP_PAGE_OTHER;
        return FASTDUMP_PAGE_ZERO;
    }
    if (pointers * 4 >= SAMPLES)
        return FASTDUMP_PAGE_POINTERS;
    if (text * 2 >= SAMPLES - zero && text * 4 >= SAMPLES)
        return FASTDUMP_PAGE_TEXT;
    return has_different_bytes(samples, 73) ? FASTDUMP_PAGE_ENTROPY : FASTDUMP_PAGE_OTHER;
}

/* Two neighbours become one. */
static void halve_cells(struct fastdump_words *words) {
    words->cell_count /= 2;
    words->cell_pages *= 2;
    for (uint64_t i = 0; i < words->cell_count; i++) {
        struct fastdump_cell cell = words->cells[2 * i], *other = &words->cells[2 * i + 1];
        cell.count += other->count;
        for (int class = 0; class < FASTDUMP_PAGE_CLASSES; class ++)
            cell.pages[class] += other->pages[class];
        words->cells[i] = cell;
    }
}

static void enter_page(struct fastdump_words *words, int class, uint64_t address) {
    uint64_t last = words->cell_count - 1;
    if (!words->cell_count || words->cells[last].count == words->cell_pages) {
        if (words->cell_count == words->cell_capacity)
            halve_cells(words);
        last = words->cell_count++;
        words->cells[last] = (struct fastdump_cell){.address = address};
    }
    words->cells[last].count++;
    words->cells[last].pages[class]++;
    words->pages[class]++;
}

/* --- blocks ----------------------------------------------------------------------------- */

/* Where the words of a block go, while there are at most so many: the strip that exceeds it is the
 * last one, and has WORDS_STRIP more of each kind at the most. */
struct found {
    uint64_t most;
    uint64_t *heap;
    uint64_t *modules;
    uint64_t heap_count;
    uint64_t module_count;
};

/* heap: so many into the heap at the most, before that strip. */
static struct found found_begin(uint64_t *to, uint64_t heap, uint64_t most) {
    return (struct found){.most = most, .heap = to, .modules = to + heap + WORDS_STRIP};
}

/* The words of a strip, the first of which has index first, that lie in the windows. */
CLONED
static void find_in(const struct fastdump_words *words, const uint64_t *strip, uint64_t count,
                    uint64_t first, struct found *found) {
    if (found->heap_count + found->module_count > found->most)
        return;
    uint32_t near[WORDS_STRIP + NEAR_SLACK];
    const struct fastdump_windows modules = fastdump_windows_in(words->module_windows),
                                  heap = fastdump_windows_in(words->heap_windows);
    uint64_t all = fastdump_near_of(words->kernel)(words->windows, strip, count, near);
    uint64_t *to_heap = found->heap + found->heap_count;
    uint64_t *to_modules = found->modules + found->module_count;
    for (uint64_t i = 0; i < all; i++) {
        uint64_t word = strip[near[i]], kept = fastdump_kept_word(word, first + near[i]);
        *to_heap = *to_modules = kept; /* no branch, which would be guessed wrong */
        to_heap += fastdump_is_in(heap.range, word);
        to_modules += fastdump_is_in(modules.range, word);
    }
    found->heap_count = (uint64_t)(to_heap - found->heap);
    found->module_count = (uint64_t)(to_modules - found->modules);
}

/* The words lie one behind the other. */
static struct fastdump_block found_end(const struct found *found, uint64_t address,
                                       uint64_t length) {
    bool keep = found->heap_count + found->module_count <= found->most;
    if (keep)
        memmove(found->heap + found->heap_count, found->modules, found->module_count * 8);
    return (struct fastdump_block){
        .address = address,
        .length = (uint32_t)length,
        .count = keep ? (uint32_t)found->heap_count : FASTDUMP_TOO_MANY,
        .modules = keep ? (uint32_t)found->module_count : 0,
    };
}

static uint64_t strip_of(uint64_t length, uint64_t at) {
    return length / 8 - at < WORDS_STRIP ? length / 8 - at : WORDS_STRIP;
}

_Static_assert(FASTDUMP_FIND_SLACK >= 2 * WORDS_STRIP, "what a strip has more, of each kind");

void fastdump_words_find(const struct fastdump_words *words, const void *data, uint64_t length,
                         uint64_t address, uint64_t *found_ret, struct fastdump_block *block_ret) {
    const uint64_t *all = data;
    struct found found = found_begin(found_ret, length / 8, 2 * (length / 8));
    for (uint64_t at = 0; at < length / 8; at += WORDS_STRIP)
        find_in(words, all + at, strip_of(length, at), at, &found);
    *block_ret = found_end(&found, address, length);
}

/* Walk the chunks of the segments that a block lies in, if the walk has come so far. */
static void walk_chunks(const struct fastdump_heap *heap, const void *data, uint64_t length,
                        uint64_t address) {
    uint64_t low = 0, high = heap->count, end = address + length;
    while (low < high) {
        uint64_t middle = (low + high) / 2;
        if (heap->segments[middle]->start < end)
            low = middle + 1;
        else
            high = middle;
    }
    for (; low && heap->segments[low - 1]->end > address; low--) {
        struct fastdump_segment *segment = heap->segments[low - 1];
        if (segment->begins && !segment->walked && segment->next >= address &&
            segment->next + FASTDUMP_CHUNK_HEADER <= end)
            fastdump_segment_walk(segment, data, length, address);
    }
}

void fastdump_words_block(struct fastdump_words *words, const void *data, uint64_t length,
                          uint64_t address) {
    const uint64_t *all = data;
    uint64_t most = length / 8 / 16;
    struct found found = found_begin(words->kept + words->kept_used, most, most);
    walk_chunks(&words->heap, data, length, address);
    if (words->types)
        fastdump_types_feed(words->types, data, length, address);
    for (uint64_t at = 0; at < length / 8; at += WORDS_STRIP) { /* while it is in the cache */
        uint64_t count = strip_of(length, at);
        if (words->cell_capacity)
            for (uint64_t page = at; page + PAGE_WORDS <= at + count; page += PAGE_WORDS)
                enter_page(words, page_class(all + page), address + page * 8);
        find_in(words, all + at, count, at, &found);
    }
    struct fastdump_block block = found_end(&found, address, length);
    words->blocks[words->blocks_used++] = block;
    words->kept_used += block.count == FASTDUMP_TOO_MANY ? 0 : block.count + block.modules;
}

struct fastdump_range fastdump_kept_run(const struct fastdump_kept *kept, uint64_t *block) {
    const struct fastdump_block *blocks = kept->blocks;
    uint64_t end = blocks[*block].address;
    struct fastdump_range run = {.start = end};
    while (*block < kept->count && blocks[*block].address == end)
        end += blocks[(*block)++].length;
    run.end = end;
    return run;
}

/* A buffer becomes several blocks where pages of it cannot be read. */
bool fastdump_words_full(const struct fastdump_words *words) {
    return words->blocks_capacity - words->blocks_used < words->size / FASTDUMP_CLASS_PAGE + 4 ||
           words->kept_capacity - words->kept_used < 4 * (words->size / 8 / 16) + 2 * WORDS_STRIP;
}

uint64_t fastdump_words_bytes(struct fastdump_words *words, const void *data, uint64_t length,
                              uint64_t address) {
    const unsigned char *bytes = data;
    uint64_t done = 0;
    while (done < length && !fastdump_words_full(words)) {
        uint64_t part = length - done < words->size ? length - done : words->size;
        fastdump_words_block(words, bytes + done, part, address + done);
        done += part;
    }
    return done;
}
