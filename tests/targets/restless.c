// restless WHAT...: a thread for each WHAT, which does it all the time and checks the result: a
// call that ends early, a stranger among the children, a lost signal are counted as faults. The
// two counters of "counters", 64 MiB apart, are equal at each moment, read by the rule below.
// A byte on standard input prints the truth once more.
#include "target.h"

#include <linux/futex.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <time.h>

#define APART (64 << 20)
#define WRITTEN (16 << 20)
#define NAP 3000000 // nanoseconds

struct job {
    const char *name;
    void (*run)(struct job *);
    atomic_long rounds, faults;
    atomic_int error; // of the last fault
};

static atomic_bool ending;
// Slot `current` of both is valid; the other one is being written.
static struct counters {
    atomic_ulong slot[2];
} *one, *other;
static atomic_ulong current;

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void check(struct job *job, bool good) {
    if (!good) {
        job->error = errno;
        job->faults++;
    }
    job->rounds++;
}

static void do_nanosleep(struct job *job) {
    struct timespec nap = {0, NAP};
    uint64_t begun = now();
    check(job, nanosleep(&nap, NULL) == 0 && now() - begun >= NAP);
}

static void do_futex(struct job *job) {
    int word = 0;
    struct timespec nap = {0, NAP};
    uint64_t begun = now();
    long got = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &nap, NULL, 0);
    check(job, got == -1 && errno == ETIMEDOUT && now() - begun >= NAP);
}

static void do_poll(struct job *job) {
    uint64_t begun = now();
    check(job, poll(NULL, 0, NAP / 1000000) == 0 && now() - begun >= NAP - 1000000);
}

static void do_ppoll(struct job *job) {
    sigset_t none;
    struct timespec nap = {0, NAP};
    sigemptyset(&none);
    uint64_t begun = now();
    check(job, ppoll(NULL, 0, &nap, &none) == 0 && now() - begun >= NAP);
}

static void do_epoll(struct job *job) {
    struct epoll_event event;
    int fd = MUST(epoll_create1(0));
    check(job, epoll_wait(fd, &event, 1, NAP / 1000000) == 0);
    close(fd);
}

static void do_sigwait(struct job *job) {
    sigset_t set;
    struct timespec nap = {0, NAP};
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    check(job, sigtimedwait(&set, NULL, &nap) == -1 && errno == EAGAIN);
}

static void do_io_uring(struct job *job) {
    struct io_uring_params params = {0};
    int fd = syscall(SYS_io_uring_setup, 4, &params);
    if (fd < 0) { // not allowed here
        job->rounds++;
        usleep(NAP / 1000);
        return;
    }
    uint8_t *rings = MUST(mmap(NULL, params.sq_off.array + params.sq_entries * 4,
                               PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQ_RING));
    struct io_uring_sqe *entries =
        MUST(mmap(NULL, params.sq_entries * sizeof *entries, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
                  IORING_OFF_SQES));
    struct __kernel_timespec nap = {0, NAP};
    entries[0] = (struct io_uring_sqe){
        .opcode = IORING_OP_TIMEOUT, .addr = (uint64_t)(uintptr_t)&nap, .len = 1};
    *(uint32_t *)(rings + params.sq_off.array) = 0;
    atomic_store((atomic_uint *)(rings + params.sq_off.tail), 1);
    uint64_t begun = now();
    MUST(syscall(SYS_io_uring_enter, fd, 1, 0, 0, NULL, 0));
    long got = syscall(SYS_io_uring_enter, fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0);
    check(job, got == 0 && now() - begun >= NAP);
    munmap(rings, params.sq_off.array + params.sq_entries * 4);
    munmap(entries, params.sq_entries * sizeof *entries);
    close(fd);
}

static void do_read(struct job *job) {
    int ends[2];
    char byte = 0;
    MUST(pipe(ends));
    pid_t child = MUST(fork());
    if (child == 0) {
        usleep(NAP / 1000);
        _exit(write(ends[1], "x", 1) != 1);
    }
    check(job, read(ends[0], &byte, 1) == 1 && byte == 'x');
    check(job, waitpid(child, NULL, 0) == child);
    close(ends[0]), close(ends[1]);
}

// Alone in its process with no other children: any child is its own.
static void do_wait(struct job *job) {
    pid_t child = MUST(fork());
    if (child == 0) {
        usleep(NAP / 1000);
        _exit(7);
    }
    int status = 0;
    pid_t got = wait(&status);
    check(job, got == child && WIFEXITED(status) && WEXITSTATUS(status) == 7);
}

