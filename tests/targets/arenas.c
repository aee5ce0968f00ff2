// arenas N [FAST]: N threads, each with a malloc arena of its own, allocate, free and resize at
// random; then all of them wait, and the truth is what malloc says of itself. Before, so many
// chunks as FAST get into a fastbin of the main arena, in a random order.
//
// A byte on standard input lets one more round run, and prints it again.
#include "target.h"

#include <malloc.h>
#include <pthread.h>

#if !__GLIBC_PREREQ(2, 33)
#define mallinfo2 mallinfo // of int: enough for what is allocated here
#endif

enum { MOST = 4096, STEPS = 20000 };

static pthread_barrier_t begun, ended;
static uint64_t live_bytes, live_count;

struct worker {
    pthread_t thread;
    uint64_t random;
    void *held[MOST];
};

static uint64_t draw(struct worker *worker) {
    worker->random = pattern_word(worker->random & -8, worker->random);
    return worker->random;
}

// Mostly small, sometimes above the mmap threshold.
static size_t draw_size(struct worker *worker) {
    uint64_t kind = draw(worker) % 1000, word = draw(worker);
    return kind < 800   ? word % 200
           : kind < 985 ? word % 5000
           : kind < 998 ? word % 100000
                        : 140000 + word % 400000;
}

static void one_round(struct worker *worker) {
    for (int step = 0; step < STEPS; step++) {
        void **at = &worker->held[draw(worker) % MOST];
        switch (draw(worker) % 8) {
        case 0:
        case 1:
        case 2:
            free(*at);
            *at = NULL;
            break;
        case 3: {
            void *resized = realloc(*at, draw_size(worker) + 1);
            *at = resized ? resized : *at;
            break;
        }
        case 4:
            free(*at);
            *at = aligned_alloc(64, (draw_size(worker) + 64) & -64);
            break;
        default:
            free(*at);
            *at = malloc(draw_size(worker));
        }
        if (*at)
            memset(*at, 0x41, malloc_usable_size(*at));
    }
}

static void *work(void *argument) {
    struct worker *worker = argument;
    for (;;) {
        one_round(worker);
        pthread_barrier_wait(&ended);
        pthread_barrier_wait(&begun);
    }
    return NULL;
}

static void fill_fastbin(size_t count) {
    static struct worker own = {.random = 4711};
    void **chunks = MUST(mmap(NULL, count * sizeof *chunks, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (size_t i = 0; i < count; i++)
        chunks[i] = malloc(40);
    for (size_t i = count; i > 0; i--) {
        void **at = &chunks[draw(&own) % i];
        free(*at);
        *at = chunks[i - 1];
    }
    MUST(munmap(chunks, count * sizeof *chunks));
}

static void print_truth(struct worker *workers, int count) {
    static char report[1 << 20];
    static struct mallinfo2 info;
    live_bytes = live_count = 0;
    for (int i = 0; i < count; i++)
        for (int k = 0; k < MOST; k++)
            if (workers[i].held[k]) {
                live_bytes += malloc_usable_size(workers[i].held[k]);
                live_count++;
            }
    FILE *file = fmemopen(report, sizeof report, "w");
    if (!file)
        die("fmemopen");
    setvbuf(file, NULL, _IONBF, 0);
    // Nothing is allocated or freed from here on.
    malloc_info(0, file);
    info = mallinfo2();
    fflush(file);

    json_begin();
    json_number("uordblks", info.uordblks);
    json_number("fordblks", info.fordblks);
    json_number("fsmblks", info.fsmblks);
    json_number("arena", info.arena);
    json_number("hblks", info.hblks);
    json_number("hblkhd", info.hblkhd);
    json_number("live_bytes", live_bytes);
    json_number("live_count", live_count);
    json_number("workers", (uintptr_t)workers);
    json_number("stride", sizeof *workers);
    json_number("held", offsetof(struct worker, held));
    json_number("most", MOST);
    printf(", \"malloc_info\": ");
    json_string(report);
    json_end();
}

int main(int argc, char **argv) {
    if (argc != 2 && argc != 3)
        return fprintf(stderr, "usage: arenas N [FAST]\n"), 2;
    die_with_parent();
    static char buffer[1 << 16]; // or stdout would allocate one behind the report
    setvbuf(stdout, buffer, _IOFBF, sizeof buffer);
    int count = atoi(argv[1]), fast = argc == 3 ? atoi(argv[2]) : 0;
    mallopt(M_MMAP_THRESHOLD, 128 << 10); // else it grows, and nothing is mapped any more
    mallopt(M_ARENA_MAX, count > 1 ? count + 1 : 1);
    static struct worker workers[64];
    MUST0(pthread_barrier_init(&begun, NULL, count + 1));
    MUST0(pthread_barrier_init(&ended, NULL, count + 1));
    for (int i = 0; i < count; i++) {
        workers[i].random = 1 + i;
        MUST0(pthread_create(&workers[i].thread, NULL, work, &workers[i]));
    }
    do {
        pthread_barrier_wait(&ended);
        if (fast)
            fill_fastbin(fast);
        print_truth(workers, count);
        if (next_byte() < 0)
            _exit(0);
        pthread_barrier_wait(&begun);
    } while (true);
}
