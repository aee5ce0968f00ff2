/*
 * Which strings take the most memory: a table of those that are equal, or alike but for numbers.
 *
 * Memory is bounded, the number of different strings in a heap is not. When the table is three
 * quarters full, the half with the fewest bytes is evicted ("lossy counting", Manku and Motwani,
 * VLDB 2002): a string that comes again begins at 0, so no total is low by more than
 * the sum of the largest evicted ones, which is kept (error). What tops the list is far above it.
 *
 * A string is known by a hash of 64 bits of its text, of at most its first 64 KiB. Its entry
 * is most likely not in the cache: 32 strings wait while their entries are fetched.
 */
#include <string.h>

#include "scan.h"

#define TEMPLATE_MOST 4096 /* characters of which a template is made */
#define EXACT_MOST FASTDUMP_HEAD
#define QUEUE FASTDUMP_TALLIED_QUEUE
#define TEXT FASTDUMP_TALLIED_TEXT

/* --- templates -------------------------------------------------------------------------- */

static inline bool is_digit(unsigned char c) { return c >= '0' && c <= '9'; }

static inline bool is_hex_letter(unsigned char c) {
    return (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

static inline bool is_hex(unsigned char c) { return is_digit(c) || is_hex_letter(c); }

/* The high bit of each of 8 bytes that is a digit. Bytes above 0x7f are none. */
static inline uint64_t digits_in(uint64_t word) {
    const uint64_t high = 0x8080808080808080u, all = 0x0101010101010101u;
    uint64_t low = word & ~high;
    uint64_t at_least_0 = low + all * (0x80 - '0'), above_9 = low + all * (0x80 - '9' - 1);
    return at_least_0 & ~above_9 & ~word & high;
}

/* xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx */
static bool is_uuid(const unsigned char *text, uint64_t length) {
    if (length < 36)
        return false;
    for (int i = 0; i < 36; i++)
        if (i == 8 || i == 13 || i == 18 || i == 23 ? text[i] != '-' : !is_hex(text[i]))
            return false;
    return true;
}

/*
 * Text with a # for each number: a UUID, a run of 8 hexadecimal digits or more with a decimal one
 * among them, hexadecimal digits behind 0x, else decimal digits. Returns its length; to has room
 * for length + 8.
 */
static uint64_t make_template(const unsigned char *text, uint64_t length, unsigned char *to) {
    uint64_t i = 0, filled = 0, behind = 0; /* behind: the last number */
    while (i < length) {
        uint64_t word = 0, part = length - i < 8 ? length - i : 8;
        if (part == 8)
            memcpy(&word, text + i, 8);
        else
            memcpy(&word, text + i, part);
        memcpy(to + filled, &word, 8);
        uint64_t digits = digits_in(word);
        if (!digits) {
            i += part;
            filled += part;
            continue;
        }
        uint64_t before = (uint64_t)__builtin_ctzll(digits) / 8;
        i += before;
        filled += before;
        uint64_t start = i, end = i + 1;
        while (start > behind && is_hex_letter(text[start - 1]))
            start--;
        while (end < length && is_hex(text[end]))
            end++;
        if (end - start >= 8) {
            if (end - start == 8 && is_uuid(text + start, length - start))
                end = start + 36;
            filled -= i - start;
        } else if (text[i] == '0' && end == i + 1 && end + 1 < length &&
                   (text[end] | 0x20) == 'x' && is_hex(text[end + 1])) {
            end += 2;
            while (end < length && is_hex(text[end]))
                end++;
        } else {
            end = i + 1;
            while (end < length && is_digit(text[end]))
                end++;
        }
        to[filled++] = '#';
        i = behind = end;
    }
    return filled;
}

/* --- keys ------------------------------------------------------------------------------- */

/* Folded multiplication, as of wyhash (public domain): 16 bytes in 3 cycles. */
static inline uint64_t mix(uint64_t a, uint64_t b) {
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static uint64_t hash(const unsigned char *text, uint64_t length) {
    const uint64_t k0 = 0xa0761d6478bd642fu, k1 = 0xe7037ed1a0b428dbu;
    uint64_t value = length ^ k1, words[2];
    uint64_t at = 0;
    for (; length - at > 16; at += 16) {
        memcpy(words, text + at, 16);
        value = mix(words[0] ^ k0, words[1] ^ value);
    }
    words[0] = words[1] = 0;
    memcpy(words, text + at, length - at);
    value = mix(words[0] ^ k0, words[1] ^ value);
    return mix(value ^ k0, length ^ k1);
}

/* --- the table -------------------------------------------------------------------------- */

static inline uint64_t home(const struct fastdump_table *table, uint64_t key) {
    return key & (table->capacity - 1);
}

/* Free an entry: those behind it that it kept from their places move up (linear probing). */
static void remove_entry(struct fastdump_table *table, uint64_t at) {
    uint64_t mask = table->capacity - 1, next = at;
    for (;;) {
        next = (next + 1) & mask;
        if (table->entries[next].count == 0)
            break;
        if (((next - home(table, table->entries[next].key)) & mask) >= ((next - at) & mask)) {
            table->entries[at] = table->entries[next];
            memcpy(table->texts + at * TEXT, table->texts + next * TEXT, TEXT);
            at = next;
        }
    }
    table->entries[at].count = 0;
    table->used--;
}

static void evict(struct fastdump_table *table) {
    uint64_t classes[64] = {0}, sum = 0, limit, most = 0;
    for (uint64_t i = 0; i < table->capacity; i++)
        if (table->entries[i].count)
            classes[63 - __builtin_clzll(table->entries[i].bytes | 1)]++;
    int bits = 0;
    while ((sum += classes[bits]) < table->used / 2)
        bits++;
    limit = bits < 62 ? 2ull << bits : UINT64_MAX;
    for (uint64_t i = 0; i < table->capacity; i++)
        while (table->entries[i].count && table->entries[i].bytes < limit) {
            if (table->entries[i].bytes > most)
                most = table->entries[i].bytes;
            remove_entry(table, i);
            table->evicted++;
        }
    table->error += most;
}

static void add_region(struct fastdump_tallied *entry, uint64_t region) {
    for (int i = 0; i < 4; i++) {
        if (entry->regions[i] == region + 1)
            return;
        if (entry->regions[i] == 0) {
            entry->regions[i] = (uint32_t)region + 1;
            return;
        }
    }
    entry->more = 1;
}

/* The entry of a key, made if it is new. */
static struct fastdump_tallied *entry_of(struct fastdump_table *table, uint64_t key,
                                         uint64_t address, const unsigned char *text,
                                         uint64_t text_length) {
    uint64_t mask = table->capacity - 1, at = home(table, key);
    while (table->entries[at].count) {
        if (table->entries[at].key == key)
            return &table->entries[at];
        at = (at + 1) & mask;
    }
    if (table->used >= table->capacity / 4 * 3) {
        evict(table);
        for (at = home(table, key); table->entries[at].count;)
            at = (at + 1) & mask;
    }
    table->used++;
    struct fastdump_tallied *entry = &table->entries[at];
    *entry = (struct fastdump_tallied){.key = key, .address = address, .text_length = text_length};
    memcpy(table->texts + at * TEXT, text, text_length < TEXT ? text_length : TEXT);
    return entry;
}

static void enter(struct fastdump_table *table, const struct fastdump_tallied *found,
                  const unsigned char *text) {
    struct fastdump_tallied *entry =
        entry_of(table, found->key, found->address, text, found->text_length);
    entry->bytes += found->bytes;
    entry->count += found->count;
    if (found->address < entry->address)
        entry->address = found->address;
    for (int i = 0; i < 4 && found->regions[i]; i++)
        add_region(entry, found->regions[i] - 1);
    entry->more |= found->more;
}

void fastdump_table_settle(struct fastdump_table *table) {
    for (int i = 0; i < table->queued; i++)
        enter(table, &table->queue[i], table->queue_texts + i * TEXT);
    table->queued = 0;
}

/* What a string is known by, into text: at least TEXT bytes of it; its key. */
static uint64_t key_of(const struct fastdump_table *table, const unsigned char *from,
                       uint64_t length, uint64_t region, unsigned char *text,
                       uint64_t *text_length_ret) {
    uint64_t key;
    if (table->exact) {
        memcpy(text, from, length < TEXT ? length : TEXT);
        *text_length_ret = length;
        key = hash(from, length < EXACT_MOST ? length : EXACT_MOST);
    } else {
        unsigned char large[TEMPLATE_MOST + 8];
        bool fits = length + 8 <= TEXT;
        unsigned char *made = fits ? text : large;
        *text_length_ret =
            make_template(from, length < TEMPLATE_MOST ? length : TEMPLATE_MOST, made);
        if (!fits)
            memcpy(text, large, TEXT);
        key = hash(made, *text_length_ret);
    }
    return table->groups ? mix(key, table->groups[region] + 1ull) : key;
}

void fastdump_table_add(struct fastdump_table *table, const unsigned char *text,
                        uint64_t text_length, uint64_t bytes, uint64_t address, uint64_t region) {
    struct fastdump_tallied *found = &table->queue[table->queued];
    *found = (struct fastdump_tallied){
        .bytes = bytes, .count = 1, .address = address, .regions = {(uint32_t)region + 1}};
    found->key = key_of(table, text, text_length, region, table->queue_texts + table->queued * TEXT,
                        &found->text_length);
    __builtin_prefetch(&table->entries[home(table, found->key)], 1);
    if (++table->queued == QUEUE)
        fastdump_table_settle(table);
}

uint64_t fastdump_table_key(struct fastdump_table *table, const unsigned char *text,
                            uint64_t text_length, uint64_t address, uint64_t region) {
    fastdump_table_settle(table);
    unsigned char kept[TEXT];
    uint64_t kept_length;
    uint64_t key = key_of(table, text, text_length, region, kept, &kept_length);
    struct fastdump_tallied none = {.key = key, .address = address, .text_length = kept_length};
    /* Entered with its first bytes, or it would be a free entry. */
    none.count = 1;
    none.bytes = 0;
    enter(table, &none, kept);
    return key;
}

void fastdump_table_add_key(struct fastdump_table *table, uint64_t key, uint64_t bytes,
                            uint64_t region) {
    static const unsigned char nothing[TEXT];
    struct fastdump_tallied *entry = entry_of(table, key, 0, nothing, 0);
    entry->bytes += bytes;
    entry->count += entry->count == 0; /* it was evicted meanwhile */
    add_region(entry, region);
}

void fastdump_table_merge(struct fastdump_table *table, const struct fastdump_table *from) {
    /* In strides: in the order of their places, the first ones would pile up at the first places.
     */
    for (uint64_t i = 0; i < from->capacity; i++) {
        uint64_t at = i * 0x9e3779b1u & (from->capacity - 1);
        if (from->entries[at].count)
            enter(table, &from->entries[at], from->texts + at * TEXT);
    }
    table->evicted += from->evicted;
    table->error += from->error;
}

/* Whether entry a comes before entry b: more bytes, then the lower address. */
static bool is_before(const struct fastdump_table *table, uint64_t a, uint64_t b) {
    const struct fastdump_tallied *x = &table->entries[a], *y = &table->entries[b];
    return x->bytes != y->bytes ? x->bytes > y->bytes : x->address < y->address;
}

int64_t fastdump_table_top(const struct fastdump_table *table, uint64_t count,
                           uint64_t *indexes_ret) {
    uint64_t length = 0;
    for (uint64_t i = 0; i < table->capacity && count; i++) {
        if (!table->entries[i].count ||
            (length == count && !is_before(table, i, indexes_ret[length - 1])))
            continue;
        uint64_t at = length < count ? length++ : count - 1;
        for (; at > 0 && is_before(table, i, indexes_ret[at - 1]); at--)
            indexes_ret[at] = indexes_ret[at - 1];
        indexes_ret[at] = i;
    }
    return (int64_t)length;
}
