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
    const struct fastdump_target *origin; /* of a copy by fork: what it was copied from; or NULL */
};

/* How the bytes of a slice may be obtained. */
#define FASTDUMP_MEM_ONLY 1       /* by /proc/PID/mem: no read permission, or userfaultfd */
#define FASTDUMP_MODIFIED 2       /* only pages that are private to the process, not the file's */
#define FASTDUMP_SWAPPED 4        /* swapped pages too: they come back into the target's memory */
#define FASTDUMP_EVERY 8          /* every page, whatever the page tables say (the vdso) */
#define FASTDUMP_NO_FILE 16       /* what is absent is in a mapped file that cannot be opened */
#define FASTDUMP_PLAIN 32         /* no process: all of it is in the file, from file_offset on */
#define FASTDUMP_AGAIN 64         /* not accounted for: some other slice is the same */
#define FASTDUMP_TAIL 128         /* scan: read on only while a string is not at its end */
#define FASTDUMP_ZEROS_BEFORE 256 /* scan: before it and */
#define FASTDUMP_ZEROS_BEHIND 512 /* behind it the region has nothing but known zeros */
#define FASTDUMP_OURS 1024        /* with PLAIN: file_offset is the address of its bytes here */
#define FASTDUMP_MORE 2048        /* scan, of the last slice: the caller has others behind it */
#define FASTDUMP_ORIGIN 4096      /* with MEM_ONLY: not in the copy, but in its origin */

/* Addresses [address, address + length) and where their bytes go: offset in the output. */
struct fastdump_slice {
    uint64_t address;
    uint64_t length;
    uint64_t offset;
    uint64_t file_offset; /* of address, in the mapped file */
    uint64_t region;      /* number of the region it lies in; for fastdump_scan */
    int32_t file;         /* descriptor of the mapped file, which has what is absent; or -1 */
    uint32_t flags;
};

/* Why a range has no bytes. */
#define FASTDUMP_GAP_UNREADABLE 1 /* the kernel refused: error holds the errno */
#define FASTDUMP_GAP_SWAPPED 2    /* swapped, and FASTDUMP_SWAPPED was not given */
#define FASTDUMP_GAP_PAST_EOF 3   /* behind the end of the mapped file: SIGBUS for the target */
#define FASTDUMP_GAP_GUARD 4      /* a guard page (MADV_GUARD_INSTALL, Linux 6.13) */
#define FASTDUMP_GAP_NO_FILE 5    /* not present, and FASTDUMP_NO_FILE */
#define FASTDUMP_GAP_GONE 6       /* FASTDUMP_ORIGIN, and that exited or called exec */

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
 * deliver, joined where less than min_gap bytes of the same slice lie between them, all of
 * them known to be zero; less than min_other where some are the mapped file's
 * (FASTDUMP_MODIFIED) or a gap.
 * Returns how many runs were stored; *slice_ret and *done_ret tell where it stopped
 * for want of capacity (at the end: count and 0).
 */
int64_t fastdump_runs(const struct fastdump_target *target, const struct fastdump_slice *slices,
                      uint64_t count, uint64_t min_gap, uint64_t min_other, uint64_t capacity,
                      uint64_t *slice_ret, uint64_t *done_ret, struct fastdump_range *runs_ret);

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

/*
 * mallopt(3): freed blocks up to most bytes stay with the process, else each goes back to the
 * kernel, and its pages must be zeroed again. Nothing where the C library is not glibc.
 */
void fastdump_keep_freed(int32_t most);

/* syncfs(2) of the file system that fd is on. Returns 0 or -errno. */
int64_t fastdump_syncfs(int32_t fd);

/* Whether a file is one of shared memory: tmpfs, memfd, shared anonymous. */
int32_t fastdump_is_shared_memory(int32_t fd);

/*
 * How many bytes of [offset, offset + length) of a file of shared memory are swapped out: no page
 * table tells. 0 for other files, and before cachestat(2) (Linux 6.5).
 */
int64_t fastdump_swapped_of_file(int32_t fd, uint64_t offset, uint64_t length, uint64_t page_size);

/* get_robust_list(2): the address that thread tid registered, 0 for none or not permitted. */
uint64_t fastdump_robust_list(int32_t tid);

/*
 * Strings.
 *
 * A kernel finds the runs of printable characters of one encoding; all kernels of the table
 * find the same. It writes edges: positions at which a run has reached the length looked
 * for, and at which it has ended, in turns. See csrc/scan.inc.h.
 */
#define FASTDUMP_7BIT 0    /* as -e of GNU strings: s */
#define FASTDUMP_8BIT 1    /* S */
#define FASTDUMP_UTF16LE 2 /* l */
#define FASTDUMP_UTF16BE 3 /* b */
#define FASTDUMP_UTF32LE 4 /* L */
#define FASTDUMP_UTF32BE 5 /* B */
#define FASTDUMP_UTF8 6    /* -U */

#define FASTDUMP_EDGES 8192      /* capacity of an array of edges that serves well */
#define FASTDUMP_LEAST_EDGES 128 /* with less, a kernel may consume nothing */

/* One encoding in one stream of bytes, as far as it has come. */
struct fastdump_finder {
    int32_t encoding;
    int32_t whitespace;   /* 1: -w, all white space is printable */
    uint64_t min_length;  /* characters */
    uint32_t width;       /* bytes of a character (of UTF-8: of the shortest) */
    uint32_t filter;      /* units that a run must have to be seen: at most 64 bytes */
    uint32_t start_delta; /* the edge at which a run starts lies so far behind its first byte, */
    uint32_t end_delta;   /* and the edge at which it ends behind its end */
    uint32_t shifts[6];   /* by which 1 unit doubles to filter units; 0 adds nothing */
    uint64_t carried[6];  /* words of the last 64 bytes: after each doubling, */
    uint64_t runs;        /* after all of them, */
    uint64_t history[8];  /* and what the kernel needs besides */
    int32_t open;         /* in a run, */
    int32_t owned;        /* which is this scan's, */
    int32_t giant;        /* and longer than the buffer can keep: see fastdump_giant */
    int32_t reserved;
    uint64_t start; /* address of the run */
    uint64_t key;   /* of a giant, in a table */
};

