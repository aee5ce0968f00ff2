/*
 * bare: the machine's own limits, to hold fastdump against.
 *
 *   bare read PID                 process_vm_readv into one reused buffer a thread
 *   bare copy PID OUT             process_vm_readv, then pwrite into OUT, then fsync
 *   bare copy-direct PID OUT      the same through O_DIRECT
 *   bare write-direct OUT BYTES   O_DIRECT writes alone, of as much memory of its own, then fsync
 *   bare memcpy BYTES             plain memcpy into one reused buffer a thread
 *
 * Options, after the operands: --threads N (default: the cores that are online), --block BYTES
 * (default: 256 KiB; 1 MiB for the -direct ones), --ranges FILE (default: standard input).
 *
 * The ranges to read are lines of "START END" in hexadecimal, END exclusive. OUT holds them
 * packed, in the order given. The work is cut into pieces of 4 to 64 MiB that the threads take
 * from one atomic counter. The clock starts once all threads stand ready with their buffers
 * touched, and stops after the last one has finished (after fsync, where there is one).
 * One line of JSON comes out: bytes, seconds, gbps (1e9 bytes a second), threads, block.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, MAX_THREADS = 256 };
static const uint64_t MIB = UINT64_C(1) << 20;

/* A part of the work: `length` bytes from `source` (an address) to `offset` of the output. */
struct piece {
    uint64_t source;
    uint64_t offset;
    uint64_t length;
};

struct work {
    bool reads;  /* process_vm_readv from `pid` */
    bool writes; /* pwrite to `fd` */
    bool copies; /* memcpy from our own memory */
    pid_t pid;
    int fd;
    size_t block;
    struct piece *pieces;
    size_t count;
    uint64_t bytes;
    atomic_size_t next;
    pthread_barrier_t ready;
};

static _Noreturn void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("bare: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static uint64_t parse_number(const char *text) {
    char *end;
    errno = 0;
    uint64_t value = strtoull(text, &end, 0);
    if (errno || end == text || *end)
        die("not a number: %s", text);
    return value;
}

/* Bytes that no storage can shrink; the seed makes each thread's buffer differ. */
static void fill_with_noise(unsigned char *buffer, size_t length, uint64_t seed) {
    uint64_t x = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
    for (size_t i = 0; i + sizeof x <= length; i += sizeof x) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        memcpy(buffer + i, &x, sizeof x);
    }
}

static void read_exactly(pid_t pid, uint64_t address, unsigned char *buffer, size_t length) {
    for (size_t done = 0; done < length;) {
        struct iovec local = {buffer + done, length - done};
        struct iovec remote = {(void *)(uintptr_t)(address + done), length - done};
        ssize_t n = process_vm_readv(pid, &local, 1, &remote, 1, 0);
        if (n <= 0)
            die("process_vm_readv at %#" PRIx64 ": %s", address + done, strerror(errno));
        done += (size_t)n;
    }
}

static void write_exactly(int fd, uint64_t offset, const unsigned char *buffer, size_t length) {
    for (size_t done = 0; done < length;) {
        ssize_t n = pwrite(fd, buffer + done, length - done, (off_t)(offset + done));
        if (n <= 0)
            die("pwrite at %#" PRIx64 ": %s", offset + done, strerror(errno));
        done += (size_t)n;
    }
}

static void do_piece(const struct work *work, const struct piece *piece, unsigned char *buffer) {
    for (uint64_t done = 0; done < piece->length; done += work->block) {
        uint64_t left = piece->length - done;
        size_t length = left < work->block ? (size_t)left : work->block;
        if (work->reads) {
            read_exactly(work->pid, piece->source + done, buffer, length);
        } else if (work->copies) {
            memcpy(buffer, (const void *)(uintptr_t)(piece->source + done), length);
            __asm__ volatile("" : : "r"(buffer) : "memory"); /* the copy is not to be elided */
        }
        if (work->writes) /* from DRAM too: one buffer over and over would come from the cache */
            write_exactly(work->fd, piece->offset + done,
                          work->reads ? buffer
                                      : (const unsigned char *)(uintptr_t)(piece->source + done),
                          length);
    }
}

static void *run_thread(void *argument) {
    struct work *work = argument;
    unsigned char *buffer;
    if (posix_memalign((void **)&buffer, PAGE, work->block))
        die("no memory for a buffer");
    fill_with_noise(buffer, work->block, (uint64_t)(uintptr_t)buffer);

    pthread_barrier_wait(&work->ready);
    for (;;) {
        size_t i = atomic_fetch_add(&work->next, 1);
        if (i >= work->count)
            break;
        do_piece(work, &work->pieces[i], buffer);
    }
    free(buffer);
    return NULL;
}

/* The piece size: about 16 pieces a thread, in whole MiB, between 4 and 64 MiB. */
static uint64_t choose_piece_size(uint64_t total, unsigned threads) {
    uint64_t size = total / (threads * UINT64_C(16)) / MIB * MIB;
    return size < 4 * MIB ? 4 * MIB : size > 64 * MIB ? 64 * MIB : size;
}

