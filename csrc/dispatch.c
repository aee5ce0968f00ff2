/* The table of kernels, the best first, and how those that find strings are begun. */
#include <errno.h>
#include <string.h>

#include "scan.h"
#include "search.h"
#include "words.h"

static bool always(void) { return true; }

#if defined(__x86_64__)
static bool has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
           __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
}

static bool has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi2");
}
#endif

static const struct kernel {
    const char *name;
    bool (*supported)(void);
    fastdump_find_function *find;
    fastdump_anchors_function *anchors;
    fastdump_windows_function *windows;
    fastdump_near_function *near;
} kernels[] = {
#if defined(__x86_64__)
    {"avx512", has_avx512, fastdump_find_avx512, fastdump_anchors_avx512, fastdump_windows_avx512,
     fastdump_near_avx2},
    {"avx2", has_avx2, fastdump_find_avx2, fastdump_anchors_avx2, fastdump_windows_avx2,
     fastdump_near_avx2},
#elif defined(__aarch64__)
    {"neon", always, fastdump_find_neon, fastdump_anchors_neon, fastdump_windows_scalar,
     fastdump_near_scalar},
#endif
    {"scalar", always, fastdump_find_scalar, fastdump_anchors_scalar, fastdump_windows_scalar,
     fastdump_near_scalar},
};

static const struct kernel *kernel_at(int32_t index) {
    return index >= 0 && (size_t)index < sizeof kernels / sizeof *kernels ? &kernels[index] : NULL;
}

const char *fastdump_kernel_name(int32_t index) {
    const struct kernel *kernel = kernel_at(index);
    return kernel ? kernel->name : NULL;
}

int64_t fastdump_kernel_supported(int32_t index) {
    const struct kernel *kernel = kernel_at(index);
    return kernel && kernel->supported();
}

int64_t fastdump_finder_begin(struct fastdump_finder *finder, int32_t encoding, int32_t whitespace,
                              uint64_t min_length) {
    static const uint32_t widths[] = {1, 1, 2, 2, 4, 4, 1};
    if (encoding < 0 || encoding > FASTDUMP_UTF8 || min_length == 0)
        return -EINVAL;
    memset(finder, 0, sizeof *finder);
    uint32_t width = widths[encoding], late = encoding == FASTDUMP_UTF8 ? 3 : 0;
    uint32_t most = 64 / width; /* a shift reaches back one word */
    finder->encoding = encoding;
    finder->whitespace = whitespace != 0;
    finder->min_length = min_length;
    finder->width = width;
    finder->filter = min_length < most ? (uint32_t)min_length : most;
    finder->start_delta = finder->filter * width - 1 + late;
    finder->end_delta = width - 1 + late;
    uint32_t reached = 1;
    for (int i = 0; reached < finder->filter; i++) {
        uint32_t left = finder->filter - reached, step = reached < left ? reached : left;
        finder->shifts[i] = step * width;
        reached += step;
    }
    return 0;
}

int64_t fastdump_find(int32_t kernel, struct fastdump_finder *finder, const void *data,
                      uint64_t length, int32_t last, uint32_t base, uint64_t capacity,
                      uint32_t *edges_ret, uint64_t *count_ret) {
    return kernels[kernel].find(finder, data, length, last, base, capacity, edges_ret, count_ret);
}

fastdump_anchors_function *fastdump_anchors_of(int32_t kernel) { return kernels[kernel].anchors; }

fastdump_windows_function *fastdump_windows_of(int32_t kernel) { return kernels[kernel].windows; }

fastdump_near_function *fastdump_near_of(int32_t kernel) { return kernels[kernel].near; }