/* Prepare a finder. Returns 0, or -EINVAL: no such encoding, or min_length is 0. */
int64_t fastdump_finder_begin(struct fastdump_finder *finder, int32_t encoding, int32_t whitespace,
                              uint64_t min_length);

/* The name of kernel number index, NULL behind the last. The first that is supported is best. */
const char *fastdump_kernel_name(int32_t index);

/* 1 if this CPU can run it, else 0. */
int64_t fastdump_kernel_supported(int32_t index);

/*
 * Run a kernel over length bytes: a multiple of 64 unless last is 1, which ends all runs. Writes
 * base + position of each edge; returns the bytes consumed, less than length where the
 * capacity is used up. Reads nothing outside of data.
 */
int64_t fastdump_find(int32_t kernel, struct fastdump_finder *finder, const void *data,
                      uint64_t length, int32_t last, uint32_t base, uint64_t capacity,
                      uint32_t *edges_ret, uint64_t *count_ret);

/* What a scan makes of the strings it finds. */
#define FASTDUMP_COUNT_STRINGS 0 /* strings and bytes */
#define FASTDUMP_LINES 1   /* lines of text, as strings(1) prints them; if asked for, records */
#define FASTDUMP_TALLIES 2 /* equal strings, or alike but for numbers, in a table */

/* How UTF-8 is shown: as -U of GNU strings. */
#define FASTDUMP_UNICODE_LOCALE 0
#define FASTDUMP_UNICODE_HEX 1
#define FASTDUMP_UNICODE_ESCAPE 2
#define FASTDUMP_UNICODE_HIGHLIGHT 3

/* A string: length bytes of memory at address. Its line in the output, and in that its text. */
struct fastdump_record {
    uint64_t address;
    uint64_t length;
    uint32_t region;
    int32_t encoding;
    uint32_t line;
    uint32_t text;
    uint32_t text_length;
    uint32_t line_length;
};

/* A string too long to be kept, to be read again; it comes behind what the output holds so far. */
struct fastdump_giant {
    uint64_t address;
    uint64_t length;
    uint64_t region;
    uint64_t filled; /* bytes of the output, and records, that come before it */
    uint64_t records;
    int32_t encoding;
    int32_t reserved;
};

/* Equal strings. The key is a hash of 64 bits. Free if count is 0. */
struct fastdump_tallied {
    uint64_t key;
    uint64_t bytes; /* of memory, all together */
    uint64_t count;
    uint64_t address;     /* of the first one */
    uint64_t text_length; /* of which the table keeps FASTDUMP_TALLIED_TEXT */
    uint32_t regions[4];  /* numbers + 1 of the first ones that it lies in */
    uint64_t more;        /* 1: in others as well */
};

#define FASTDUMP_TALLIED_TEXT 128 /* bytes of text that an entry has */
#define FASTDUMP_TALLIED_QUEUE 32

/* A hash table in memory of the caller's, all of it zero at first. */
struct fastdump_table {
    struct fastdump_tallied *entries; /* on a cache line */
    unsigned char *texts;             /* TALLIED_TEXT for each entry */
    uint64_t capacity;                /* a power of 2 */
    uint64_t used;
    uint64_t evicted;       /* entries that had to make room */
    uint64_t error;         /* no total can be low by more than so many bytes */
    const uint32_t *groups; /* for each region: strings of two groups are not equal; or NULL */
    int32_t exact;          /* 0: numbers are placeholders */
    int32_t queued;         /* strings whose entry is being fetched into the cache */
    struct fastdump_tallied queue[32];
    unsigned char queue_texts[4096];
};

#define FASTDUMP_FINDERS 8
#define FASTDUMP_HEAD 65536 /* bytes in front of the buffer: where the string before it is kept */
#define FASTDUMP_SLACK 128  /* bytes behind the buffer and the output that may be overwritten */
#define FASTDUMP_GIANTS 32

struct fastdump_scan {
    int32_t kernel;
    int32_t mode;
    int32_t radix; /* of addresses: 16, 10, 8, or 0: none */
    int32_t unicode;
    uint64_t finders;
    uint64_t own_start; /* the strings whose filter-th unit ends in [own_start, own_end) */
    uint64_t own_end;
    unsigned char *buffer; /* HEAD + size + SLACK */
    uint64_t size;
    unsigned char *out; /* capacity + SLACK */
    uint64_t capacity;
    uint64_t filled;
    uint64_t room;   /* bytes of output that a full buffer may need; see fastdump_scan_room() */
    uint32_t *edges; /* EDGES */
    const unsigned char *prefix;
    uint64_t prefix_length;
    const unsigned char *separator;
    uint64_t separator_length;
    struct fastdump_record *records; /* or NULL */
    uint64_t records_capacity;
    uint64_t records_used;
    struct fastdump_table *table;
    uint64_t strings; /* found so far, */
    uint64_t bytes;   /* and what they take of the memory */
    uint64_t next;    /* address behind the last byte scanned */
    uint64_t region;
    const uint64_t *biases; /* for each region: added to addresses in lines; or NULL */
    uint64_t bias;          /* that of the region */
    uint64_t kept;          /* bytes before next that the buffer still has */
    int32_t begun;
    int32_t reserved;
    uint64_t giants;
    struct fastdump_giant giant[FASTDUMP_GIANTS];
    struct fastdump_finder finder[FASTDUMP_FINDERS];
};

