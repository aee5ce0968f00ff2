// A plugin without any vtable: leak(bytes) keeps lists of records, which have buffers.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct record {
    struct record *next;
    const char *kind;
    char *buffer;
    uint64_t size;
};

static struct record *first;

// Returns the bytes of all chunks that it keeps now; malloc's headers come on top.
uint64_t leak(uint64_t bytes, uint64_t seed);
uint64_t leak(uint64_t bytes, uint64_t seed) {
    uint64_t kept = 0;
    while (kept < bytes) {
        struct record *record = malloc(sizeof *record);
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        uint64_t size = 24 + (seed >> 40) % 3000;
        *record = (struct record){first, "a record of a plugin", malloc(size), size};
        memset(record->buffer, 0xa5, size);
        first = record;
        kept += sizeof *record + size;
    }
    return kept;
}
