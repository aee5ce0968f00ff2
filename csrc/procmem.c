/*
 * Bulk reads of another process.
 *
 * Two calls, two results. pread on /proc/PID/mem ignores page protection (FOLL_FORCE) and
 * belongs to the mm that was open()ed. process_vm_readv is up to twice as fast, but
 * honours protection, blocks on a missing userfaultfd page, and follows the *pid*: after an
 * exec it reads the new program. So it serves readable, resident pages only, whatever it
 * refuses is asked of /proc/PID/mem, and fastdump_alive() tells an exec before the bytes are
 * used. See proc(5), process_vm_readv(2).
 *
 * And process_vm_readv pins pages: since Linux 5.19 an anonymous page that processes share by
 * fork(2), or that KSM has merged, becomes two pages then, though it is only read
 * (gup_must_unshare() in mm/internal.h). So what is shared is read through /proc/PID/mem too, which
 * does not pin: else a dump of a copy by fork would take as much memory as the target has.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "fastdump.h"

int64_t fastdump_alive(const struct fastdump_target *target) {
    /*
     * /proc/PID/mem of a dead mm reads as 0 bytes without an error; a live one gives EIO
     * for an address that no user mapping can have, and touches nothing.
     */
    char byte;
    return pread(target->mem, &byte, 1, (off_t)0x7ffffffffffff000) != 0;
}

#define PM_EXCLUSIVE (1ull << 56) /* mapped once */
#define PM_FILE (1ull << 61)      /* of a file, or shared memory */
#define PM_PRESENT (1ull << 63)
#define PM_BATCH 256

/* Whether a page of a range may be one that another process has too; see pagemap.rst. */
static bool is_shared(const struct fastdump_target *target, uint64_t address, uint64_t length) {
    uint64_t first = address / target->page_size;
    uint64_t count = (address + length - 1) / target->page_size - first + 1, entries[PM_BATCH];
    if (target->origin) /* a copy by fork */
        return true;
    for (uint64_t some; count > 0; first += some, count -= some) {
        some = count < PM_BATCH ? count : PM_BATCH;
        ssize_t size = (ssize_t)(some * sizeof *entries);
        if (pread(target->pagemap, entries, (size_t)size, (off_t)(first * sizeof *entries)) != size)
            return true;
        uint64_t shared = 0;
        for (uint64_t i = 0; i < some; i++)
            shared |= (entries[i] & (PM_PRESENT | PM_FILE | PM_EXCLUSIVE)) == PM_PRESENT;
        if (shared)
            return true;
    }
    return false;
}

int64_t fastdump_read(const struct fastdump_target *target, uint64_t address, uint64_t length,
                      uint32_t flags, void *buffer_ret) {
    if (!(flags & FASTDUMP_MEM_ONLY) && !is_shared(target, address, length)) {
        struct iovec local = {buffer_ret, length};
        struct iovec remote = {(void *)(uintptr_t)address, length};
        ssize_t got = process_vm_readv(target->pid, &local, 1, &remote, 1, 0);
        if (got > 0)
            return got;
        /*
         * EFAULT: this page only. EPERM or ENOSYS: a seccomp filter (as in containers) forbids
         * the call. ESRCH: this thread exited, which need not be the end of the mm.
         */
        if (got < 0 && errno == EFAULT && length > target->page_size)
            length = target->page_size;
    }
    ssize_t got = pread(target->mem, buffer_ret, length, (off_t)address);
    if (got > 0)
        return got;
    return got == 0 ? -ESRCH : -errno;
}

bool fastdump_read_range(const struct fastdump_target *target, const struct fastdump_slice *slices,
                         uint64_t count, const struct fastdump_range *range, void *buffer_ret) {
    uint64_t low = 0, high = count, length = range->end - range->start;
    while (low < high) {
        uint64_t middle = (low + high) / 2;
        if (slices[middle].address <= range->start)
            low = middle + 1;
        else
            high = middle;
    }
    if (!low)
        return false;
    const struct fastdump_slice *slice = &slices[low - 1];
    uint64_t offset = range->start - slice->address;
    if (offset > slice->length || length > slice->length - offset)
        return false;
    int64_t got = slice->flags & FASTDUMP_PLAIN
                      ? pread(slice->file, buffer_ret, length, (off_t)(slice->file_offset + offset))
                      : fastdump_read(target, range->start, length, slice->flags, buffer_ret);
    return got == (int64_t)length;
}

uint64_t fastdump_robust_list(int32_t tid) {
    void *head = NULL;
    size_t length;
    return syscall(SYS_get_robust_list, tid, &head, &length) ? 0 : (uint64_t)(uintptr_t)head;
}

void fastdump_keep_freed(int32_t most) {
#ifdef __GLIBC__
    mallopt(M_MMAP_THRESHOLD, most);
    mallopt(M_TRIM_THRESHOLD, 2 * most);
#else
    (void)most;
#endif
}
