// awkward DIR [spin] [uffd] [hugetlb]: one of each memory layout that a dumper can get wrong.
//
//   spin     one more thread that never leaves user mode
//   uffd     missing pages also block readers inside the kernel (process_vm_readv hangs)
//   hugetlb  a region of huge pages, if some are free
#include "target.h"

#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/wait.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

enum { RW = PROT_READ | PROT_WRITE, PIECES = 16, REGIONS = 80, HUGE = 2 << 20 };

struct piece {
    uint8_t *start, *end;
    const char *kind;
    uint64_t seed;
};

struct region {
    const char *name, *perms, *label;
    char *path;
    uint8_t *start, *end;
    bool exact;         // is start to end one line of maps?
    size_t header, eof; // a file's bytes before *header* are no pattern; after *eof* there are none
    struct piece pieces[PIECES];
    int count;
};

static struct region regions[REGIONS];
static int region_count;
static size_t page;
static const char *scratch;

// ---- Where things go: slots of one reservation, a page apart, so that no two regions merge.

static uint8_t *cursor, *arena_end;
static struct {
    uint8_t *start, *end;
} gaps[REGIONS];
static int gap_count;

static void reserve_arena(void) {
    size_t length = 128 << 20;
    cursor =
        MUST(mmap(NULL, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    arena_end = cursor + length;
}

static uint8_t *place(size_t length, size_t alignment) {
    uintptr_t at = ((uintptr_t)cursor + page + alignment - 1) & -alignment;
    uint8_t *start = (uint8_t *)at;
    errno = ENOMEM;
    if (start + length >= arena_end || gap_count == REGIONS - 1)
        die("arena");
    gaps[gap_count].start = cursor, gaps[gap_count++].end = start;
    cursor = start + length;
    return start;
}

// Last: a later mmap would land in the gaps.
static void unmap_gaps(void) {
    gaps[gap_count].start = cursor, gaps[gap_count++].end = arena_end;
    for (int i = 0; i < gap_count; i++)
        MUST(munmap(gaps[i].start, gaps[i].end - gaps[i].start));
}

// ---- What they hold.

static struct region *declare(const char *name, const char *perms, const char *label, void *start,
                              size_t length) {
    errno = ENOMEM;
    if (region_count == REGIONS)
        die("regions");
    struct region *r = &regions[region_count++];
    *r = (struct region){.name = name,
                         .perms = perms,
                         .label = label,
                         .start = start,
                         .end = (uint8_t *)start + length,
                         .exact = true,
                         .eof = length};
    return r;
}

static uint64_t seed_of(const struct region *r) { return 1 + (r - regions); }
static uint64_t file_seed_of(const struct region *r) { return 1001 + (r - regions); }

static void add_piece(struct region *r, uint8_t *start, uint8_t *end, const char *kind,
                      uint64_t seed) {
    if (start >= end)
        return;
    errno = ENOMEM;
    if (r->count == PIECES)
        die(r->name);
    r->pieces[r->count++] = (struct piece){start, end, kind, seed};
}

// Puts *count* pages of one kind behind those the region has already:
//   P pattern   R resident zeros   Z zero page    A absent     D written, then discarded: absent
//   F file      N past its end     E elsewhere    G guard      U missing (userfaultfd)   X other
static void paint(struct region *r, char kind, size_t count) {
    uint8_t *start = r->count ? r->pieces[r->count - 1].end : r->start, *end = start + count * page;
    errno = EINVAL;
    if (end > r->end)
        die(r->name);
    switch (kind) {
    case 'P':
        pattern(start, end - start, seed_of(r));
        return add_piece(r, start, end, "pattern", seed_of(r));
    case 'R':
        memset(start, 0, end - start);
        return add_piece(r, start, end, "zero", 0);
    case 'Z':
        for (uint8_t *at = start; at < end; at += page)
            touch(at);
        return add_piece(r, start, end, "zeropage", 0);
    case 'D':
        pattern(start, end - start, seed_of(r));
        MUST(madvise(start, end - start, MADV_DONTNEED));
        return add_piece(r, start, end, "absent", 0);
    case 'F': {
        uint8_t *header = r->start + r->header, *eof = r->start + r->eof;
        uint8_t *from = header > start ? header : start, *to = eof < end ? eof : end;
        add_piece(r, start, from < end ? from : end, "other", 0);
        add_piece(r, from, to, "file", file_seed_of(r));
        return add_piece(r, to > from ? to : from, end, "tail", 0);
    }
    case 'E':
        return add_piece(r, start, end, "elsewhere", seed_of(r));
    }
    const char *kinds[] = {['A'] = "absent",
                           ['N'] = "nodata",
                           ['G'] = "guard",
                           ['U'] = "uffd-missing",
                           ['X'] = "other"};
    add_piece(r, start, end, kinds[(int)kind], 0);
}

// Paints "P2A1Z*": a kind and its number of pages, or * for the rest.
static struct region *layout(struct region *r, const char *plan) {
    while (*plan) {
        char kind = *plan++, *end = (char *)plan + 1;
        uint8_t *done = r->count ? r->pieces[r->count - 1].end : r->start;
        paint(r, kind, *plan == '*' ? (size_t)(r->end - done) / page : strtoul(plan, &end, 10));
        plan = end;
    }
    return r;
}

static uint8_t *map_at(uint8_t *at, size_t length, int prot, int flags, int fd, off_t offset) {
    return MUST(mmap(at, length, prot, flags | MAP_FIXED, fd, offset));
}

static uint8_t *map_anonymous(size_t length) {
    uint8_t *at = map_at(place(length, page), length, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    no_huge_pages(at, length);
    return at;
}

static struct region *anonymous(const char *name, size_t pages, const char *plan) {
    return layout(declare(name, "rw-p", "anonymous", map_anonymous(pages * page), pages * page),
                  plan);
}

static void protect(struct region *r, int prot, const char *perms) {
    MUST(mprotect(r->start, r->end - r->start, prot));
    r->perms = perms;
}

// ---- Files.

static char *in_scratch(const char *name) {
    char *path;
    MUST(asprintf(&path, "%s/%s", scratch, name));
    return path;
}

static int create(const char *path) { return MUST(open(path, O_RDWR | O_CREAT | O_TRUNC, 0600)); }

// The file gets the bytes that belong to the address at which it will be mapped.
static void write_pattern(int fd, off_t offset, uint8_t *address, size_t length, uint64_t seed) {
    uint8_t *bytes = malloc(length);
    pattern_fill(bytes, (uintptr_t)address, length, seed);
    MUST(pwrite(fd, bytes, length, offset));
    free(bytes);
}

struct file {
    size_t pages, length, offset; // length: of the file's mapped part; 0 is all of its pages
    const void *header;
    size_t header_length;
    bool shared;
    const char *plan;
};

static struct region *map_file(const char *name, const char *label, int fd, struct file f) {
    size_t length = f.pages * page, in_file = f.length ? f.length : length;
    struct region *r =
        declare(name, f.shared ? "rw-s" : "rw-p", label, place(length, page), length);
    write_pattern(fd, f.offset, r->start, in_file, file_seed_of(r));
    if (f.header)
        MUST(pwrite(fd, f.header, f.header_length, f.offset));
    r->header = f.header_length, r->eof = in_file;
    map_at(r->start, length, RW, f.shared ? MAP_SHARED : MAP_PRIVATE, fd, f.offset);
    close(fd);
    return layout(r, f.plan);
}

static struct region *scratch_file(const char *name, const char *file_name, struct file f) {
    char *path = in_scratch(file_name);
    struct region *r = map_file(name, "file", create(path), f);
    r->path = path;
    return r;
}

static void build_files(void) {
    scratch_file("past eof", "past-eof", (struct file){4, page + page / 2, .plan = "P1F1N2"});
    scratch_file("data.so", "data.so", (struct file){8, .plan = "F1P2F3P1F1"});
    MUST(mkdir(in_scratch("tmp"), 0700));
    MUST(mkdir(in_scratch("tmp/jason"), 0700));
    scratch_file("jason app", "tmp/jason/app", (struct file){4, .offset = page, .plan = "P3F1"});
    scratch_file("shared file", "shared", (struct file){4, .shared = true, .plan = "P1F2P1"});
    protect(scratch_file("modified", "modified", (struct file){64, .plan = "F1P1F50P1F*"}),
            PROT_READ, "r--p");

    struct file two = {2, .plan = "P1F1"};
    scratch_file("spaces", "  with   spaces ", two);
    scratch_file("newline", "new\nline", two);
    scratch_file("not utf-8", "not-utf8-\xff\xfe", two);
    scratch_file("backslash", "back\\slash", two);
    scratch_file("backslash 012", "back\\012slash", two);
    scratch_file("literal deleted", "literal (deleted)", two);
    MUST(unlink(scratch_file("deleted", "really", two)->path));

    uint8_t garbage[64];
    memset(garbage, 0xff, sizeof garbage);
    memcpy(garbage, ELFMAG, SELFMAG);
    Elf64_Ehdr elf = {.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT},
                      .e_type = ET_DYN,
#ifdef __aarch64__
                      .e_machine = EM_AARCH64,
#else
                      .e_machine = EM_X86_64,
#endif
                      .e_version = EV_CURRENT,
                      .e_phoff = sizeof elf,
                      .e_ehsize = sizeof elf,
                      .e_phentsize = sizeof(Elf64_Phdr),
                      .e_phnum = 4};
    scratch_file("elf garbage", "garbage.elf", (struct file){2, 0, 0, garbage, 64, .plan = "F1P1"});
    scratch_file("elf truncated", "truncated.elf", (struct file){1, 52, 0, &elf, 52, .plan = "F1"});
    elf.e_phnum = 65535, elf.e_phoff = 0xffffffffffffff00;
    scratch_file("elf phnum", "phnum.elf", (struct file){2, 0, 0, &elf, 64, .plan = "F1P1"});

    int fd = MUST(memfd_create("private data", MFD_CLOEXEC));
    map_file("memfd private", "file", fd, (struct file){4, .plan = "F1P2F1"});
}

// ---- Libraries.

static void copy_library(int to) {
    char path[PATH_MAX] = "", buffer[65536];
    MUST(readlink("/proc/self/exe", path, sizeof path - 1));
    char *source;
    MUST(asprintf(&source, "%s/lib_bss.so", dirname(path)));
    int from = MUST(open(source, O_RDONLY | O_CLOEXEC));
    for (ssize_t count; (count = MUST(read(from, buffer, sizeof buffer)));)
        MUST(write(to, buffer, count));
    close(from), close(to), free(source);
}

static void load_library(const char *const names[3], const char *path, char *maps_path) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fprintf(stderr, "awkward: %s\n", dlerror());
        exit(1);
    }
    uintptr_t text = (uintptr_t)dlsym(library, "lib_text");
    struct region *loaded[] = {
        layout(declare(names[0], "r-xp", "library", (void *)(text & -page), page), "X1"),
        layout(declare(names[1], "rw-p", "library", dlsym(library, "lib_data"), 65536), "P1X*"),
        layout(declare(names[2], "rw-p", "library", dlsym(library, "lib_bss"), 1 << 20),
               "P3Z1R1A2P1A*"),
    };
    for (int i = 0; i < 3; i++)
        loaded[i]->exact = false, loaded[i]->path = i < 2 ? maps_path : NULL;
}

