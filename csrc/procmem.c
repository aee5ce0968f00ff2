/*
 * Bulk reads of another process.
 *
 * Two calls, two results. pread on /proc/PID/mem ignores page protection (FOLL_FORCE) and
 * belongs to the mm that was open()ed. process_vm_readv is up to twice as fast, but
 * honours protection, blocks on a missing userfaultfd page, and follows the *pid*: after an
 * exec it reads the new program. So it serves readable, resident pages only, whatever it
 * refuses is asked of /proc/PID/mem, and fastdump_alive() tells an exec before the bytes are
 * used. See proc(5), process_vm_readv(2).
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

int64_t fastdump_read(const struct fastdump_target *target, uint64_t address, uint64_t length,
                      uint32_t flags, void *buffer_ret) {
    if (!(flags & FASTDUMP_MEM_ONLY)) {
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