static void do_vfork(struct job *job) {
    struct timespec nap = {0, 20 * NAP}; // its parent cannot be stopped meanwhile
    pid_t child = vfork();
    if (child == 0) {
        nanosleep(&nap, NULL);
        _exit(0);
    }
    check(job, child > 0 && waitpid(child, NULL, 0) == child);
}

static void *born(void *argument) { return argument; }

static void do_threads(struct job *job) {
    pthread_t threads[8];
    bool good = true;
    for (size_t i = 0; i < 8; i++)
        MUST0(pthread_create(&threads[i], NULL, born, (void *)(i + 1)));
    for (size_t i = 0; i < 8; i++) {
        void *got = NULL;
        MUST0(pthread_join(threads[i], &got));
        good = good && got == (void *)(i + 1);
    }
    check(job, good);
}

// Queued signals come in order, and none is lost.
static atomic_int received;
static atomic_int disorder;

static void on_signal(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    if (info->si_value.sival_int != received)
        disorder++;
    received++;
}

static void do_signals(struct job *job) {
    static int sent;
    union sigval value = {.sival_int = sent};
    pthread_sigqueue(pthread_self(), SIGRTMIN, value);
    sent++;
    check(job, received == sent && disorder == 0);
}

static void do_spin(struct job *job) {
    volatile double x = 1.5;
    for (int i = 0; i < 100000; i++)
        x = x * 1.0000001;
    check(job, x > 1.5);
}

static void do_writes(struct job *job) {
    static uint8_t *memory;
    if (!memory)
        memory = map_apart(WRITTEN, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    for (size_t at = 0; at < WRITTEN; at += page_size())
        memory[at]++;
    check(job, true);
}

static void do_counters(struct job *job) {
    unsigned long next = 1 - current, value = one->slot[current] + 1;
    one->slot[next] = value;
    other->slot[next] = value;
    current = next;
    check(job, true);
}

static struct job jobs[] = {
    {.name = "nanosleep", .run = do_nanosleep}, {.name = "futex", .run = do_futex},
    {.name = "poll", .run = do_poll},           {.name = "ppoll", .run = do_ppoll},
    {.name = "epoll", .run = do_epoll},         {.name = "sigwait", .run = do_sigwait},
    {.name = "io_uring", .run = do_io_uring},   {.name = "read", .run = do_read},
    {.name = "wait", .run = do_wait},           {.name = "vfork", .run = do_vfork},
    {.name = "threads", .run = do_threads},     {.name = "signals", .run = do_signals},
    {.name = "writes", .run = do_writes},       {.name = "spin", .run = do_spin},
    {.name = "counters", .run = do_counters},
};
#define JOBS (sizeof jobs / sizeof *jobs)

static void *work(void *argument) {
    struct job *job = argument;
    while (!ending)
        job->run(job);
    return NULL;
}

static void tell(void) {
    const char *separator = "";
    json_begin();
    json_number("current", (uintptr_t)&current);
    json_number("one", (uintptr_t)one);
    json_number("other", (uintptr_t)other);
    printf(", \"jobs\": {");
    for (size_t i = 0; i < JOBS; i++) {
        if (!jobs[i].rounds)
            continue;
        printf("%s\"%s\": [%ld, %ld, %d]", separator, jobs[i].name, jobs[i].rounds, jobs[i].faults,
               jobs[i].error);
        separator = ", ";
    }
    printf("}");
    json_end();
}

int main(int argc, char **argv) {
    die_with_parent();
    uint8_t *memory = map_apart(APART + page_size(), PROT_READ | PROT_WRITE, MAP_PRIVATE);
    one = (void *)memory, other = (void *)(memory + APART);
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
    MUST(sigaction(SIGRTMIN, &action, NULL));
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR2);
    MUST0(pthread_sigmask(SIG_BLOCK, &blocked, NULL));
    pthread_t threads[JOBS];
    bool started[JOBS] = {0};
    for (int i = 1; i < argc; i++)
        for (size_t n = 0; n < JOBS; n++)
            if (!strcmp(argv[i], jobs[n].name)) {
                MUST0(pthread_create(&threads[n], NULL, work, &jobs[n]));
                started[n] = true;
            }
    for (size_t n = 0; n < JOBS; n++)
        while (started[n] && !jobs[n].rounds)
            usleep(1000);
    tell();
    while (next_byte() >= 0)
        tell();
    ending = true;
    for (size_t n = 0; n < JOBS; n++)
        if (started[n])
            pthread_join(threads[n], NULL);
    return 0;
}