/* Forget all runs and all bytes: what comes next is a new stream. */
void fastdump_scan_begin(struct fastdump_scan *scan);

/* The bytes of output, and the records, that one buffer of this scan may need at most. */
uint64_t fastdump_scan_room(const struct fastdump_scan *scan);
uint64_t fastdump_scan_records(const struct fastdump_scan *scan);

/*
 * Scan slices, from the cursor on, as fastdump_copy reads them; slice.offset is slice.address.
 * What lies between two slices is unknown, but for the flags that say it is zeros.
 *
 * Returns 1 when all is done, 0 when the caller must take the output, the records, the giants or
 * the gaps first (and set their counts to 0), 2 when it must call again with the slices that
 * follow (FASTDUMP_MORE) and a new cursor, or -errno as fastdump_copy.
 */
int64_t fastdump_scan_slices(const struct fastdump_target *target,
                             const struct fastdump_slice *slices, uint64_t count,
                             struct fastdump_scan *scan, uint64_t gap_capacity,
                             struct fastdump_cursor *cursor, struct fastdump_gap *gaps_ret,
                             struct fastdump_tally *tally_ret);

/*
 * Scan bytes that the caller has: those at address of a region, behind the ones before if they
 * follow. A multiple of 64, unless last is 1. Returns how many were scanned: less than length
 * when the caller must take the output, as above.
 */
int64_t fastdump_scan_bytes(struct fastdump_scan *scan, const void *data, uint64_t length,
                            uint64_t address, uint64_t region, int32_t last);

/* Text of a string of an encoding: length bytes of memory → characters; returns their number. */
int64_t fastdump_text(int32_t encoding, int32_t unicode, const void *data, uint64_t length,
                      void *text_ret);

/* Enter all that is in from into table. */
void fastdump_table_merge(struct fastdump_table *table, const struct fastdump_table *from);

/* Enter what is queued; before the table is read. */
void fastdump_table_settle(struct fastdump_table *table);

/* The indexes of the entries with the most bytes, descending; how many: at most count. */
int64_t fastdump_table_top(const struct fastdump_table *table, uint64_t count,
                           uint64_t *indexes_ret);

/*
 * Bytes as hexdump -C shows them: an address, hexadecimal cells, text between bars. Of lines that
 * are equal the first is shown, and a "*" for the others.
 */
#define FASTDUMP_HEXDUMP_WIDTH 256 /* bytes of a line, at most */

/* One dump: the caller sets the options, fastdump_hexdump_begin() the rest. */
struct fastdump_hexdump {
    uint32_t width;  /* bytes of a line */
    uint32_t group;  /* bytes between wider gaps */
    uint32_t digits; /* of addresses: 1 to 16 */
    int32_t color;   /* 1: escape codes, where the class of a byte is another one */
    int32_t all;     /* 1: equal lines too */
    uint32_t first;  /* cells of the line being filled that are blank, in front, */
    uint32_t filled; /* and how far it is filled, with these */
    int32_t shown;   /* 1: previous is the line before it, */
    int32_t starred; /* and a "*" stands for it */
    int32_t reserved;
    uint64_t address; /* of the next byte */
    unsigned char line[FASTDUMP_HEXDUMP_WIDTH];
    unsigned char previous[FASTDUMP_HEXDUMP_WIDTH];
};

/*
 * Begin a dump at an address. Lines begin at it and each width bytes behind it; of the first one
 * blank cells come before it. Returns 0, or -EINVAL: an option is out of bounds.
 */
int64_t fastdump_hexdump_begin(struct fastdump_hexdump *dump, uint64_t address, uint32_t blank);

/* The bytes that a line takes at most: no less capacity serves. */
int64_t fastdump_hexdump_room(const struct fastdump_hexdump *dump);

/*
 * Show length bytes that follow those before. Returns how many were taken: less than length when
 * the output is full; *written_ret bytes of it are used. -EOVERFLOW: an address has more digits;
 * -ENOSPC: less capacity than a line takes.
 */
int64_t fastdump_hexdump(struct fastdump_hexdump *dump, const void *data, uint64_t length,
                         uint64_t capacity, void *out, uint64_t *written_ret);

/* The same with zeros; where equal lines are not shown, whatever the length, at once. */
int64_t fastdump_hexdump_zeros(struct fastdump_hexdump *dump, uint64_t length, uint64_t capacity,
                               void *out, uint64_t *written_ret);

/* Show the line that is not whole, if any. Returns the bytes written, or -ENOSPC. */
int64_t fastdump_hexdump_end(struct fastdump_hexdump *dump, uint64_t capacity, void *out);

/*
 * Search.
 *
 * A pattern is found at every address where (memory & mask) == value for all of its bytes; a
 * pointer range wherever an aligned word of 8 bytes points into it. No pattern may match zeros
 * only, so that what is known to be zero need not be looked at.
 *
 * A pattern is found by anchors, two of its bytes, which a kernel compares everywhere; or, if
 * there are many, by windows: of `stride` windows of 4 bytes in a row one lies at a multiple of
 * the stride, and is looked up.
 */
struct fastdump_pattern {
    uint32_t at;     /* of its bytes in values and masks, which are padded to a multiple of 8 */
    uint32_t length; /* 1 to LONGEST */
    uint32_t number; /* what records and counts call it */
    uint32_t anchors[2];
};