static void add_range(struct work *work, uint64_t start, uint64_t length, uint64_t piece_size) {
    for (uint64_t done = 0; done < length; done += piece_size) {
        uint64_t left = length - done;
        uint64_t take = left < piece_size ? left : piece_size;
        if ((work->count & (work->count - 1)) == 0) {
            size_t room = work->count ? 2 * work->count : 1;
            work->pieces = realloc(work->pieces, room * sizeof *work->pieces);
            if (!work->pieces)
                die("no memory for the pieces");
        }
        work->pieces[work->count++] = (struct piece){start + done, work->bytes, take};
        work->bytes += take;
    }
}

static void read_ranges(struct work *work, const char *path, unsigned threads) {
    FILE *file = path ? fopen(path, "r") : stdin;
    if (!file)
        die("%s: %s", path, strerror(errno));
    struct range {
        uint64_t start, end;
    } *ranges = NULL;
    size_t count = 0;
    uint64_t total = 0, start, end;
    while (fscanf(file, "%" SCNx64 " %" SCNx64, &start, &end) == 2) {
        if (end <= start)
            die("bad range %" PRIx64 " %" PRIx64, start, end);
        ranges = realloc(ranges, (count + 1) * sizeof *ranges);
        if (!ranges)
            die("no memory for the ranges");
        ranges[count++] = (struct range){start, end};
        total += end - start;
    }
    if (file != stdin)
        fclose(file);
    if (!count)
        die("no ranges given");
    for (size_t i = 0; i < count; i++)
        add_range(work, ranges[i].start, ranges[i].end - ranges[i].start,
                  choose_piece_size(total, threads));
    free(ranges);
}

/* Our own memory to copy from, every page of it touched. */
static uint64_t make_source(uint64_t length) {
    unsigned char *memory =
        mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        die("mmap: %s", strerror(errno));
    fill_with_noise(memory, length, 1);
    return (uint64_t)(uintptr_t)memory;
}

static int open_output(const char *path, uint64_t length, bool direct) {
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | (direct ? O_DIRECT : 0), 0600);
    if (fd < 0 || ftruncate(fd, (off_t)length))
        die("%s: %s", path, strerror(errno));
    return fd;
}

/* Does the work; returns the seconds it took. */
static double run(struct work *work, unsigned threads, bool sync) {
    pthread_t thread[MAX_THREADS];
    pthread_barrier_init(&work->ready, NULL, threads + 1);
    for (unsigned i = 0; i < threads; i++)
        if (pthread_create(&thread[i], NULL, run_thread, work))
            die("cannot start a thread");
    pthread_barrier_wait(&work->ready);
    double start = now();
    for (unsigned i = 0; i < threads; i++)
        pthread_join(thread[i], NULL);
    if (sync && fsync(work->fd))
        die("fsync: %s", strerror(errno));
    return now() - start;
}

static _Noreturn void usage(void) {
    fputs("usage: bare read PID | copy PID OUT | copy-direct PID OUT | write-direct OUT BYTES"
          " | memcpy BYTES\n            [--threads N] [--block BYTES] [--ranges FILE]\n",
          stderr);
    exit(2);
}

int main(int argc, char **argv) {
    static const struct option options[] = {
        {"threads", required_argument, NULL, 't'},
        {"block", required_argument, NULL, 'b'},
        {"ranges", required_argument, NULL, 'r'},
        {0},
    };
    uint64_t threads = (uint64_t)sysconf(_SC_NPROCESSORS_ONLN), block = 0;
    const char *ranges = NULL;
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (option) {
        case 't':
            threads = parse_number(optarg);
            break;
        case 'b':
            block = parse_number(optarg);
            break;
        case 'r':
            ranges = optarg;
            break;
        default:
            usage();
        }
    }
    char **operand = argv + optind;
    int operands = argc - optind;
    if (operands < 2)
        usage();

    const char *name = operand[0];
    bool read = !strcmp(name, "read"), copy = !strcmp(name, "copy"),
         copy_direct = !strcmp(name, "copy-direct"), write_direct = !strcmp(name, "write-direct"),
         memory = !strcmp(name, "memcpy");
    bool direct = copy_direct || write_direct;
    if (!(read || copy || direct || memory) || operands != (read || memory ? 2 : 3))
        usage();
    if (!block)
        block = direct ? MIB : MIB / 4;
    if (!threads || threads > MAX_THREADS || block % PAGE)
        die("--threads is 1 to %d, --block a multiple of %d", MAX_THREADS, PAGE);

    struct work work = {
        .reads = read || copy || copy_direct,
        .writes = copy || direct,
        .copies = memory,
        .fd = -1,
        .block = block,
    };
    if (work.reads) {
        work.pid = (pid_t)parse_number(operand[1]);
        read_ranges(&work, ranges, (unsigned)threads);
    } else {
        uint64_t length = parse_number(operand[write_direct ? 2 : 1]) / PAGE * PAGE;
        add_range(&work, make_source(length), length, choose_piece_size(length, (unsigned)threads));
    }
    if (work.writes)
        work.fd = open_output(operand[write_direct ? 1 : 2], work.bytes, direct);

    double seconds = run(&work, (unsigned)threads, work.writes);
    printf("{\"bytes\": %" PRIu64 ", \"seconds\": %.6f, \"gbps\": %.3f, \"threads\": %" PRIu64
           ", \"block\": %" PRIu64 "}\n",
           work.bytes, seconds, (double)work.bytes / seconds * 1e-9, threads, block);
    return 0;
}
