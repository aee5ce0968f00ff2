/*
 * <immintrin.h> for CPUs without AVX-512: its intrinsics in plain C, from SIMDe, and those that
 * SIMDe 0.7.4 (Debian 12) lacks, as Intel's Intrinsics Guide tells their operation.
 */
#ifndef FASTDUMP_TEST_IMMINTRIN_H
#define FASTDUMP_TEST_IMMINTRIN_H

#define SIMDE_NO_NATIVE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx2.h>
#include <simde/x86/avx512.h>
#include <stdint.h>
#include <string.h>

typedef uint8_t __mmask8;
typedef uint16_t __mmask16;
typedef uint64_t __mmask64;

#define target(instructions) /* else the compiler would use them in its own code */

#define LANES(type, count, vector)                                                                 \
    type lanes[count];                                                                             \
    memcpy(lanes, &(vector), sizeof lanes)

static inline uint32_t _mm_popcnt_u32(uint32_t a) { return (uint32_t)__builtin_popcount(a); }

static inline uint64_t _mm_popcnt_u64(uint64_t a) { return (uint64_t)__builtin_popcountll(a); }

static inline uint64_t _pdep_u64(uint64_t bits, uint64_t mask) {
    uint64_t result = 0;
    for (; mask; mask &= mask - 1, bits >>= 1)
        result |= bits & 1 ? mask & -mask : 0;
    return result;
}

static inline __mmask64 _mm512_testn_epi8_mask(__m512i a, __m512i b) {
    return ~_mm512_test_epi8_mask(a, b);
}

static inline __mmask64 _mm512_mask_testn_epi8_mask(__mmask64 mask, __m512i a, __m512i b) {
    return mask & ~_mm512_test_epi8_mask(a, b);
}

static inline __mmask64 _mm512_cmpneq_epi8_mask(__m512i a, __m512i b) {
    return ~_mm512_cmpeq_epi8_mask(a, b);
}

/* SIMDe has them with an operand too many. */
#undef _mm512_mask_cmpge_epu8_mask
static inline __mmask64 _mm512_mask_cmpge_epu8_mask(__mmask64 mask, __m512i a, __m512i b) {
    return mask & ~_mm512_cmplt_epu8_mask(a, b);
}

#undef _mm512_mask_cmpge_epi8_mask
static inline __mmask64 _mm512_mask_cmpge_epi8_mask(__mmask64 mask, __m512i a, __m512i b) {
    return mask & ~_mm512_cmplt_epi8_mask(a, b);
}

static inline __m512i _mm512_alignr_epi64(__m512i a, __m512i b, int count) {
    uint64_t both[16];
    memcpy(both, &b, 64);
    memcpy(both + 8, &a, 64);
    return _mm512_loadu_si512(both + count % 8);
}

static inline __m512i _mm512_shldv_epi64(__m512i a, __m512i b, __m512i counts) {
    uint64_t low[8], by[8];
    LANES(uint64_t, 8, a);
    memcpy(low, &b, 64);
    memcpy(by, &counts, 64);
    for (int i = 0; i < 8; i++) {
        uint64_t count = by[i] % 64;
        lanes[i] = lanes[i] << count | (count ? low[i] >> (64 - count) : 0);
    }
    return _mm512_loadu_si512(lanes);
}

static inline __m512i _mm512_cvtepu8_epi32(__m128i a) {
    uint32_t wide[16];
    LANES(uint8_t, 16, a);
    for (int i = 0; i < 16; i++)
        wide[i] = lanes[i];
    return _mm512_loadu_si512(wide);
}

static inline __m512i _mm512_maskz_compress_epi8(__mmask64 mask, __m512i a) {
    uint8_t packed[64] = {0};
    LANES(uint8_t, 64, a);
    for (int i = 0, count = 0; i < 64; i++)
        if (mask >> i & 1)
            packed[count++] = lanes[i];
    return _mm512_loadu_si512(packed);
}

static inline __m512i _mm512_i32gather_epi32(__m512i indexes, const void *base, int scale) {
    LANES(int32_t, 16, indexes);
    for (int i = 0; i < 16; i++)
        memcpy(&lanes[i], (const char *)base + (int64_t)lanes[i] * scale, sizeof *lanes);
    return _mm512_loadu_si512(lanes);
}

#endif