/* A window of a pattern: 4 bytes of it, those of values & fold, at an offset up to FARTHEST. */
struct fastdump_window {
    uint32_t bytes;
    uint32_t pattern; /* index in patterns */
    uint32_t offset;
};

/* Words from start to start + length - 1. */
struct fastdump_pointers {
    uint64_t start;
    uint64_t length;
    uint32_t number;
    uint32_t reserved;
};

/* A match. */
struct fastdump_hit {
    uint64_t address;
    uint32_t number; /* of the pattern */
    uint32_t region;
};

#define FASTDUMP_LONGEST 4096 /* bytes of a pattern */
#define FASTDUMP_FARTHEST 64

struct fastdump_search {
    int32_t kernel;
    int32_t begun;
    const struct fastdump_pattern *patterns;
    const unsigned char *values;
    const unsigned char *masks;
    uint64_t anchored; /* so many patterns, the first ones, are found by anchors */
    const struct fastdump_window *windows;
    const uint32_t *buckets; /* windows of hash h: buckets[h] to buckets[h + 1] */
    const uint32_t *filter;  /* a bit for each hash: whether it has any */
    uint32_t hash_bits;      /* of the filter, 5 to 32 */
    uint32_t bucket_bits;    /* of buckets, likewise */
    uint32_t fold;           /* bits of a window that count */
    uint32_t stride;         /* 1, 2 or 4; 0: no windows */
    uint32_t span;           /* no window has an offset of more */
    const struct fastdump_pointers *pointers;
    uint64_t pointers_count;
    uint64_t longest;   /* bytes of a pattern; 8 at least if there are pointers */
    uint64_t align;     /* of the addresses of matches */
    uint64_t own_start; /* matches that begin in [own_start, own_end) */
    uint64_t own_end;
    unsigned char *buffer; /* HEAD + size + SLACK; size is 2 * longest at least */
    uint64_t size;
    struct fastdump_hit *hits; /* or NULL, to count only */
    uint64_t capacity;
    uint64_t used;
    uint64_t
        room; /* hits that a full buffer may have: the most at one address * (size + LONGEST) */
    uint64_t *counts; /* for each pattern */
    uint64_t next;    /* address behind the last byte searched */
    uint64_t kept;    /* bytes before next that the buffer still has: not yet searched */
    uint64_t region;
};

/* A hash of windows; for those who fill in buckets and filter. */
uint32_t fastdump_window_hash(uint32_t bytes, uint32_t hash_bits);

/* Forget all bytes: what comes next is a new stream. */
void fastdump_search_begin(struct fastdump_search *search);

/* Search slices; as fastdump_scan_slices, the caller takes the hits and sets used to 0. */
int64_t fastdump_search_slices(const struct fastdump_target *target,
                               const struct fastdump_slice *slices, uint64_t count,
                               struct fastdump_search *search, uint64_t gap_capacity,
                               struct fastdump_cursor *cursor, struct fastdump_gap *gaps_ret,
                               struct fastdump_tally *tally_ret);

/* Search bytes that the caller has; as fastdump_scan_bytes, but of any length. */
int64_t fastdump_search_bytes(struct fastdump_search *search, const void *data, uint64_t length,
                              uint64_t address, uint64_t region, int32_t last);

/*
 * Chunks of an allocator.
 *
 * A segment is memory that is cut into chunks without a hole, as by glibc's malloc (malloc.c,
 * "malloc_chunk"): a header of 16 bytes, whose second word is the size; the last word of the
 * header of the next chunk belongs to the one before. Bits stand for 16 bytes each.
 */
#define FASTDUMP_CHUNK_HEADER 16

struct fastdump_chunk_tally {
    uint64_t live;
    uint64_t live_bytes;
    uint64_t free;
    uint64_t free_bytes;
};

/* Chunks by their size: number n of SIZE_CLASSES has those of 2^(n-1) + 1 to 2^n bytes. */
#define FASTDUMP_SIZE_CLASSES 65
struct fastdump_size_class {
    uint64_t chunks;
    uint64_t bytes;
};

struct fastdump_segment {
    uint64_t start; /* of the first chunk: a multiple of 16 */
    uint64_t end;
    uint64_t *begins;       /* a chunk begins here. NULL: all of it is one chunk, and live */
    uint64_t *free;         /* this chunk is free */
    unsigned char *owners;  /* of each chunk, in their order; see fastdump_segment_rank */
    uint64_t *ranks;        /* for each 2 MiB the number of chunks that begin before, */
    uint16_t *ranks_within; /* and for each 64 bits those of them that begin in the same 2 MiB */
    uint64_t *marked;       /* a root leads to this chunk: see fastdump_reach. One bit if single */
    uint64_t *pending;      /* and it was not read yet; later: a leaked chunk points to it */
    uint64_t next;          /* the next header, or the end of the last chunk */
    uint64_t last;          /* the chunk before it, or 0 */
    uint64_t *caches;       /* chunks that may be malloc's own of a thread (tcache) */
    uint64_t caches_capacity;
    uint64_t caches_found;
    struct fastdump_size_class *sizes; /* of the live chunks so far; not of a single one */
    uint64_t free_chunks;
    uint64_t free_bytes;
    int64_t walked; /* what the walk came to: 0, 1 or -EILSEQ, as it says */
};

/*
 * Walk the chunks whose headers lie in length bytes at address, a multiple of 16 both. Returns 1
 * at the end of the segment or at a fencepost, 0 to be called with the memory at next, or
 * -EILSEQ: there is no chunk at next, or another one than what follows it says.
 */
int64_t fastdump_segment_walk(struct fastdump_segment *segment, const void *data, uint64_t length,
                              uint64_t address);

