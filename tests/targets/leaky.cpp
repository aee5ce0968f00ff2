// leaky LIBRARY: chunks that one thing alone keeps, and chunks that nothing does. Each case has a
// size of its own, by which the truth tells how many of it are reachable, leaked directly, and
// leaked indirectly. Pointers that must not be found are kept with all bits inverted.
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include <dlfcn.h>
#include <linux/futex.h>
#include <malloc.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define APART __attribute__((noinline, noclone))

struct Forgotten {
    virtual ~Forgotten() = default;
    void *held = nullptr;
    char body[1000] = {};
};

enum { LISTED = 20000, ORDERS = 3 };

static void **volatile kept; // mapped: malloc does not know it
static size_t keeping;
static void *volatile global_list[ORDERS];
static thread_local void *volatile thread_local_pointer;
static void (*keep_local)(void *);
static sem_t parked;

static void park_forever() {
    int never = 0;
    sem_post(&parked);
    for (;;)
        syscall(SYS_futex, &never, FUTEX_WAIT_PRIVATE, 0, nullptr, nullptr, 0);
}

static void keep(void *pointer) { kept[keeping++] = pointer; }

static void **allocate(size_t size) {
    void **found = static_cast<void **>(malloc(size));
    memset(found, 0, size);
    return found;
}

// Overwrites what earlier calls left on the stack and in the vector registers.
APART static void scrub() {
    volatile char dead[96 << 10];
    memset(const_cast<char *>(dead), 0, sizeof dead);
    asm volatile("" : : "r"(dead) : "memory");
#if defined(__x86_64__)
    asm volatile("pxor %%xmm0, %%xmm0; pxor %%xmm1, %%xmm1; pxor %%xmm2, %%xmm2;"
                 "pxor %%xmm3, %%xmm3; pxor %%xmm4, %%xmm4; pxor %%xmm5, %%xmm5;"
                 "pxor %%xmm6, %%xmm6; pxor %%xmm7, %%xmm7; pxor %%xmm8, %%xmm8;"
                 "pxor %%xmm9, %%xmm9; pxor %%xmm10, %%xmm10; pxor %%xmm11, %%xmm11;"
                 "pxor %%xmm12, %%xmm12; pxor %%xmm13, %%xmm13; pxor %%xmm14, %%xmm14;"
                 "pxor %%xmm15, %%xmm15"
                 :
                 :
                 : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                   "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
#endif
}

static bool first_case = true;

static void tell(size_t size, size_t reachable, size_t direct, size_t indirect) {
    size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)); // above the threshold: mapped
    size_t chunk = size >= 1 << 20 ? (size + 16 + page - 1) / page * page : (size + 23) / 16 * 16;
    printf("%s\"%zu\": [%zu, %zu, %zu]", first_case ? "" : ", ", chunk, reachable, direct,
           indirect);
    first_case = false;
}

// --- what nothing keeps ---------------------------------------------------------------------

APART static void leak_directly() {
    for (int i = 0; i < 100; i++)
        allocate(1000);
    for (int i = 0; i < 10; i++) { // what points to itself alone
        void **one = allocate(1032);
        one[3] = one;
    }
    tell(1000, 0, 100, 0);
    tell(1032, 0, 10, 0);
}

APART static void leak_chains() {
    for (int i = 0; i < 50; i++) {
        void **last = nullptr;
        for (int n = 0; n < 10; n++) {
            void **one = allocate(1100);
            one[n] = last;
            last = one;
        }
    }
    tell(1100, 0, 50, 450);
}

APART static void leak_cycles() {
    for (int i = 0; i < 20; i++) {
        void **first = allocate(1200), **last = first;
        for (int n = 1; n < 5; n++) {
            void **one = allocate(1200);
            one[0] = last;
            last = one;
        }
        first[100] = last;
    }
    tell(1200, 0, 0, 100);
}

APART static void leak_objects() {
    for (int i = 0; i < 7; i++)
        (new Forgotten)->held = allocate(1300);
    tell(sizeof(Forgotten), 0, 7, 0);
    tell(1300, 0, 0, 7);
}

APART static void leak_behind_the_end() {
    for (int i = 0; i < 10; i++) {
        char *one = reinterpret_cast<char *>(allocate(1416));
        keep(one + malloc_usable_size(one));
    }
    tell(1416, 0, 10, 0);
}

// What was freed still points to them; and what is free behind them is in a list of malloc's.
APART static void leak_beside_freed() {
    void **dead[20];
    for (void **&each : dead) {
        allocate(1500);
        each = allocate(5000);
        keep(allocate(1516));
        for (int n = 100; n < 104; n++)
            each[n] = allocate(1532);
    }
    for (void **each : dead)
        free(each);
    memset(dead, 0, sizeof dead);
    tell(1500, 0, 20, 0);
    tell(1516, 20, 0, 0);
    tell(1532, 0, 80, 0);
}

APART static void leak_mapped() {
    void **large = allocate(3 << 20);
    large[(3 << 20) / 8 - 1] = allocate(1600);
    void **held = allocate(5 << 20);
    held[(5 << 20) / 8 - 1] = allocate(1616);
    keep(held + 1000);
    tell(3 << 20, 0, 1, 0);
    tell(5 << 20, 1, 0, 0);
    tell(1600, 0, 0, 1);
    tell(1616, 1, 0, 0);
}

