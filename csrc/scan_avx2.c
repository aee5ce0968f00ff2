/* Finds strings with AVX2: load and classify only. */
#if defined(__x86_64__)
#include "scan.h"
#include "words.h"
#include <immintrin.h>

#define TARGET __attribute__((target("avx2,bmi,bmi2,lzcnt,popcnt")))
#define FIND fastdump_find_avx2
#define ANCHORS fastdump_anchors_avx2

#define HELPER TARGET static inline __attribute__((always_inline))

typedef struct {
    __m256i low, high;
} block;

HELPER block load(const unsigned char *from) {
    return (block){_mm256_loadu_si256((const __m256i *)from),
                   _mm256_loadu_si256((const __m256i *)(from + 32))};
}

HELPER uint64_t bits(__m256i low, __m256i high) {
    return (uint32_t)_mm256_movemask_epi8(low) | (uint64_t)(uint32_t)_mm256_movemask_epi8(high)
                                                     << 32;
}

HELPER uint64_t zeros(block b) {
    __m256i zero = _mm256_setzero_si256();
    return bits(_mm256_cmpeq_epi8(b.low, zero), _mm256_cmpeq_epi8(b.high, zero));
}

HELPER block either(block a, block b) {
    return (block){_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)};
}

HELPER uint64_t below(block b, int limit) {
    __m256i limits = _mm256_set1_epi8((char)limit);
    return bits(_mm256_cmpgt_epi8(limits, b.low), _mm256_cmpgt_epi8(limits, b.high));
}

/*
 * 0x20 to 0x7e and tab; all above 0x7f where the encoding has 8 bits; \n \v \f \r as well:
 * in the highest bit, which movemask takes. It is the carry of 0x20 - b + a number that the lower
 * half of b chooses, in three instructions: with 0x60 there is one for all from 0x20 to 0x7f, with
 * 0x50 not for 0x7f, with 0xf0 for some below 0x10 too; above 0x7f the number is 0. (The average
 * adds the 1 that 0x1f lacks.)
 */
HELPER __m256i printable_half(__m256i b, int encoding, bool whitespace) {
    const char tab = (char)0xf0, other = whitespace ? tab : 0x60;
    const __m128i numbers = _mm_setr_epi8(0x60, 0x60, 0x60, 0x60, 0x60, 0x60, 0x60, 0x60, 0x60, tab,
                                          other, other, other, other, 0x60, 0x50);
    __m256i number = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(numbers), b);
    __m256i yes = _mm256_avg_epu8(number, _mm256_sub_epi8(_mm256_set1_epi8(0x1f), b));
    return encoding == FASTDUMP_8BIT ? _mm256_or_si256(yes, b) : yes;
}

HELPER uint64_t printable(block b, int encoding, bool whitespace) {
    return bits(printable_half(b.low, encoding, whitespace),
                printable_half(b.high, encoding, whitespace));
}

HELPER uint64_t printable_zero(block text, block zero, bool whitespace) {
    __m256i none = _mm256_setzero_si256();
    return bits(_mm256_and_si256(printable_half(text.low, FASTDUMP_UTF16LE, whitespace),
                                 _mm256_cmpeq_epi8(zero.low, none)),
                _mm256_and_si256(printable_half(text.high, FASTDUMP_UTF16LE, whitespace),
                                 _mm256_cmpeq_epi8(zero.high, none)));
}

HELPER uint32_t emit(uint32_t *to, uint64_t word, uint32_t base) {
    uint32_t count = (uint32_t)_mm_popcnt_u64(word);
    for (uint32_t done = 0; done < count; done += 4)
        for (int i = 0; i < 4; i++) { /* some too many, but without a branch for each */
            to[done + (uint32_t)i] = base + (uint32_t)_tzcnt_u64(word);
            word = _blsr_u64(word);
        }
    return count;
}

/* The word << count, the bits that come in from the one before. */
HELPER uint64_t behind_64(uint64_t word, uint64_t *before, uint32_t count) {
    uint64_t rest = *before >> (64 - count);
    *before = word;
    return (word << count) + rest; /* an lea, which | is not */
}

/* In from the top, whether a word is 0: two instructions, which the compiler does not find. */
HELPER void shift_in_none(uint64_t *none, uint64_t word) {
    __asm__("cmp $1, %1\n\trcr %0" : "+r"(*none) : "r"(word) : "cc");
}