/*
 * Number the chunks of a segment that was walked, from 0 on: fills ranks and ranks_within, of which
 * a single chunk needs none. Returns how many there are.
 */
#define FASTDUMP_RANKS 2048 /* of 64 bits, for each of ranks: 65,536 of the smallest chunks */
uint64_t fastdump_segment_rank(struct fastdump_segment *segment);

/* A chunk is free. */
void fastdump_segment_release(struct fastdump_segment *segment, uint64_t chunk);

/* The chunk that holds an address of the segment, or 0. */
uint64_t fastdump_segment_chunk(const struct fastdump_segment *segment, uint64_t address,
                                uint64_t *end_ret, int32_t *free_ret);

/* Add the bytes of [start, end), which lies in a segment, and the chunks that begin there. */
void fastdump_segment_tally(const struct fastdump_segment *segment, uint64_t start, uint64_t end,
                            struct fastdump_chunk_tally *tally_ret);

/*
 * The chunks that malloc has mapped, each by itself (IS_MMAPPED), from *next_ret on, whose headers
 * lie in length bytes at address and which end by limit; how many. *next_ret becomes where the next
 * one may lie. uncounted: bytes of each that its size leaves out: its header since glibc 2.43.
 */
int64_t fastdump_mapped_chunks(const void *data, uint64_t length, uint64_t address, uint64_t limit,
                               uint64_t uncounted, uint64_t page_size, uint64_t capacity,
                               uint64_t *next_ret, struct fastdump_range *chunks_ret);

/* Where words hold their own address plus delta; how many, at most capacity. */
int64_t fastdump_self_pointers(const void *data, uint64_t length, uint64_t address, int64_t delta,
                               uint64_t capacity, uint64_t *found_ret);

/*
 * What the words of memory point to.
 */
struct fastdump_heap {
    struct fastdump_segment *const *segments; /* in address order */
    uint64_t count;
};

/* Where a word lies: remembered from one to the next. Zero at first. */
struct fastdump_place {
    struct fastdump_segment *segment; /* of [from, to); NULL: none */
    uint64_t from;
    uint64_t to;
    uint64_t chunk; /* in it */
    uint64_t end;
    int32_t live;
    int32_t reserved;
};

/*
 * A list of free chunks, as of a fastbin or a tcache: of each the first word that its user had is
 * the link to the next, since glibc 2.32 stored with a mask (PROTECT_PTR). No chunk is remembered:
 * one that is free already ends it as broken.
 */
#define FASTDUMP_LIST_BLOCK 4096

struct fastdump_free_list {
    struct fastdump_heap heap; /* all of it was walked */
    uint64_t entry;            /* where the list goes on, 0 at its end */
    uint64_t header;           /* so far behind the start of a chunk entries point */
    uint64_t size;             /* of each chunk; 0: any */
    uint64_t most;             /* chunks */
    uint64_t chunks;           /* so far */
    uint64_t bytes;
    uint64_t seen;   /* an entry before, which a loop comes by again; 0 at first */
    int32_t release; /* what it holds becomes free */
    int32_t reserved;
    uint64_t link;               /* the address of the word that is wanted */
    struct fastdump_range block; /* what content holds: at most LIST_BLOCK bytes */
    unsigned char content[FASTDUMP_LIST_BLOCK];
    struct fastdump_place place;
};

/*
 * Follow a list from its entry on. A link is read with what lies in the same block, from a slice as
 * of fastdump_reach_chase; but only where the chunk's header lies there too, for the walk has read
 * that: so no page is touched that was not. Returns 1 at the end of the list, 0 to be called again
 * with the memory at link as the block, or -EILSEQ: it leads to what is no chunk, a free one,
 * one that is too many or of another size, or back.
 */
int64_t fastdump_free_list_follow(struct fastdump_free_list *list,
                                  const struct fastdump_target *target,
                                  const struct fastdump_slice *slices, uint64_t count);

/* A mapped range of a module, whose number is 1 to FASTDUMP_MODULES - 1. */
struct fastdump_module_range {
    uint64_t start;
    uint64_t end;
    uint32_t module;
    uint32_t reserved;
};

#define FASTDUMP_MODULES 128
#define FASTDUMP_NOT_DIRECT 128 /* in an owner: known by who points to the chunk */
#define FASTDUMP_VOTES 8

/* By what the owner of a chunk is known. */
#define FASTDUMP_FIRST_WORD 0 /* its first word points into the module */
#define FASTDUMP_ANY_WORD 1   /* most of its words that point into any module point into this */
#define FASTDUMP_PARENT 2     /* a chunk of one of these two tiers points to it */
#define FASTDUMP_GLOBAL 3     /* the data of the module does */
#define FASTDUMP_FURTHER 4    /* a chunk that has an owner of any tier does */
#define FASTDUMP_TIERS 5

struct fastdump_owned {
    uint64_t count[FASTDUMP_TIERS];
    uint64_t bytes[FASTDUMP_TIERS];
    uint64_t example[FASTDUMP_TIERS]; /* the address of what is in one of them */
    struct fastdump_size_class sizes[FASTDUMP_SIZE_CLASSES];
};

/* Words that point to exactly one address in a module. */
struct fastdump_pointed {
    uint64_t target;
    uint64_t size_class; /* of the chunks whose first word they are; 0: they are no first words */
    uint64_t count;
    uint64_t bytes;   /* of these chunks */
    uint64_t example; /* the address of one of the words */
};

struct fastdump_vote {
    uint32_t module;
    uint32_t count;
};