static void build_libraries(void) {
    char *path = in_scratch("plugin.bin");
    copy_library(create(path));
    load_library((const char *[]){"plugin text", "plugin data", "plugin bss"}, path, path);

    path = in_scratch("deleted-library.so");
    copy_library(create(path));
    load_library(
        (const char *[]){"deleted library text", "deleted library data", "deleted library bss"},
        path, path);
    MUST(unlink(path));

    int fd = MUST(memfd_create("library", MFD_CLOEXEC));
    copy_library(MUST(dup(fd)));
    MUST(asprintf(&path, "/proc/self/fd/%d", fd));
    load_library((const char *[]){"memfd library text", "memfd library data", "memfd library bss"},
                 path, "/memfd:library");
    close(fd);
}

static __attribute__((aligned(65536))) uint8_t own_data[65536] = {1};
static __attribute__((aligned(65536))) uint8_t own_bss[2 * 65536];

static void build_executable(void) {
    layout(declare("executable data", "rw-p", "executable", own_data, sizeof own_data), "P1X*")
        ->exact = false;
    layout(declare("executable bss", "rw-p", "executable", own_bss, sizeof own_bss), "P1A*")
        ->exact = false;
}

// ---- Anonymous memory.

static void build_private(void) {
    protect(anonymous("prot none", 4, "P2A1P1"), PROT_NONE, "---p");
    protect(anonymous("write only", 4, "P3A1"), PROT_WRITE, "-w-p");
    protect(anonymous("read only", 4, "P3A1"), PROT_READ, "r--p");
    anonymous("never touched", 16, "A16");
    anonymous("mixed", 64, "P1A1Z1R1D1P8Z8A8R8D8P16Z1P1A1");

    uint8_t *at = map_anonymous(16 * page);
    pattern(at, 16 * page, 1);
    MUST(munmap(at + 6 * page, 4 * page));
    MUST(madvise(at, 6 * page, MADV_DONTNEED));
    MUST(madvise(at + 10 * page, 6 * page, MADV_DONTNEED));
    layout(declare("hole low", "rw-p", "anonymous", at, 6 * page), "P2D1Z1R1P1");
    layout(declare("hole high", "rw-p", "anonymous", at + 10 * page, 6 * page), "D1P2A1Z1P1");

    int zero = MUST(open("/dev/zero", O_RDWR | O_CLOEXEC));
    struct region *r = declare("dev zero", "rw-p", "anonymous", place(4 * page, page), 4 * page);
    map_at(r->start, 4 * page, RW, MAP_PRIVATE, zero, 0);
    close(zero);
    layout(r, "P2Z1A1");

    r = declare("huge pages", "rw-p", "anonymous", place(3 * HUGE, HUGE), 3 * HUGE);
    map_at(r->start, 3 * HUGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(r->start, 3 * HUGE, MADV_HUGEPAGE); // may be EINVAL: then they are small pages
    paint(r, 'P', HUGE / page), paint(r, 'Z', HUGE / page), paint(r, 'A', HUGE / page);
}

static void build_guard(void) {
    uint8_t *at = map_anonymous(8 * page);
    pattern(at, 4 * page, 1); // installing a guard discards what the page held
    if (!madvise(at + 2 * page, 2 * page, MADV_GUARD_INSTALL))
        layout(declare("guard", "rw-p", "anonymous", at, 8 * page), "P2G2P2A2");
    else
        MUST(munmap(at, 8 * page));
}

// Returns what readers in the kernel meet at a missing page: "error", "block", or NULL: not
// permitted.
static const char *build_userfaultfd(bool block) {
    int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | (block ? 0 : UFFD_USER_MODE_ONLY));
    if (fd < 0)
        return NULL;
    size_t length = 8 * page;
    struct region *r = declare("userfaultfd", "rw-p", "anonymous", map_anonymous(length), length);
    layout(r, "P3Z1U4");
    struct uffdio_api api = {.api = UFFD_API};
    struct uffdio_register missing = {.range = {(uintptr_t)r->start, length},
                                      .mode = UFFDIO_REGISTER_MODE_MISSING};
    MUST(ioctl(fd, UFFDIO_API, &api));
    MUST(ioctl(fd, UFFDIO_REGISTER, &missing));
    return block ? "block" : "error";
}