// Lists in ascending, descending and random order of addresses.
APART static void *list(size_t size, int order, uint64_t random) {
    void **nodes = static_cast<void **>(
        mmap(nullptr, LISTED * sizeof(void *), 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (int i = 0; i < LISTED; i++)
        nodes[i] = allocate(size);
    for (int i = LISTED - 1; order == 2 && i > 0; i--) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        int other = static_cast<int>((random >> 33) % static_cast<uint64_t>(i + 1));
        void *node = nodes[i];
        nodes[i] = nodes[other];
        nodes[other] = node;
    }
    for (int i = 1; i < LISTED; i++) {
        int from = order == 1 ? i : i - 1, to = order == 1 ? i - 1 : i;
        static_cast<void **>(nodes[from])[0] = nodes[to];
    }
    void *head = nodes[order == 1 ? LISTED - 1 : 0];
    munmap(nodes, LISTED * sizeof(void *));
    return head;
}

APART static void make_lists() {
    for (int order = 0; order < ORDERS; order++) {
        size_t size = 200 + 16 * static_cast<size_t>(order);
        global_list[order] = list(size, order, 1);
        list(size + 100, order, 2);
        tell(size, LISTED, 0, 0);
        tell(size + 100, 0, 1, LISTED - 1);
    }
}

// --- what one thing keeps -------------------------------------------------------------------

APART static void keep_inside() {
    for (int i = 0; i < 30; i++)
        keep(reinterpret_cast<char *>(allocate(1700)) + 1 + i * 50);
    tell(1700, 30, 0, 0);
}

APART static void keep_by_library(const char *path) {
    void *library = dlopen(path, RTLD_NOW);
    if (!library) {
        fprintf(stderr, "leaky: %s\n", dlerror());
        exit(1);
    }
    keep_local = reinterpret_cast<void (*)(void *)>(dlsym(library, "leaky_keep_local"));
    *static_cast<void **>(dlsym(library, "leaky_data")) = allocate(1800);
    *static_cast<void **>(dlsym(library, "leaky_bss")) = allocate(1800);
    tell(1800, 2, 0, 0);
}

APART static void keep_by_thread_locals() {
    keep_local(allocate(1900));
    thread_local_pointer = allocate(1916);
}

APART static void *on_stack(void *) {
    void **volatile local = allocate(2000);
    local[1] = nullptr;
    park_forever();
    return const_cast<void **>(local);
}

APART static void leave_on_dead_stack() {
    void **volatile dead[512];
    for (int i = 0; i < 512; i++)
        dead[i] = nullptr;
    dead[0] = allocate(2100);
    asm volatile("" : : "r"(dead) : "memory");
}

static void *below_stack(void *) {
    leave_on_dead_stack();
    park_forever();
    return nullptr;
}

static void *with_locals(void *) {
    keep_by_thread_locals();
    scrub();
    park_forever();
    return nullptr;
}

APART static uintptr_t hidden() { return ~reinterpret_cast<uintptr_t>(allocate(2200)); }

static void *in_register(void *) {
    uintptr_t pointer = hidden();
    scrub();
    sem_post(&parked);
#if defined(__x86_64__)
    asm volatile("not %0\n1: mov %1, %%eax\nsyscall\njmp 1b"
                 : "+r"(pointer)
                 : "i"(SYS_pause)
                 : "rax", "rcx", "r11", "memory");
#elif defined(__aarch64__)
    asm volatile("mvn %0, %0\n1: mov x8, %1\nmov x0, 0\nmov x1, 0\nmov x2, 0\nmov x3, 0\n"
                 "mov x4, 0\nsvc 0\nb 1b"
                 : "+r"(pointer)
                 : "i"(SYS_ppoll)
                 : "x0", "x1", "x2", "x3", "x4", "x8", "memory");
#endif
    return nullptr;
}

APART static void plant_in_arena() {
    for (int i = 0; i < 10; i++)
        allocate(2300);
}

static void *in_arena(void *) {
    plant_in_arena();
    scrub();
    park_forever();
    return nullptr;
}

// They wait in the kernel, each in the call that its stack was made for.
APART static void start_threads() {
    for (auto work : {on_stack, below_stack, with_locals, in_register, in_arena}) {
        pthread_t thread;
        if (pthread_create(&thread, nullptr, work, nullptr))
            exit(1);
        while (sem_wait(&parked))
            ;
    }
    tell(2000, 1, 0, 0);
    tell(2100, 0, 1, 0);
    tell(1900, 2, 0, 0);
    tell(1916, 2, 0, 0);
    tell(2200, 1, 0, 0);
    tell(2300, 0, 10, 0);
}

int main(int argc, char **argv) {
    if (argc != 2)
        return fprintf(stderr, "usage: leaky LIBRARY\n"), 2;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    sem_init(&parked, 0, 0);
    kept = static_cast<void **>(mmap(nullptr, 1 << 16, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    printf("{\"pid\": %d, \"kept\": %zu, \"cases\": {", getpid(), reinterpret_cast<size_t>(kept));
    leak_directly();
    leak_chains();
    leak_cycles();
    leak_objects();
    leak_behind_the_end();
    leak_beside_freed();
    leak_mapped();
    make_lists();
    keep_inside();
    keep_by_library(argv[1]);
    keep_by_thread_locals();
    start_threads();
    scrub();
    puts("}}");
    fflush(stdout);
    char byte;
    while (read(0, &byte, 1) > 0)
        ;
    _exit(0);
}
