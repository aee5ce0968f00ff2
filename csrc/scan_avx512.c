/* Finds strings with AVX-512 (VBMI2: Ice Lake and later, Zen 4): load and classify only. */
#if defined(__x86_64__)
#include <immintrin.h>

#define TARGET                                                                                     \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi2,bmi,bmi2,lzcnt,popcnt")))
#define FIND fastdump_find_avx512
#define ROOM 16

typedef __m512i block;

#define HELPER TARGET static inline __attribute__((always_inline))
#include <stdbool.h>
#include <stdint.h>

HELPER block load(const unsigned char *from) { return _mm512_loadu_si512(from); }

HELPER uint64_t zeros(block b) { return _mm512_testn_epi8_mask(b, b); }

HELPER uint64_t below(block b, int limit) {
    return _mm512_cmplt_epi8_mask(b, _mm512_set1_epi8((char)limit));
}

/* 0x20 to 0x7e and tab; all above 0x7f where the encoding (1) has 8 bits; \n \v \f \r as well. */
HELPER uint64_t printable(block b, int encoding, bool whitespace) {
    uint64_t word;
    if (encoding == 1)
        word = _mm512_cmpge_epu8_mask(b, _mm512_set1_epi8(0x20)) &
               _mm512_cmpneq_epi8_mask(b, _mm512_set1_epi8(0x7f));
    else
        word = _mm512_cmplt_epu8_mask(_mm512_sub_epi8(b, _mm512_set1_epi8(0x20)),
                                      _mm512_set1_epi8(0x5f));
    if (whitespace)
        return word |
               _mm512_cmplt_epu8_mask(_mm512_sub_epi8(b, _mm512_set1_epi8(9)), _mm512_set1_epi8(5));
    return word | _mm512_cmpeq_epi8_mask(b, _mm512_set1_epi8(9));
}

HELPER uint32_t emit(uint32_t *to, uint64_t word, uint32_t base) {
    const __m512i iota = _mm512_set_epi8(
        63, 62, 61, 60, 59, 58, 57, 56, 55, 54, 53, 52, 51, 50, 49, 48, 47, 46, 45, 44, 43, 42, 41,
        40, 39, 38, 37, 36, 35, 34, 33, 32, 31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18,
        17, 16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    uint32_t count = (uint32_t)_mm_popcnt_u64(word);
    __m512i positions = _mm512_maskz_compress_epi8(word, iota),
            first = _mm512_set1_epi32((int)base);
    _mm512_storeu_si512(
        to, _mm512_add_epi32(first, _mm512_cvtepu8_epi32(_mm512_castsi512_si128(positions))));
    if (__builtin_expect(count > 16, 0)) {
        for (uint32_t done = 16; done < count; done += 16) {
            positions = _mm512_alignr_epi64(positions, positions, 2); /* 16 bytes down */
            _mm512_storeu_si512(
                to + done,
                _mm512_add_epi32(first, _mm512_cvtepu8_epi32(_mm512_castsi512_si128(positions))));
        }
    }
    return count;
}

#include "scan.inc.h"
#endif