static bool build_hugetlb(void) {
    size_t length = 3 * HUGE;
    uint8_t *at = mmap(NULL, length, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
    if (at == MAP_FAILED)
        return false;
    struct region *r = declare("hugetlb", "rw-p", "anonymous", at, length);
    paint(r, 'P', HUGE / page), paint(r, 'R', HUGE / page), paint(r, 'A', HUGE / page);
    return true;
}

// ---- Shared memory.

// 'E' pages are written by a child: they hold data, but this process has no page table entry for
// them.
static struct region *shared_memory(const char *name, uint8_t *at, size_t pages, const char *plan) {
    struct region *r = layout(declare(name, "rw-s", "shared memory", at, pages * page), plan);
    pid_t child = MUST(fork());
    if (!child) {
        for (struct piece *p = r->pieces; p < r->pieces + r->count; p++)
            if (!strcmp(p->kind, "elsewhere"))
                pattern(p->start, p->end - p->start, p->seed);
        _exit(0);
    }
    int status;
    MUST(waitpid(child, &status, 0));
    errno = ECHILD;
    if (status)
        die(name);
    return r;
}

static void build_shared(void) {
    size_t length = 16 * page;
    uint8_t *at = place(length, page);
    map_at(at, length, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    shared_memory("shared anonymous", at, 16, "P2A2E4A2P1E1A4");

    int fd = MUST(memfd_create("shared data", MFD_CLOEXEC));
    MUST(ftruncate(fd, 8 * page));
    at = place(8 * page, page);
    map_at(at, 8 * page, RW, MAP_SHARED, fd, 0);
    close(fd);
    shared_memory("memfd shared", at, 8, "P2E2A4");

    int id = MUST(shmget(IPC_PRIVATE, 8 * page, IPC_CREAT | 0600));
    at = place(8 * page, SHMLBA);
    MUST(shmat(id, at, SHM_REMAP));
    MUST(shmctl(id, IPC_RMID, NULL));
    shared_memory("sysv", at, 8, "P2A2E1P1A2");
}

// ---- What the kernel and libc lay out: heap, stacks, vdso.

static uint8_t *up(uint8_t *at) { return (uint8_t *)(((uintptr_t)at + page - 1) & -page); }

// The line of maps around *inside*, whose pages alone are known.
static struct region *declare_around(const char *name, const char *perms, const char *label,
                                     uint8_t *inside, size_t pages) {
    FILE *maps = fopen("/proc/self/maps", "re");
    char *line = NULL;
    size_t capacity = 0;
    unsigned long start = 0, end = 0;
    while (maps && getline(&line, &capacity, maps) > 0)
        if (sscanf(line, "%lx-%lx", &start, &end) == 2 && (uintptr_t)inside < end)
            break;
    errno = ENOENT;
    if (start > (uintptr_t)inside || end < (uintptr_t)inside + pages * page)
        die(name);
    free(line);
    fclose(maps);
    struct region *r = declare(name, perms, label, (void *)start, end - start);
    paint(r, 'X', (inside - r->start) / page);
    paint(r, 'P', pages);
    return layout(r, "X*");
}

struct thread {
    bool spin;
    pid_t tid;
    uint8_t *inside;
    sem_t ready;
};

static void *run_thread(void *argument) {
    struct thread *self = argument;
    self->tid = gettid();
    self->inside = up(alloca(3 * page));
    sem_post(&self->ready);
    if (self->spin) // SCHED_IDLE: it shall not slow the tests
        MUST(sched_setscheduler(0, SCHED_IDLE, &(struct sched_param){0}));
    while (self->spin)
#ifdef __aarch64__
        __asm__ volatile("yield");
#else
        __asm__ volatile("pause");
#endif
    for (;;)
        pause();
}

static struct region *start_thread(struct thread *thread, const char *name) {
    pthread_t id;
    MUST0(pthread_create(&id, NULL, run_thread, thread));
    while (sem_wait(&thread->ready))
        ;
    return declare_around(name, "rw-p", "thread stack", thread->inside, 2);
}

static void print_truth(const struct thread *threads, int thread_count, const char *userfaultfd) {
    json_begin();
    printf(", \"userfaultfd\": ");
    userfaultfd ? json_string(userfaultfd) : (void)printf("null");
    printf(", \"threads\": [");
    for (int i = 0; i < thread_count; i++)
        printf("%s{\"tid\": %d, \"stack\": %zu, \"spin\": %s}", i ? ", " : "", threads[i].tid,
               (size_t)threads[i].inside, threads[i].spin ? "true" : "false");
    printf("], \"regions\": [");
    for (struct region *r = regions; r < regions + region_count; r++) {
        printf("%s{\"name\": ", r > regions ? ", " : "");
        json_string(r->name);
        printf(", \"start\": %zu, \"end\": %zu, \"perms\": \"%s\", \"label\": \"%s\", \"exact\": "
               "%s, \"path\": ",
               (size_t)r->start, (size_t)r->end, r->perms, r->label, r->exact ? "true" : "false");
        r->path ? json_string(r->path) : (void)printf("null");
        printf(", \"content\": [");
        for (int i = 0; i < r->count; i++)
            printf("%s[%zu, %zu, \"%s\", %llu]", i ? ", " : "", (size_t)r->pieces[i].start,
                   (size_t)r->pieces[i].end, r->pieces[i].kind,
                   (unsigned long long)r->pieces[i].seed);
        printf("]}");
    }
    printf("]");
    json_end();
}

int main(int argc, char **argv) {
    static struct thread threads[2];
    static char buffer[65536]; // standard output's own would be memory of the heap
    bool spin = false, block = false, hugetlb = false;
    die_with_parent();
    setvbuf(stdout, buffer, _IOFBF, sizeof buffer);
    page = page_size();
    scratch = argv[1];
    for (int i = 2; i < argc; i++) {
        spin |= !strcmp(argv[i], "spin");
        block |= !strcmp(argv[i], "uffd");
        hugetlb |= !strcmp(argv[i], "hugetlb");
    }
    if (!scratch)
        return fprintf(stderr, "usage: awkward DIR [spin] [uffd] [hugetlb]\n"), 2;

    reserve_arena();
    build_libraries();
    build_shared(); // forks: before there are threads
    build_executable();
    build_files();
    build_private();
    build_guard();
    if (hugetlb)
        build_hugetlb();
    for (int i = 0; i <= spin; i++) {
        threads[i].spin = i;
        sem_init(&threads[i].ready, 0, 0);
        start_thread(&threads[i], i ? "spinning thread" : "parked thread");
    }
    uint8_t *heap = malloc(64 << 10), *stack = alloca(3 * page);
    if (page <= 16384) // else malloc would map a block of whole pages apart from the heap
        declare_around("heap", "rw-p", "heap", up(heap), 2);
    declare_around("stack", "rw-p", "stack", up(stack), 2);
    uint8_t *vdso = (uint8_t *)getauxval(AT_SYSINFO_EHDR);
    if (vdso)
        layout(declare("vdso", "r-xp", "kernel page", vdso, page), "X1")->exact = false;
    const char *userfaultfd = build_userfaultfd(block);
    unmap_gaps();
    print_truth(threads, 1 + spin, userfaultfd);
    wait_for_end();
}