#define FASTDUMP_PAGE_OTHER 0
#define FASTDUMP_PAGE_ZERO 1
#define FASTDUMP_PAGE_POINTERS 2
#define FASTDUMP_PAGE_TEXT 3
#define FASTDUMP_PAGE_ENTROPY 4
#define FASTDUMP_PAGE_CLASSES 5
#define FASTDUMP_CLASS_PAGE 4096

/* Pages of 4 KiB that were fed one after the other: by class, and the address of the first. */
struct fastdump_cell {
    uint64_t address;
    uint32_t count;
    uint32_t pages[FASTDUMP_PAGE_CLASSES];
};

/*
 * A range of memory, and the words that were found in it: those that point into the heap, then
 * those that point into modules. Each is kept as word << 16 | its index in the range.
 */
#define FASTDUMP_ADDRESS_BITS 48 /* of all that words are held against */
#define FASTDUMP_TOO_MANY 0xffffffff
struct fastdump_block {
    uint64_t address;
    uint32_t length;
    uint32_t count;   /* into the heap, or TOO_MANY: none is kept */
    uint32_t modules; /* into modules */
    uint32_t reserved;
};

struct fastdump_words {
    struct fastdump_range windows[3];           /* apart, in order: of all ranges and segments, */
    struct fastdump_range module_windows[3];    /* all ranges, */
    struct fastdump_range heap_windows[3];      /* all segments */
    const struct fastdump_module_range *ranges; /* in address order; at least one */
    uint64_t range_count;
    uint64_t last_range;
    struct fastdump_heap heap;    /* with owners, all zero at first, from count() on */
    struct fastdump_types *types; /* is fed too; may be NULL */
    unsigned char *buffer;        /* size bytes, at most FASTDUMP_BLOCK_MOST */
    uint64_t size;
    uint64_t *kept; /* words of the blocks, one after the other */
    uint64_t kept_capacity;
    uint64_t kept_used;
    struct fastdump_block *blocks;
    uint64_t blocks_capacity;
    uint64_t blocks_used;
    struct fastdump_pointed *hits; /* the first used of them; room for 3/4 of capacity */
    uint32_t *slots;               /* a hash table: 1 + the index of a hit. All zero at first */
    uint64_t capacity;             /* of it: a power of 2 */
    uint64_t used;
    uint64_t lost;                /* words for whose target there was no room */
    uint64_t stale;               /* words in free chunks: not counted */
    struct fastdump_owned *owned; /* FASTDUMP_MODULES */
    struct fastdump_cell *cells;  /* of the pages that were entered, in their order */
    uint64_t cell_capacity;       /* even; 0: pages are not looked at */
    uint64_t cell_count;
    uint64_t pages[FASTDUMP_PAGE_CLASSES]; /* of all cells */
    uint64_t cell_pages; /* that make a cell full: 1 at first, doubled when there are too many */
    uint64_t *todo;      /* chunks that got an owner when their own words had been gone through */
    uint64_t todo_capacity;
    uint64_t todo_used;
    struct fastdump_place place;
    struct fastdump_place target;
    int32_t kernel;
    uint32_t first; /* of the chunk being read: the module of its first word, */
    uint32_t voted; /* and those of all words */
    struct fastdump_vote votes[FASTDUMP_VOTES];
};

#define FASTDUMP_BLOCK_MOST 524288 /* bytes: an index has 16 bits */

/*
 * Take the bytes of slices, from the cursor on, as fastdump_copy reads them; slice.offset is
 * slice.address. Of each block the chunks are walked, where the walk has come so far, pages of 4
 * KiB are entered, and words that lie in the windows are kept if they are no more than 1 of 16.
 *
 * Returns 1 when all is done, 0 when the caller must take the blocks or the gaps first (and set
 * what is used to 0), or -errno as fastdump_copy.
 */
int64_t fastdump_words_slices(const struct fastdump_target *target,
                              const struct fastdump_slice *slices, uint64_t count,
                              struct fastdump_words *words, uint64_t gap_capacity,
                              struct fastdump_cursor *cursor, struct fastdump_gap *gaps_ret,
                              struct fastdump_tally *tally_ret);

/* The same with length bytes, whole words at address; how many were taken before it was full. */
uint64_t fastdump_words_bytes(struct fastdump_words *words, const void *data, uint64_t length,
                              uint64_t address);

/*
 * The words of length bytes at address, at most FASTDUMP_BLOCK_MOST, that lie in the windows, and
 * the block that they make up. found_ret has room for two of each word, and for FIND_SLACK more.
 */
#define FASTDUMP_FIND_SLACK 8192
void fastdump_words_find(const struct fastdump_words *words, const void *data, uint64_t length,
                         uint64_t address, uint64_t *found_ret, struct fastdump_block *block_ret);

/* Blocks that were kept, and how far they have been gone through. */
struct fastdump_kept {
    struct fastdump_block *blocks;
    uint64_t count;
    uint64_t *words;
    uint64_t block; /* the next one */
    uint64_t word;  /* and its first word */
    uint64_t used;  /* words that stay, of the blocks before it: they are moved to the front */
};

/* What the blocks hold, one after the other: the next of those that join, from *block on. */
struct fastdump_range fastdump_kept_run(const struct fastdump_kept *kept, uint64_t *block);

/*
 * Count what words that point into modules point to, up to a block whose words are not kept: those
 * in live chunks, and those outside of the heap. In address order.
 */
void fastdump_words_count(struct fastdump_words *words, struct fastdump_kept *kept);

/* The last chunk has its owner; the next words may lie anywhere. */
void fastdump_words_settle(struct fastdump_words *words);

/*
 * Give chunks without an owner that of what points to them, up to a block whose words are not kept:
 * the owner of the chunk that a word lies in, or module, which is not 0 for the data of one. tier:
 * PARENT (only chunks whose owner is known by their words), GLOBAL, FURTHER (all). Returns how
 * many. Only words stay that may still give an owner: none into modules. What FURTHER finds further
 * back is put into todo, while there is room.
 */
