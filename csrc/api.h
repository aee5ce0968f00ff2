/*
 * The declarations of the extension. The compiler and cffi read this same file, so it
 * holds plain C declarations only: no include, no guard (fastdump.h has both).
 *
 * Conventions: C never allocates, calls back or prints; the caller owns all memory.
 * Out-parameters come last and end in _ret. Functions return a count or -errno.
 * Addresses and lengths are in bytes; ranges are [start, end). A buffer belongs to one
 * thread; a struct fastdump_target may be shared.
 */

/* A process: descriptors opened by the caller, all of them of the same mm. */
struct fastdump_target {
    int32_t pid;     /* a thread id that lives in the mm: for process_vm_readv */
    int32_t mem;     /* /proc/PID/mem */
    int32_t pagemap; /* /proc/PID/pagemap */
    int32_t scan;    /* 1: the kernel has PAGEMAP_SCAN (6.7); 0: read pagemap */
    uint64_t page_size;
};

/* How the bytes of a slice may be obtained. */
#define FASTDUMP_MEM_ONLY 1 /* by /proc/PID/mem: no read permission, or userfaultfd */
#define FASTDUMP_MODIFIED 2 /* only pages that are private to the process, not the file's */
#define FASTDUMP_SWAPPED 4  /* swapped pages too: they come back into the target's memory */
#define FASTDUMP_EVERY 8    /* every page, whatever the page tables say (the vdso) */
#define FASTDUMP_NO_FILE 16 /* what is absent is in a mapped file that cannot be opened */

/* Addresses [address, address + length) and where their bytes go: offset in the output. */
struct fastdump_slice {
    uint64_t address;
    uint64_t length;
    uint64_t offset;
    uint64_t file_offset; /* of address, in the mapped file */
    int32_t file;         /* descriptor of the mapped file, which has what is absent; or -1 */
    uint32_t flags;
};

/* Why a range has no bytes. */
#define FASTDUMP_GAP_UNREADABLE 1 /* the kernel refused: error holds the errno */
#define FASTDUMP_GAP_SWAPPED 2    /* swapped, and FASTDUMP_SWAPPED was not given */
#define FASTDUMP_GAP_PAST_EOF 3   /* behind the end of the mapped file: SIGBUS for the target */
#define FASTDUMP_GAP_GUARD 4      /* a guard page (MADV_GUARD_INSTALL, Linux 6.13) */
#define FASTDUMP_GAP_NO_FILE 5    /* not present, and FASTDUMP_NO_FILE */

struct fastdump_gap {
    uint64_t start;
    uint64_t end;
    int32_t reason;
    int32_t error;
};

/* What became of the bytes asked for; their sum with the gaps is what was asked for. */
struct fastdump_tally {
    uint64_t read;   /* read from the process */
    uint64_t file;   /* read from the mapped file: not present in the process */
    uint64_t zero;   /* mapped to the zero page: known, never read */
    uint64_t absent; /* no backing: reads as zeros, never read */
    uint64_t clean;  /* left to the mapped file (FASTDUMP_MODIFIED) */
    uint64_t gap;
    uint64_t written; /* bytes given to pwrite(2): zero pages are left as holes */
    uint64_t read_ns;
    uint64_t write_ns;
};

/* Where a copy stands: zero it before the first call. */
struct fastdump_cursor {
    uint64_t slice;
    uint64_t done;        /* bytes of that slice */
    uint64_t gaps;        /* entries used in the gaps array; the caller resets it */
    int32_t output_error; /* errno of pwrite(2) */
    int32_t reserved;
};

/* What the page tables say of a range. */
struct fastdump_residency {
    uint64_t present; /* in RAM, the zero page left out */
    uint64_t zero;    /* mapped to the zero page */
    uint64_t swapped;
};

struct fastdump_range {
    uint64_t start;
    uint64_t end;
};

#define FASTDUMP_DISCARD -1 /* copy: read only */
#define FASTDUMP_KEEP -2    /* copy: the output is the buffer itself */
#define FASTDUMP_COUNT -3   /* copy: read nothing; what holds data counts as absent */

/*
 * Read up to length bytes at address. Returns 1..length, or -errno of the first byte:
 * -EIO or -EFAULT unreadable, -ESRCH the target exited or called exec.
 * flags: FASTDUMP_MEM_ONLY.
 */
int64_t fastdump_read(const struct fastdump_target *target, uint64_t address, uint64_t length,
                      uint32_t flags, void *buffer_ret);

/* 1 while the mm that the descriptors were opened on is alive, else 0. */
int64_t fastdump_alive(const struct fastdump_target *target);

/* Count the pages of each of count ranges, in bytes. Returns 0 or -ESRCH, -EIO ... */
int64_t fastdump_residency(const struct fastdump_target *target,
                           const struct fastdump_range *ranges, uint64_t count,
                           struct fastdump_residency *residency_ret);

/*
 * The runs that hold data in the slices from *slice_ret on: what fastdump_copy would
 * deliver, joined where less than min_gap bytes of the same slice lie between them.
 * Returns how many runs were stored; *slice_ret and *done_ret tell where it stopped
 * for want of capacity (at the end: count and 0).
 */
int64_t fastdump_runs(const struct fastdump_target *target, const struct fastdump_slice *slices,
                      uint64_t count, uint64_t min_gap, uint64_t capacity, uint64_t *slice_ret,
                      uint64_t *done_ret, struct fastdump_range *runs_ret);

/*
 * Copy slices, from the cursor on, through buffer (size bytes, page-aligned) to output:
 * a descriptor (pwrite at slice.offset; runs of at least hole zero bytes are not
 * written), FASTDUMP_DISCARD, FASTDUMP_KEEP (each byte at buffer + slice.offset, zeros
 * where there are none), or FASTDUMP_COUNT. Slices are whole pages and in ascending order of
 * offset.
 *
 * Returns 1 when all is done, 0 when the gaps array is nearly full (take its entries,
 * reset cursor->gaps and call again), or -errno: -ESRCH the target exited or called
 * exec, -EIO with cursor->output_error set when the output failed.
 */
int64_t fastdump_copy(const struct fastdump_target *target, const struct fastdump_slice *slices,
                      uint64_t count, void *buffer, uint64_t size, int32_t output, uint64_t hole,
                      uint64_t gap_capacity, struct fastdump_cursor *cursor,
                      struct fastdump_gap *gaps_ret, struct fastdump_tally *tally_ret);

/*
 * Write length bytes (whole pages) at offset, but for runs of at least hole zero bytes.
 * Returns 0 or -errno of pwrite(2); *written_ret is increased by what was written.
 */
int64_t fastdump_write(int32_t fd, const void *buffer, uint64_t length, uint64_t offset,
                       uint64_t hole, uint64_t page_size, uint64_t *written_ret);

/* 1 if length bytes are all zero, else 0. */
int64_t fastdump_is_zero(const void *buffer, uint64_t length);

/* syncfs(2) of the file system that fd is on. Returns 0 or -errno. */
int64_t fastdump_syncfs(int32_t fd);

/*
 * How many bytes of [offset, offset + length) of a file of shared memory (tmpfs, memfd,
 * shared anonymous) are swapped out: no page table tells. 0 for other files, and before
 * cachestat(2) (Linux 6.5).
 */
int64_t fastdump_swapped_of_file(int32_t fd, uint64_t offset, uint64_t length, uint64_t page_size);

/* get_robust_list(2): the address that thread tid registered, 0 for none or not permitted. */
uint64_t fastdump_robust_list(int32_t tid);
