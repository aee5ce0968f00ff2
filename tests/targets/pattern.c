// The fill pattern as a shared object, for the tests.
#include "target.h"

void fill(void *to, uint64_t address, size_t length, uint64_t seed) {
    pattern_fill(to, address, length, seed);
}
