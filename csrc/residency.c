/*
 * Which pages hold data, from the page tables alone: no page is touched.
 *
 * Reading a never-touched private page maps the zero page into the target (its page
 * tables grow), reading a never-touched shared page allocates it. So every read asks
 * here first. PAGEMAP_SCAN (Linux 6.7) skips what is not mapped in 2 MiB steps or more;
 * before it, /proc/PID/pagemap gives 8 bytes a page. Both need only the right to read
 * the memory. See Documentation/admin-guide/mm/pagemap.rst in the kernel.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "fastdump.h"

/* <linux/fs.h> of Linux 6.7, which older distributions (Debian 12) do not ship. */
struct page_region {
    uint64_t start;
    uint64_t end;
    uint64_t categories;
};
struct pm_scan_arg {
    uint64_t size;
    uint64_t flags;
    uint64_t start;
    uint64_t end;
    uint64_t walk_end;
    uint64_t vec;
    uint64_t vec_len;
    uint64_t max_pages;
    uint64_t category_inverted;
    uint64_t category_mask;
    uint64_t category_anyof_mask;
    uint64_t return_mask;
};
_Static_assert(sizeof(struct page_region) == sizeof(struct fastdump_extent),
               "the kernel fills the extents in place");
#define SCAN_PAGES _IOWR('f', 16, struct pm_scan_arg)
#define CATEGORY_FILE (1u << 2)
#define CATEGORY_PRESENT (1u << 3)
#define CATEGORY_SWAPPED (1u << 4)
#define CATEGORY_PFNZERO (1u << 5)
#define CATEGORY_GUARD (1u << 8) /* Linux 6.15 */

#define PAGEMAP_PRESENT (1ull << 63)
#define PAGEMAP_SWAPPED (1ull << 62)
#define PAGEMAP_FILE (1ull << 61)
#define PAGEMAP_GUARD (1ull << 58) /* Linux 6.14 */

static uint64_t kind_of(bool present, bool swapped, bool zero, bool file, bool guard) {
    /* A guard page is a marker in the page table, which older interfaces call swapped. */
    if (guard)
        return KIND_GUARD;
    if (zero)
        return KIND_ZERO;
    if (present)
        return file ? KIND_FILE : KIND_PRESENT;
    return swapped ? KIND_SWAPPED : KIND_ABSENT;
}

/* Append, or lengthen the last extent where the kind is the same. False when full. */
static bool append(struct fastdump_extents *walk, uint64_t start, uint64_t end, uint64_t kind) {
    struct fastdump_extent *last = walk->count ? &walk->batch[walk->count - 1] : NULL;
    if (last && last->end == start && last->kind == kind) {
        last->end = end;
        return true;
    }
    if (walk->count == EXTENT_BATCH)
        return false;
    walk->batch[walk->count++] = (struct fastdump_extent){start, end, kind};
    return true;
}

static int64_t scan(struct fastdump_extents *walk) {
    struct pm_scan_arg arg = {
        .size = sizeof arg,
        .start = walk->position,
        .end = walk->end,
        .vec = (uint64_t)(uintptr_t)walk->batch,
        .vec_len = EXTENT_BATCH,
        .category_anyof_mask = CATEGORY_PRESENT | CATEGORY_SWAPPED,
        .return_mask = CATEGORY_PRESENT | CATEGORY_SWAPPED | CATEGORY_PFNZERO | CATEGORY_GUARD |
                       (walk->want_file ? CATEGORY_FILE : 0),
    };
    int count = ioctl(walk->target->pagemap, SCAN_PAGES, &arg);
    if (count < 0 && errno == EINVAL) { /* before 6.15: no guard category */
        arg.return_mask &= ~(uint64_t)CATEGORY_GUARD;
        count = ioctl(walk->target->pagemap, SCAN_PAGES, &arg);
    }
    if (count < 0)
        return -errno;
    /*
     * With more than 512 ranges walk_end may come back behind the ranges returned
     * (seen on 6.18), so trust the last range when the vector is full.
     */
    walk->scanned = count == EXTENT_BATCH ? walk->batch[count - 1].end : walk->end;
    for (int i = 0; i < count; i++) {
        uint64_t c = walk->batch[i].kind;
        walk->batch[i].kind = kind_of(c & CATEGORY_PRESENT, c & CATEGORY_SWAPPED,
                                      c & CATEGORY_PFNZERO, c & CATEGORY_FILE, c & CATEGORY_GUARD);
    }
    walk->count = (uint32_t)count;
    return 0;
}

