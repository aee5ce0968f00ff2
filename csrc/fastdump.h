/* Shared by the C files; the public declarations are in api.h. */
#ifndef FASTDUMP_H
#define FASTDUMP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api.h"

/*
 * Compiled twice, and chosen when the program is loaded: for what has no kernel of its own, but
 * counts bits, looks for them, or is a loop that the compiler makes vector code. Not by clang,
 * whose clones (of 14) have a name that other files do not find.
 */
#if !defined(__x86_64__) || !defined(__GLIBC__) || defined(__clang__)
#define CLONED
#elif __GNUC__ >= 12
#define CLONED __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define CLONED __attribute__((target_clones("avx2", "default")))
#endif

/* What the page tables say of a run of pages. */
enum fastdump_kind {
    KIND_ABSENT,
    KIND_PRESENT,
    KIND_FILE, /* present, and the same as in the mapped file */
    KIND_ZERO, /* the zero page */
    KIND_SWAPPED,
    KIND_GUARD,
};

struct fastdump_extent {
    uint64_t start;
    uint64_t end;
    uint64_t kind;
};

#define EXTENT_BATCH 256

/* A walk over [position, end): extents come in address order and leave no hole. */
struct fastdump_extents {
    const struct fastdump_target *target;
    uint64_t position;
    uint64_t end;
    uint64_t scanned; /* batch tells all that lies before this address */
    bool want_file;   /* tell KIND_FILE from KIND_PRESENT: three times slower on 6.18 */
    uint32_t next;
    uint32_t count;
    struct fastdump_extent batch[EXTENT_BATCH];
};

void fastdump_extents_begin(struct fastdump_extents *walk, const struct fastdump_target *target,
                            uint64_t start, uint64_t end, bool want_file);

/* 1: *extent_ret is the next extent, of the same kind throughout; 0: the end; or -errno. */
int64_t fastdump_extents_next(struct fastdump_extents *walk, struct fastdump_extent *extent_ret);

/* Whether all of a range could be read from one of the slices, which are in address order. */
bool fastdump_read_range(const struct fastdump_target *target, const struct fastdump_slice *slices,
                         uint64_t count, const struct fastdump_range *range, void *buffer_ret);

#endif