/*
 * A word at a time, in general registers, beside the vector registers in which bytes are
 * classified: of units, or without any of data. Of the shifts only the last is no power of 2.
 */
HELPER uint64_t edges_of_row_64(struct fastdump_finder *finder, int steps, uint32_t last,
                                uint32_t width, const uint64_t *units, const unsigned char *data,
                                int encoding, bool whitespace, uint64_t *restrict found_ret) {
    uint64_t carried[6], runs = finder->runs, none = 0;
    for (int i = 0; i < steps; i++)
        carried[i] = finder->carried[i];
    for (int at = 0; at < 64; at += 8)
#pragma GCC unroll 8
        for (int i = at; i < at + 8; i++) {
            uint64_t word = units ? units[i] : printable(load(data + 64 * i), encoding, whitespace);
#pragma GCC unroll 6
            for (int step = 0; step < steps; step++)
                word &= behind_64(word, &carried[step], step < steps - 1 ? width << step : last);
            word ^= behind_64(word, &runs, width);
            found_ret[i] = word;
            shift_in_none(&none, word);
        }
    for (int i = 0; i < steps; i++)
        finder->carried[i] = carried[i];
    finder->runs = runs;
    return ~none;
}

HELPER uint64_t edges_of_row_by(struct fastdump_finder *finder, int steps, uint32_t width,
                                const uint64_t *units, const unsigned char *data, int encoding,
                                bool whitespace, uint64_t *found_ret) {
    uint32_t last = steps ? finder->shifts[steps - 1] : 0;
    return edges_of_row_64(finder, steps, last, width, units, data, encoding, whitespace,
                           found_ret);
}

TARGET static uint64_t edges_of_row_of(struct fastdump_finder *finder, const uint64_t *units,
                                       uint64_t *found_ret) {
    STEPS(edges_of_row_by, finder, finder->width, units + 1, NULL, 0, false, found_ret);
}
#define edges_of_row edges_of_row_of

HELPER uint64_t edges_of_strip_of(struct fastdump_finder *finder, const unsigned char *data,
                                  int encoding, bool whitespace, uint64_t *found_ret) {
    if (finder->filter == 4) /* the default: shifts by a constant are faster */
        return edges_of_row_64(finder, 2, 2, 1, NULL, data, encoding, whitespace, found_ret);
    STEPS(edges_of_row_by, finder, 1, NULL, data, encoding, whitespace, found_ret);
}
#define edges_of_strip edges_of_strip_of

HELPER block fill(unsigned char byte) {
    __m256i all = _mm256_set1_epi8((char)byte);
    return (block){all, all};
}

HELPER __m256i is(__m256i b, __m256i value, __m256i mask) {
    return _mm256_cmpeq_epi8(_mm256_and_si256(b, mask), value);
}

HELPER uint64_t both(block a, block a_value, block a_mask, block b, block b_value, block b_mask) {
    return bits(
        _mm256_and_si256(is(a.low, a_value.low, a_mask.low), is(b.low, b_value.low, b_mask.low)),
        _mm256_and_si256(is(a.high, a_value.high, a_mask.high),
                         is(b.high, b_value.high, b_mask.high)));
}

#include "scan.inc.h"

#include "anchors.inc.h"

/* Bits of the filter, one for each of 8 windows. */
HELPER uint32_t gather(__m256i windows, const uint32_t *filter, __m128i shift) {
    __m256i hashes =
        _mm256_srl_epi32(_mm256_mullo_epi32(windows, _mm256_set1_epi32((int)WINDOW_FACTOR)), shift);
    __m256i bits = _mm256_i32gather_epi32((const int *)filter, _mm256_srli_epi32(hashes, 5), 4);
    __m256i to_top = _mm256_andnot_si256(hashes, _mm256_set1_epi32(31));
    return (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_sllv_epi32(bits, to_top)));
}