static int64_t read_pagemap(struct fastdump_extents *walk) {
    uint64_t entries[1024], page = walk->target->page_size;
    uint64_t position = walk->position;
    walk->count = 0;
    while (position < walk->end) {
        uint64_t want = (walk->end - position) / page;
        if (want > sizeof entries / sizeof *entries)
            want = sizeof entries / sizeof *entries;
        ssize_t got = pread(walk->target->pagemap, entries, want * sizeof *entries,
                            (off_t)(position / page * sizeof *entries));
        if (got < 0)
            return -errno;
        if (got == 0) /* the mm is dead, or the address is past the task's end */
            break;
        for (size_t i = 0; i < (size_t)got / sizeof *entries; i++, position += page) {
            uint64_t e = entries[i];
            uint64_t kind = kind_of(e & PAGEMAP_PRESENT, e & PAGEMAP_SWAPPED, false,
                                    walk->want_file && (e & PAGEMAP_FILE), e & PAGEMAP_GUARD);
            if (!append(walk, position, position + page, kind)) {
                walk->scanned = position;
                return 0;
            }
        }
    }
    walk->scanned = walk->end;
    return 0;
}

void fastdump_extents_begin(struct fastdump_extents *walk, const struct fastdump_target *target,
                            uint64_t start, uint64_t end, bool want_file) {
    walk->target = target;
    walk->position = start;
    walk->end = end;
    walk->scanned = start;
    walk->want_file = want_file;
    walk->next = 0;
    walk->count = 0;
}

int64_t fastdump_extents_next(struct fastdump_extents *walk, struct fastdump_extent *extent_ret) {
    if (walk->position >= walk->end)
        return 0;
    if (walk->position >= walk->scanned) {
        walk->next = 0;
        int64_t error = walk->target->scan ? scan(walk) : read_pagemap(walk);
        if (error < 0)
            return error;
    }
    if (walk->next < walk->count && walk->batch[walk->next].start <= walk->position) {
        const struct fastdump_extent *found = &walk->batch[walk->next++];
        *extent_ret = (struct fastdump_extent){walk->position, found->end, found->kind};
    } else {
        uint64_t end = walk->next < walk->count ? walk->batch[walk->next].start : walk->scanned;
        *extent_ret = (struct fastdump_extent){walk->position, end, KIND_ABSENT};
    }
    walk->position = extent_ret->end;
    return 1;
}

int64_t fastdump_residency(const struct fastdump_target *target,
                           const struct fastdump_range *ranges, uint64_t count,
                           struct fastdump_residency *residency_ret) {
    struct fastdump_extents walk;
    for (uint64_t i = 0; i < count; i++) {
        struct fastdump_residency sum = {0, 0, 0};
        struct fastdump_extent extent;
        int64_t got;
        fastdump_extents_begin(&walk, target, ranges[i].start, ranges[i].end, false);
        while ((got = fastdump_extents_next(&walk, &extent)) > 0) {
            uint64_t length = extent.end - extent.start;
            if (extent.kind == KIND_PRESENT)
                sum.present += length;
            else if (extent.kind == KIND_ZERO)
                sum.zero += length;
            else if (extent.kind == KIND_SWAPPED)
                sum.swapped += length;
        }
        if (got < 0)
            return got;
        residency_ret[i] = sum;
    }
    /* The page tables of a dead mm read as empty, without an error. */
    return fastdump_alive(target) ? 0 : -ESRCH;
}

/* <linux/mman.h> of Linux 6.5. */
struct cachestat_range {
    uint64_t off;
    uint64_t len;
};
struct cachestat {
    uint64_t nr_cache;
    uint64_t nr_dirty;
    uint64_t nr_writeback;
    uint64_t nr_evicted;
    uint64_t nr_recently_evicted;
};
#define SYS_CACHESTAT 451
#define SHARED_MEMORY_MAGIC 0x01021994 /* TMPFS_MAGIC */

int32_t fastdump_is_shared_memory(int32_t fd) {
    struct statfs fs;
    return fstatfs(fd, &fs) == 0 && fs.f_type == SHARED_MEMORY_MAGIC;
}

int64_t fastdump_swapped_of_file(int32_t fd, uint64_t offset, uint64_t length, uint64_t page_size) {
    struct cachestat_range range = {offset, length};
    struct cachestat found;
    if (!fastdump_is_shared_memory(fd) || syscall(SYS_CACHESTAT, fd, &range, &found, 0) < 0)
        return 0;
    return (int64_t)(found.nr_evicted * page_size); /* of shared memory: to swap */
}