uint64_t fastdump_words_follow(struct fastdump_words *words, struct fastdump_kept *kept,
                               uint32_t module, uint32_t tier);

#define FASTDUMP_CHASED 4096 /* bytes: they lie in the pages of two headers, which were read */

/*
 * Read the chunks in todo one by one, from slices as of fastdump_reach_chase, and give what they
 * point to their owners, and so on: for chains in any order. Chunks of more than CHASED bytes, and
 * the last one, are left out: no page is touched that the walk did not read. At most limit chunks
 * are read. Returns how many got an owner.
 */
uint64_t fastdump_words_chase(struct fastdump_words *words, const struct fastdump_target *target,
                              const struct fastdump_slice *slices, uint64_t count, uint64_t limit);

#define FASTDUMP_BESIDE 16 /* words */

/*
 * Count the pointers to the beginnings of chunks which have an owner: FASTDUMP_MODULES counts for
 * each owner, by the module that a pointer lies in: module, if it is not 0; else the owner of its
 * chunk; else, outside of the heap, the other module that the nearest word beside it points to. Up
 * to a block whose words are not kept. No word stays.
 */
void fastdump_words_holders(struct fastdump_words *words, struct fastdump_kept *kept,
                            uint32_t module, uint64_t *counts_ret);

/*
 * Objects of CPython, by their type.
 */
#define FASTDUMP_SIZE_FIXED 0
#define FASTDUMP_SIZE_VAR 1 /* ob_size items */
#define FASTDUMP_SIZE_TAG 2 /* int since 3.12: lv_tag */
#define FASTDUMP_SIZE_STR 3
#define FASTDUMP_SIZE_LIST 4
#define FASTDUMP_SIZE_SET 5 /* mask + 1 entries, but for the 8 that lie in the object */
#define FASTDUMP_SIZE_DICT 6

struct fastdump_type {
    uint64_t address; /* 0: free */
    uint64_t count;
    uint64_t items;   /* of all; of str the bytes behind the smallest one, of dict of its table */
    uint64_t example; /* where one of them is */
    uint32_t sizing;
    uint32_t reserved;
};

struct fastdump_types {
    struct fastdump_range windows[3]; /* all types lie in them */
    struct fastdump_heap heap;
    struct fastdump_type *types;
    uint64_t capacity;  /* a power of 2, larger than their number */
    uint64_t total;     /* of all counts */
    uint64_t str_ascii; /* sizes of str objects */
    uint64_t str_wide;
    uint64_t dict_header; /* sizes of a dict's table, of an entry of it, */
    uint64_t dict_entry;
    uint64_t dict_value; /* and of a value if the table is shared; 0 since 3.11: an instance's */
    uint64_t *places;    /* of objects, as far as there is room */
    uint64_t places_capacity;
    uint64_t places_found;
    struct fastdump_place place;
    int32_t kernel;
};

/* Where a type lies in the table, or a free place for it. */
uint64_t fastdump_type_home(const struct fastdump_types *types, uint64_t address);

/* Count the objects whose header lies in length bytes at address, on whole words both. */
void fastdump_types_feed(struct fastdump_types *types, const void *data, uint64_t length,
                         uint64_t address);

/*
 * Which live chunks the roots lead to, and what is left: leaks.
 *
 * An aligned word that points into what the program has of a chunk, to its start or anywhere in
 * it, keeps the chunk. Chunks to be read are bits too, so that no list grows with the heap: memory
 * is swept over in windows, and within one pointers are followed in any direction.
 */
#define FASTDUMP_PENDING 0
#define FASTDUMP_LEAKED 1 /* neither free nor marked */
#define FASTDUMP_REACH_STACK 4096
#define FASTDUMP_REACH_BLOCK 4096

struct fastdump_reach {
    struct fastdump_range windows[3]; /* all segments lie in them */
    struct fastdump_heap heap;        /* with marked and pending, all zero at first */
    uint64_t marked;                  /* chunks */
    uint64_t pending;
    uint64_t *todo; /* the addresses of some that are pending, or were */
    uint64_t todo_capacity;
    uint64_t todo_used;
    int32_t sweeping; /* what lies further on will be read anyway: it is not put into todo */
    int32_t overflow;
    uint64_t until;                   /* chunks that end by then are read, */
    uint64_t open;                    /* the end of one that goes on in the next memory, or 0 */
    struct fastdump_segment *segment; /* what is being read: [from, limit) of it */
    uint64_t from;
    uint64_t limit;
    struct fastdump_place target;
    uint64_t used;
    uint64_t stack[FASTDUMP_REACH_STACK];
    unsigned char block[2 * FASTDUMP_REACH_BLOCK];
};

/* Mark what the words of a root point to: length bytes, on whole words. */
void fastdump_reach_root(struct fastdump_reach *reach, const void *data, uint64_t length);

/* The first chunk of a segment from an address on that is FASTDUMP_PENDING or _LEAKED, or 0. */
uint64_t fastdump_reach_next(const struct fastdump_segment *segment, uint64_t from, int32_t what);

/*
 * The memory around a chunk that is to be read with it: whole chunks that lie in the same length
 * bytes, a power of 2. Memory of it is then fed in address order. Returns 1, or 0: the chunk is
 * not (any more) what is looked for.
 */
int64_t fastdump_reach_window(struct fastdump_reach *reach, const struct fastdump_segment *segment,
                              uint64_t chunk, uint64_t length, int32_t what,
                              struct fastdump_range *range_ret);