/* A load has every fourth window. */
TARGET bool fastdump_windows_avx2(const struct fastdump_search *search, const unsigned char *data,
                                  uint64_t blocks, uint64_t *words_ret) {
    const __m256i fold = _mm256_set1_epi32((int)search->fold);
    const __m128i shift = _mm_cvtsi32_si128(32 - (int)search->hash_bits);
    uint64_t any = 0;
    for (uint64_t i = 0; i < blocks; i++) {
        uint64_t word = 0;
        for (uint32_t at = 0; at < 4; at += search->stride) {
            block windows = load(data + 64 * i + at);
            uint32_t some = gather(_mm256_and_si256(windows.low, fold), search->filter, shift) |
                            gather(_mm256_and_si256(windows.high, fold), search->filter, shift)
                                << 8;
            word |= _pdep_u64(some, 0x1111111111111111ull << at);
        }
        words_ret[i] = word;
        any |= word;
    }
    return any;
}

/* 2 words, and the 2 that lie 16 further on: so that what packs them, in halves, leaves an order.
 */
HELPER __m256 two_and_two(const uint64_t *words) {
    __m256i low = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)words));
    __m128i high = _mm_loadu_si128((const __m128i *)(words + 16));
    return _mm256_castsi256_ps(_mm256_inserti128_si256(low, high, 1));
}

/* The upper halves of 4 words, and of 4 further on, held against so many ranges. */
HELPER __m256i near_words(const uint64_t *words, const __m256i *bias, const __m256i *limits,
                          int ranges) {
    __m256i halves =
        _mm256_castps_si256(_mm256_shuffle_ps(two_and_two(words), two_and_two(words + 2), 0xdd));
    __m256i any = _mm256_cmpgt_epi32(limits[0], _mm256_add_epi32(halves, bias[0]));
    for (int i = 1; i < ranges; i++)
        any =
            _mm256_or_si256(any, _mm256_cmpgt_epi32(limits[i], _mm256_add_epi32(halves, bias[i])));
    return any;
}

/* A bit for each of 32 words. */
HELPER uint64_t near_bits(const uint64_t *words, const __m256i *bias, const __m256i *limits,
                          int ranges) {
    __m256i part[4];
    for (int i = 0; i < 4; i++)
        part[i] = near_words(words + 4 * i, bias, limits, ranges);
    __m256i any = _mm256_packs_epi16(_mm256_packs_epi32(part[0], part[1]),
                                     _mm256_packs_epi32(part[2], part[3]));
    return (uint32_t)_mm256_movemask_epi8(any);
}

/* Of so many blocks of 64 words. */
HELPER uint64_t near_blocks(const struct fastdump_near *near, const uint64_t *words,
                            uint64_t blocks, uint32_t *near_ret, int ranges) {
    __m256i bias[3], limits[3];
    for (int i = 0; i < ranges; i++) { /* comparisons are signed; no range has all halves */
        bias[i] = _mm256_set1_epi32((int)(0x80000000u - near->first[i]));
        limits[i] = _mm256_set1_epi32((int)(0x80000001u + near->more[i]));
    }
    uint64_t count = 0, found[64];
    for (uint64_t at = 0; at < blocks; at += 64) {
        uint64_t part = blocks - at < 64 ? blocks - at : 64, some = 0;
        for (uint64_t i = 0; i < part; i++) {
            const uint64_t *block = words + (at + i) * 64;
            found[i] = near_bits(block, bias, limits, ranges) |
                       near_bits(block + 32, bias, limits, ranges) << 32;
            some |= (uint64_t)(found[i] != 0) << i;
        }
        for (; some; some &= some - 1) { /* no branch for each, which would be guessed wrong */
            uint64_t i = _tzcnt_u64(some);
            count += emit(near_ret + count, found[i], (uint32_t)(at + i) * 64);
        }
    }
    return count;
}

TARGET uint64_t fastdump_near_avx2(const struct fastdump_range *windows, const uint64_t *words,
                                   uint64_t count, uint32_t *near_ret) {
    const struct fastdump_near near = fastdump_near(windows);
    uint64_t blocks = count / 64, found = 0;
    switch (near.count) { /* constants: else what a range has is not kept in registers */
    case 1:
        found = near_blocks(&near, words, blocks, near_ret, 1);
        break;
    case 2:
        found = near_blocks(&near, words, blocks, near_ret, 2);
        break;
    case 3:
        found = near_blocks(&near, words, blocks, near_ret, 3);
    }
    uint64_t done = blocks * 64, more = 0;
    if (done < count)
        more = fastdump_near_scalar(windows, words + done, count - done, near_ret + found);
    for (uint64_t i = found; i < found + more; i++)
        near_ret[i] += (uint32_t)done;
    return found + more;
}
#endif
