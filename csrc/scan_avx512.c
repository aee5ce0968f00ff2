/* Finds strings with AVX-512 (VBMI2: Ice Lake and later, Zen 4): load and classify only. */
#if defined(__x86_64__)
#include <immintrin.h>

#define TARGET                                                                                     \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi2,bmi,bmi2,lzcnt,popcnt")))
#define FIND fastdump_find_avx512
#define ANCHORS fastdump_anchors_avx512

typedef __m512i block;

#define HELPER TARGET static inline __attribute__((always_inline))
#include "scan.h"

HELPER block load(const unsigned char *from) { return _mm512_loadu_si512(from); }

HELPER uint64_t zeros(block b) { return _mm512_testn_epi8_mask(b, b); }

HELPER block either(block a, block b) { return _mm512_or_si512(a, b); }

HELPER uint64_t below(block b, int limit) {
    return _mm512_cmplt_epi8_mask(b, _mm512_set1_epi8((char)limit));
}

/* 0x20 to 0x7e and tab; all above 0x7f where the encoding (1) has 8 bits; \n \v \f \r as well. */
HELPER uint64_t printable(block b, int encoding, bool whitespace) {
    __m512i shifted = _mm512_sub_epi8(b, _mm512_set1_epi8(whitespace ? 9 : 0x20));
    __m512i from_space = whitespace ? _mm512_sub_epi8(b, _mm512_set1_epi8(0x20)) : shifted;
    /* What is not printable: a comparison under the mask of another needs no move of its own. */
    uint64_t other = whitespace ? _mm512_cmpge_epu8_mask(shifted, _mm512_set1_epi8(5))
                                : _mm512_cmpneq_epi8_mask(b, _mm512_set1_epi8(9));
    if (encoding == 1) {
        other = _mm512_mask_cmpge_epu8_mask(other, from_space, _mm512_set1_epi8(0x5f));
        return ~_mm512_mask_cmpge_epi8_mask(other, b, _mm512_setzero_si512());
    }
    return ~_mm512_mask_cmpge_epu8_mask(other, from_space, _mm512_set1_epi8(0x5f));
}

HELPER uint64_t printable_zero(block text, block zero, bool whitespace) {
    return printable(text, FASTDUMP_UTF16LE, whitespace) & zeros(zero);
}

/* Words shifted together with those before them: one instruction, and no trip through memory. */
HELPER __m512i behind_512(__m512i words, __m512i *before, __m512i count) {
    __m512i shifted = _mm512_alignr_epi64(words, *before, 7); /* the word before each word */
    *before = words;
    return _mm512_shldv_epi64(words, shifted, count);
}

HELPER uint64_t edges_of_row_512(struct fastdump_finder *finder, int steps, const uint64_t *units,
                                 uint64_t *found_ret) {
    __m512i carried[7], shifts[7];
    uint64_t some = 0;
    for (int i = 0; i < steps; i++) {
        carried[i] = _mm512_set1_epi64((long long)finder->carried[i]);
        shifts[i] = _mm512_set1_epi64(finder->shifts[i]);
    }
    carried[steps] = _mm512_set1_epi64((long long)finder->runs);
    shifts[steps] = _mm512_set1_epi64(finder->width);
    for (int at = 0; at < 64; at += 8) {
        __m512i words = _mm512_loadu_si512(units + 1 + at);
        for (int i = 0; i < steps; i++)
            words = _mm512_and_si512(words, behind_512(words, &carried[i], shifts[i]));
        words = _mm512_xor_si512(words, behind_512(words, &carried[steps], shifts[steps]));
        _mm512_storeu_si512(found_ret + at, words);
        some |= (uint64_t)_mm512_test_epi64_mask(words, words) << at;
    }
    uint64_t last[8];
    for (int i = 0; i <= steps; i++) {
        _mm512_storeu_si512(last, carried[i]);
        *(i < steps ? &finder->carried[i] : &finder->runs) = last[7];
    }
    return some;
}

TARGET static uint64_t edges_of_row_of(struct fastdump_finder *finder, const uint64_t *units,
                                       uint64_t *found_ret) {
    STEPS(edges_of_row_512, finder, units, found_ret);
}
#define edges_of_row edges_of_row_of

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

HELPER block fill(unsigned char byte) { return _mm512_set1_epi8((char)byte); }

HELPER uint64_t both(block a, block a_value, block a_mask, block b, block b_value, block b_mask) {
    enum { DIFFERS = 0x78 }; /* value ^ (byte & mask), as a truth table */
    block first = _mm512_ternarylogic_epi64(a_value, a, a_mask, DIFFERS);
    block second = _mm512_ternarylogic_epi64(b_value, b, b_mask, DIFFERS);
    return _mm512_mask_testn_epi8_mask(_mm512_testn_epi8_mask(first, first), second, second);
}

#include "scan.inc.h"

#include "anchors.inc.h"

/* A load has every fourth window; of 16 windows, the bits of the filter are gathered at once. */
TARGET bool fastdump_windows_avx512(const struct fastdump_search *search, const unsigned char *data,
                                    uint64_t blocks, uint64_t *words_ret) {
    const __m512i fold = _mm512_set1_epi32((int)search->fold), one = _mm512_set1_epi32(1),
                  factor = _mm512_set1_epi32((int)WINDOW_FACTOR);
    const __m128i shift = _mm_cvtsi32_si128(32 - (int)search->hash_bits);
    uint64_t any = 0;
    for (uint64_t i = 0; i < blocks; i++) {
        uint64_t word = 0;
        for (uint32_t at = 0; at < 4; at += search->stride) {
            block windows = _mm512_and_si512(load(data + 64 * i + at), fold);
            block hashes = _mm512_srl_epi32(_mm512_mullo_epi32(windows, factor), shift);
            block bits = _mm512_i32gather_epi32(_mm512_srli_epi32(hashes, 5), search->filter, 4);
            __mmask16 some = _mm512_test_epi32_mask(bits, _mm512_rolv_epi32(one, hashes));
            word |= _pdep_u64(some, 0x1111111111111111ull << at);
        }
        words_ret[i] = word;
        any |= word;
    }
    return any;
}
#endif