/*
 * Mark what the pending chunks point to that lie in length bytes of the window, at address, on
 * whole words both, and what these point to while that lies there too. NULL: there are no bytes.
 */
void fastdump_reach_feed(struct fastdump_reach *reach, struct fastdump_segment *segment,
                         const void *data, uint64_t length, uint64_t address);

/*
 * Read what is in todo, and what that leads to, a page at a time: while no more than most chunks
 * are pending, and limit pages at most. Chunks that are larger, or cannot be read, stay in todo.
 * Returns how many pages it tried.
 * Slices are in address order: what they have is in a file (FASTDUMP_PLAIN), or in the target.
 */
uint64_t fastdump_reach_chase(struct fastdump_reach *reach, const struct fastdump_target *target,
                              const struct fastdump_slice *slices, uint64_t count, uint64_t most,
                              uint64_t limit);

/* Leaked chunks of one size with the same module, and the same first word if it points there. */
struct fastdump_leak_group {
    uint64_t target; /* 0: several, or none */
    uint64_t size;   /* of each with its header; 0: several */
    uint32_t module;
    uint32_t used;
    uint64_t direct; /* no other leaked chunk points to them */
    uint64_t direct_bytes;
    uint64_t indirect;
    uint64_t indirect_bytes;
    uint64_t example; /* the address of what is in one of them, in a direct one if there is one */
};

struct fastdump_leaks {
    struct fastdump_reach *reach;     /* with nothing pending */
    struct fastdump_range windows[3]; /* all ranges lie in them */
    const struct fastdump_module_range *ranges;
    uint64_t range_count;
    uint64_t last_range;
    struct fastdump_leak_group *groups; /* all zero at first */
    uint64_t capacity;                  /* a power of 2, at least 4 * FASTDUMP_MODULES */
    uint64_t used;
    uint64_t chunk; /* being read, or 0, */
    uint64_t end;   /* of what the program has of it */
    uint64_t first;
    uint32_t first_module;
    uint32_t voted;
    struct fastdump_vote votes[FASTDUMP_VOTES];
};

/* Remember which leaked chunks others point to; fed like fastdump_reach_feed. */
void fastdump_leaks_point(struct fastdump_leaks *leaks, struct fastdump_segment *segment,
                          const void *data, uint64_t length, uint64_t address);

/* Then, in the same way: enter the leaked chunks into their groups. */
void fastdump_leaks_group(struct fastdump_leaks *leaks, struct fastdump_segment *segment,
                          const void *data, uint64_t length, uint64_t address);

/*
 * Snapshots: a pause of the target, made by a guardian. See csrc/snapshot.c.
 */
#define FASTDUMP_REGSETS 12

#define FASTDUMP_FREEZE 0    /* stop all threads until told, or max_pause_ns are over */
#define FASTDUMP_FORK 1      /* take a copy of the memory by fork, and let the target run on */
#define FASTDUMP_FORK_ONLY 2 /* no freeze where that fails */

/* What a fork can fail at; error has the errno. */
#define FASTDUMP_STEP_STOP 1    /* the threads could not be stopped: nothing was done */
#define FASTDUMP_STEP_TASK 2    /* no thread may run a system call for us */
#define FASTDUMP_STEP_SECCOMP 3 /* a seccomp filter, which we may not suspend */
#define FASTDUMP_STEP_CLONE 4   /* clone(2) failed */

/* A thread of the target, as it was stopped. */
struct fastdump_thread {
    int32_t tid;
    int32_t stopped;  /* 0: it waits in the kernel (state D) and has no registers */
    uint64_t blocked; /* signals that it blocks */
    uint64_t regsets; /* its regsets begin at this offset of the area, */
    uint64_t end;     /* and end at this one */
};

/* In front of each regset in the area; padded to 8 bytes. */
struct fastdump_regset {
    uint32_t type;
    uint32_t length;
};

/*
 * What a guardian is to do, and what it did; in memory shared with it, as all that this points to.
 * Times are in nanoseconds of CLOCK_MONOTONIC.
 */
struct fastdump_guard {
    int32_t pid;
    int32_t kind;
    int32_t mem;           /* /proc/PID/mem */
    int32_t command;       /* pidfd of the process that wants it: its death ends the pause */
    uint64_t code;         /* address of a system call instruction in the target; 0: none */
    uint64_t max_pause_ns; /* of a freeze, or a clone(2) that waits; 0: no limit */
    uint32_t regset_types[FASTDUMP_REGSETS]; /* for PTRACE_GETREGSET; 0 behind the last */
    struct fastdump_thread *threads;
    uint64_t threads_capacity;
    unsigned char *area;
    uint64_t area_capacity;

    /* The guardian's answer. */
    int32_t error; /* errno of what failed, in step */
    int32_t step;
    int32_t child;    /* of FORK: the copy, stopped; 0: it came to a freeze */
    int32_t released; /* 1 before the first thread runs again: what is read from then on is late */
    int32_t zombie;   /* 1: the copy is dead, and could not be reaped */
    int32_t reserved_too;
    uint64_t threads_used;
    uint64_t area_used;
    uint64_t started;  /* time of the first stop */
    uint64_t stop_ns;  /* until all were stopped and their registers read */
    uint64_t fork_ns;  /* of clone(2): while a thread had registers of ours */
    uint64_t total_ns; /* until all ran again */
};

/*
 * Start a guardian: returns its process id, or -errno. It is not a child that wait(2) sees, but
 * with __WALL. It writes a byte to the socket when the target is stopped or copied; when it
 * can read from it, or it is closed, or the command dies, it undoes everything and exits.
 */
int64_t fastdump_guard_start(struct fastdump_guard *guard, int32_t socket);
