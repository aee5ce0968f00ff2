/* Objects of CPython: by words that point to types, behind a plausible count of references. */
#include "words.h"

#define MOST_ITEMS (1ull << 40)
#define SMALL_TABLE 8 /* PySet_MINSIZE, PyDict_MINSIZE */
/* Programs without PIE begin there: smaller numbers are no pointers. */
#define LEAST_POINTER 0x400000

/* A count of 32 bits; above it 3.14 has flags, and freed memory of pymalloc a pointer. */
static inline bool is_plausible(uint64_t references) {
    return (uint32_t)references && !(references >> 32 & 0xffff) && references >> 48 < 256;
}

uint64_t fastdump_type_home(const struct fastdump_types *types, uint64_t address) {
    uint64_t mask = types->capacity - 1, at = (address >> 4) * 0x9e3779b97f4a7c15u >> 20 & mask;
    while (types->types[at].address != address && types->types[at].address)
        at = (at + 1) & mask;
    return at;
}

static inline bool is_type(const struct fastdump_types *types, uint64_t word) {
    return fastdump_is_in(types->windows, word) &&
           types->types[fastdump_type_home(types, word)].address;
}

/* What a type hashes to: an entry of a dict has it before its key, one of a set behind it. */
static inline uint64_t hash_of(uint64_t type) { return type >> 4 | type << 60; }

/* Whether there is room for so many items, if they are more than Python itself has anywhere but in
 * the heap: without PIE a pointer looks like their number. */
static bool fits(const struct fastdump_types *types, uint64_t address, uint64_t items) {
    if (items < LEAST_POINTER || !types->heap.count)
        return true;
    struct fastdump_place place = {.end = 0};
    fastdump_move_to(&place, &types->heap, address);
    return place.segment && place.live && items <= place.end + 8 - address;
}

/* Whether its items lie in the object: characters of a str do if it is compact. */
static inline bool has_items(uint32_t sizing, uint64_t state) {
    return sizing == FASTDUMP_SIZE_VAR || sizing == FASTDUMP_SIZE_TAG ||
           (sizing == FASTDUMP_SIZE_STR && state >> 5 & 1);
}

/* What ma_keys of a dict takes, or else ma_values, if it has grown to ma_used without deletions. */
static uint64_t dict_bytes(const struct fastdump_types *types, uint64_t used, uint64_t keys,
                           uint64_t values) {
    if (!keys || keys % 8 || keys >> 48)
        return 0; /* no dict */
    if (!used && (values || !types->dict_value))
        return 0; /* keys are static, and to 3.10 values too: without them it has a table */
    uint64_t slots = SMALL_TABLE;
    while (slots * 2 / 3 < used)
        slots *= 2;
    if (values)
        return slots * 2 / 3 * types->dict_value;
    uint64_t index = slots < 1u << 8 ? 1 : slots < 1u << 16 ? 2 : slots < 1ull << 32 ? 4 : 8;
    return types->dict_header + slots * index + slots * 2 / 3 * types->dict_entry;
}

/* The word at an index may be what an object of a type has behind its count of references. */
static void count_object(struct fastdump_types *types, const uint64_t *found, uint64_t count,
                         uint64_t at, uint64_t address) {
    uint64_t target = found[at];
    if (!at || !fastdump_is_in(types->windows, target) || !is_plausible(found[at - 1]))
        return;
    if (fastdump_is_in(types->windows, found[at - 1]))
        return; /* a pointer: a program without PIE has its types below 4 GiB */
    struct fastdump_type *type = &types->types[fastdump_type_home(types, target)];
    if (!type->address)
        return;
    if (!fastdump_is_at(&types->place, address + at * 8))
        fastdump_move_to(&types->place, &types->heap, address + at * 8);
    if (!types->place.live)
        return;
    bool cut = at + 4 > count; /* what follows lies in the next buffer */
    uint64_t size = cut ? 0 : found[at + 1], state = cut ? 0 : found[at + 3];
    if (found[at - 1] == hash_of(target) || size == hash_of(target))
        return; /* a key of a dict or a set */
    if ((int64_t)size < 0)
        size = -size;
    if (type->sizing != FASTDUMP_SIZE_FIXED && (size >= MOST_ITEMS || is_type(types, size)))
        return; /* a tuple of types looks like an object but for that */
    uint64_t items = type->sizing == FASTDUMP_SIZE_TAG ? size >> 3 : size;
    if (has_items(type->sizing, state) && !fits(types, address + at * 8, items))
        return;
    if (type->sizing == FASTDUMP_SIZE_LIST && !fits(types, cut ? 0 : found[at + 2], size))
        size = 0;
    if (type->sizing == FASTDUMP_SIZE_DICT && !fits(types, state, size))
        size = 0;
    type->count++;
    type->example = address + at * 8 - 8;
    types->total++;
    if (types->places_found < types->places_capacity)
        types->places[types->places_found++] = type->example;
    switch (type->sizing) {
    case FASTDUMP_SIZE_VAR:
        type->items += size;
        break;
    case FASTDUMP_SIZE_LIST: /* allocated: list_resize() leaves no more room than that */
        type->items += state <= 2 * size + 8 ? state : size;
        break;
    case FASTDUMP_SIZE_SET: /* mask: a power of 2, less 1 */
        if (state >= SMALL_TABLE && state < MOST_ITEMS && !(state & (state + 1)))
            type->items += state + 1;
        break;
    case FASTDUMP_SIZE_DICT:
        if (at + 4 < count)
            type->items += dict_bytes(types, size, state, found[at + 4]);
        break;
    case FASTDUMP_SIZE_TAG: /* int since 3.12 */
        type->items += size >> 3;
        break;
    case FASTDUMP_SIZE_STR: /* compact and ASCII are the bits 5 and 6 of its state */
        type->items += has_items(type->sizing, state)
                           ? (size + 1) * (state >> 2 & 7) +
                                 ((state >> 6 & 1) ? 0 : types->str_wide - types->str_ascii)
                           : types->str_wide - types->str_ascii;
        break;
    }
}

void fastdump_types_feed(struct fastdump_types *types, const void *data, uint64_t length,
                         uint64_t address) {
    const uint64_t *found = data;
    uint64_t count = length / 8;
    uint32_t near[WORDS_STRIP + NEAR_SLACK];
    for (uint64_t strip = 0; strip < count; strip += WORDS_STRIP) {
        uint64_t left = count - strip < WORDS_STRIP ? count - strip : WORDS_STRIP;
        uint64_t all = fastdump_near_of(types->kernel)(types->windows, found + strip, left, near);
        for (uint64_t i = 0; i < all; i++)
            count_object(types, found, count, strip + near[i], address);
    }
}
