/* Rounding with AVX2, FMA and F16C: the bits of round_scalar.c.
 *
 * Scales are searched with a row in each lane (round_lanes.inc, after a transposition); codes and
 * error sums go along the rows, where 64 columns of rows g and g + 8 are exactly the 64 consecutive
 * bytes that lanes 4 g .. 4 g + 3 of a unit own. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/round_avx2.h"

typedef __m256 vf;
enum { VF_LANES = 8 };

static inline vf vf_load(const float *p)
{
    return _mm256_load_ps(p);
}
static inline void vf_store(float *p, vf x)
{
    _mm256_store_ps(p, x);
}
static inline vf vf_set1(float x)
{
    return _mm256_set1_ps(x);
}
static inline vf vf_add(vf a, vf b)
{
    return _mm256_add_ps(a, b);
}
static inline vf vf_sub(vf a, vf b)
{
    return _mm256_sub_ps(a, b);
}
static inline vf vf_mul(vf a, vf b)
{
    return _mm256_mul_ps(a, b);
}
static inline vf vf_div(vf a, vf b)
{
    return _mm256_div_ps(a, b);
}
static inline vf vf_min(vf a, vf b)
{
    return _mm256_min_ps(a, b);
}
static inline vf vf_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}
static inline vf vf_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}
static inline vf vf_fnma(vf a, vf b, vf c)
{
    return _mm256_fnmadd_ps(a, b, c);
}
static inline vf vf_neg(vf a)
{
    return _mm256_xor_ps(a, _mm256_set1_ps(-0.0f));
}
static inline vf vf_less(vf a, vf b, vf x, vf y)
{
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
static inline vf vf_same(vf a, vf b, vf x, vf y)
{
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_EQ_OQ));
}
static inline vf vf_scale(vf s, vf floor)
{
    __m256i u = _mm256_castps_si256(s),
            odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    u = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    vf b = _mm256_castsi256_ps(_mm256_and_si256(u, _mm256_set1_epi32(-0x10000)));
    vf minus = _mm256_set1_ps(-0.0f);
    return _mm256_or_ps(_mm256_max_ps(_mm256_andnot_ps(minus, b), floor), _mm256_and_ps(minus, b));
}

#include "kernels/cpu/round_lanes.inc"

/* ---- largest magnitudes ---- */

/* Lane by lane over a group of one row. */
static inline __m256i most_of(const float *w, int g)
{
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i a = _mm256_setzero_si256(), b = a;
    for (int i = 0; i < g; i += 16) {
        __m256i x = _mm256_castps_si256(_mm256_loadu_ps(w + i));
        __m256i y = _mm256_castps_si256(_mm256_loadu_ps(w + i + 8));
        a = _mm256_max_epu32(a, _mm256_and_si256(x, magnitude));
        b = _mm256_max_epu32(b, _mm256_and_si256(y, magnitude));
    }
    return _mm256_max_epu32(a, b);
}

static inline __m256i most_of_pairs(__m256i a, __m256i b)
{
    return _mm256_max_epu32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
}

/* Four rows together share the steps across the lanes. */
void mq_round_absmax_avx2(const mq_round_chunk *c, uint32_t max[MQ_ROUND_GROUPS][MQ_UNIT_ROWS])
{
    for (int r = 0; r < MQ_UNIT_ROWS; r += 4)
        for (int k = 0; k < c->n_cols / c->group; k++) {
            __m256i row[4];
            for (int i = 0; i < 4; i++)
                row[i] = most_of(c->rows[r + i] + k * c->group, c->group);
            __m256i a = most_of_pairs(row[0], row[1]), b = most_of_pairs(row[2], row[3]);
            a = _mm256_max_epu32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
            __m128i four = _mm_max_epu32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
            _mm_store_si128((__m128i *)(void *)&max[k][r], four);
        }
}

/* ---- scales ---- */

void mq_round_rtn_avx2(const uint32_t max[MQ_UNIT_ROWS], float s[MQ_UNIT_ROWS])
{
    for (int r = 0; r < MQ_UNIT_ROWS; r += VF_LANES) {
        vf a = _mm256_castsi256_ps(_mm256_load_si256((const __m256i *)(const void *)(max + r)));
        vf scale = vf_scale(vf_div(a, vf_set1(7.0f)), vf_set1(0x1p-126f));
        vf_store(s + r, vf_same(a, vf_set1(0.0f), vf_set1(1.0f), scale));
    }
}

/* Lane r of out[i] is lane i of row r. */
static inline void transpose8(__m256 v[8])
{
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
        a[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            b[i + 2 * j] = _mm256_shuffle_ps(a[i + j], a[i + j + 2], 0x44);
            b[i + 2 * j + 1] = _mm256_shuffle_ps(a[i + j], a[i + j + 2], 0xee);
        }
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
        v[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
    }
}

void mq_round_columns_avx2(const float *const rows[8], int col, int g, const float *pre, float *to,
                           int stride)
{
    __m256 unit = _mm256_load_ps(pre);
    for (int c = 0; c < g; c += 8) {
        __m256 v[8];
        for (int r = 0; r < 8; r++)
            v[r] = _mm256_loadu_ps(rows[r] + col + c);
        transpose8(v);
        for (int i = 0; i < 8; i++)
            _mm256_store_ps(to + (c + i) * stride, _mm256_mul_ps(v[i], unit));
    }
}

static void search(const mq_round_chunk *c, int k, const float *omega,
                   const uint32_t max[MQ_UNIT_ROWS], mq_round_scales *scales, float *work)
{
    float *pre = scales->pre[k];
    for (int r = 0; r < MQ_UNIT_ROWS; r++)
        pre[r] = mq_round_pow2(-mq_round_exponent(max[r]));
    for (int h = 0; h < MQ_UNIT_ROWS; h += VF_LANES) {
        mq_round_columns_avx2(c->rows + h, k * c->group, c->group, pre + h, work, VF_LANES);
        search_lanes(work, omega, c->group, max + h, scales->s[k] + h, pre + h, scales->inv[k] + h);
    }
}

/* ---- codes ---- */

/* One row of a half unit: scale, what turns a weight into steps, running sums. */
typedef struct row_state {
    __m256 s, pre, inv;
    __m256d err2[2], norm2[2];
} row_state;

static inline void add_squares(__m256d sum[2], __m256 x)
{
    __m256d lo = _mm256_cvtps_pd(_mm256_castps256_ps128(x)),
            hi = _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
    sum[0] = _mm256_fmadd_pd(lo, lo, sum[0]);
    sum[1] = _mm256_fmadd_pd(hi, hi, sum[1]);
}

/* q + 8 in the low bits of 8 words. */
static inline __m256i encode8(row_state *row, const float *at, int is_search)
{
    const __m256 magic = _mm256_set1_ps(MQ_ROUND_MAGIC);
    __m256 w = _mm256_loadu_ps(at);
    __m256 x =
        is_search ? _mm256_mul_ps(_mm256_mul_ps(w, row->pre), row->inv) : _mm256_div_ps(w, row->s);
    x = _mm256_max_ps(_mm256_min_ps(x, _mm256_set1_ps(7.0f)), _mm256_set1_ps(-8.0f));
    __m256 t = _mm256_add_ps(x, magic);
    add_squares(row->err2, _mm256_fnmadd_ps(row->s, _mm256_sub_ps(t, magic), w));
    add_squares(row->norm2, w);
    return _mm256_castps_si256(t);
}

/* 32 columns of both rows: 32 bytes, columns in the order 0 2 1 3 within each four. */
static inline __m256i encode_half(row_state *lo, row_state *hi, const float *w_lo,
                                  const float *w_hi, int is_search)
{
    __m256i v[4];
    for (int i = 0; i < 4; i++) {
        __m256i a = encode8(lo, w_lo + 8 * i, is_search), b = encode8(hi, w_hi + 8 * i, is_search);
        v[i] = _mm256_and_si256(
            _mm256_add_epi32(_mm256_and_si256(a, _mm256_set1_epi32(15)), _mm256_slli_epi32(b, 4)),
            _mm256_set1_epi32(255));
    }
    /* words to bytes: each 128-bit half holds 4 columns of every vector */
    __m256i bytes =
        _mm256_packus_epi16(_mm256_packus_epi32(v[0], v[1]), _mm256_packus_epi32(v[2], v[3]));
    const __m256i order = _mm256_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15, 0,
                                           2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
    return _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(bytes, order),
                                       _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

static inline void set_scales(row_state *row, const mq_round_scales *scales, int k, int r,
                              int is_search)
{
    row->s = _mm256_set1_ps(scales->s[k][r]);
    if (is_search) {
        row->pre = _mm256_set1_ps(scales->pre[k][r]);
        row->inv = _mm256_set1_ps(scales->inv[k][r]);
    }
}

static inline void load_sums(row_state *row, const mq_round_lanes *from)
{
    for (int i = 0; i < 2; i++) {
        row->err2[i] = _mm256_load_pd(from->err2 + 4 * i);
        row->norm2[i] = _mm256_load_pd(from->norm2 + 4 * i);
    }
}

static inline void store_sums(const row_state *row, mq_round_lanes *to)
{
    for (int i = 0; i < 2; i++) {
        _mm256_store_pd(to->err2 + 4 * i, row->err2[i]);
        _mm256_store_pd(to->norm2 + 4 * i, row->norm2[i]);
    }
}

static inline __attribute__((always_inline)) void
encode_rows(const mq_round_chunk *c, int g, int is_search, const mq_round_scales *scales,
            mq_round_lanes *lo, mq_round_lanes *hi)
{
    row_state a = {0}, b = {0};
    load_sums(&a, lo);
    load_sums(&b, hi);
    for (int u = 0; u < c->n_cols / MQ_UNIT_COLS; u++) {
        __m256i half[2];
        for (int h = 0; h < 2; h++) {
            int col = u * MQ_UNIT_COLS + 32 * h;
            set_scales(&a, scales, col / c->group, g, is_search);
            set_scales(&b, scales, col / c->group, g + 8, is_search);
            half[h] = encode_half(&a, &b, c->rows[g] + col, c->rows[g + 8] + col, is_search);
        }
        /* lane t of the unit takes 8 bytes of each half */
        __m256i even = _mm256_unpacklo_epi64(half[0], half[1]),
                odd = _mm256_unpackhi_epi64(half[0], half[1]);
        uint8_t *to = mq_round_unit(c, u) + 64 * g;
        _mm256_storeu_si256((__m256i *)(void *)to, _mm256_permute2x128_si256(even, odd, 0x20));
        _mm256_storeu_si256((__m256i *)(void *)(to + 32),
                            _mm256_permute2x128_si256(even, odd, 0x31));
    }
    store_sums(&a, lo);
    store_sums(&b, hi);
}

static void encode(const mq_round_chunk *c, int g, int is_search, const mq_round_scales *scales,
                   mq_round_lanes *lo, mq_round_lanes *hi)
{
    if (is_search)
        encode_rows(c, g, 1, scales, lo, hi);
    else
        encode_rows(c, g, 0, scales, lo, hi);
}

/* ---- widening ---- */

static int64_t widen_bf16(const uint8_t *from, int64_t n, float *out)
{
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m128i h = _mm_loadu_si128((const __m128i *)(const void *)(from + 2 * i));
        _mm256_storeu_ps(out + i,
                         _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16)));
    }
    return i;
}

/* The exponent is 112 too small after the shift; a product with 2^112 mends it, subnormals
 * included.  Infinity and NaN keep their bits. */
static int64_t widen_f16(const uint8_t *from, int64_t n, float *out)
{
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256i h =
            _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)(from + 2 * i)));
        __m256i mag = _mm256_slli_epi32(_mm256_and_si256(h, _mm256_set1_epi32(0x7fff)), 13);
        __m256i sign = _mm256_slli_epi32(_mm256_and_si256(h, _mm256_set1_epi32(0x8000)), 16);
        __m256i top = _mm256_cmpgt_epi32(mag, _mm256_set1_epi32((0x7c00 << 13) - 1));
        __m256 finite = _mm256_mul_ps(_mm256_castsi256_ps(mag), _mm256_set1_ps(0x1p112f));
        __m256 other = _mm256_castsi256_ps(_mm256_or_si256(mag, _mm256_set1_epi32(0x7f800000)));
        __m256 x = _mm256_blendv_ps(finite, other, _mm256_castsi256_ps(top));
        _mm256_storeu_ps(out + i, _mm256_or_ps(x, _mm256_castsi256_ps(sign)));
    }
    return i;
}

/* E4M3 codes of one scale: as F16 with the exponent 8 too small.  Stops before a NaN. */
static int64_t widen_e4m3(const uint8_t *from, int64_t n, float s, float *out)
{
    const __m128i nan = _mm_set1_epi8(0x7f);
    const __m256 mend = _mm256_set1_ps(256.0f), scale = _mm256_set1_ps(s);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        __m128i c = _mm_loadu_si128((const __m128i *)(const void *)(from + i));
        if (_mm_movemask_epi8(_mm_cmpeq_epi8(_mm_and_si128(c, nan), nan)))
            return i;
        /* c << 8 in 16 bits, shifted right by one with its sign: sign, a copy of it to clear, seven
         * bits of c */
        const __m128i keep = _mm_set1_epi16((short)0xbfff);
        __m128i lo =
            _mm_and_si128(_mm_srai_epi16(_mm_unpacklo_epi8(_mm_setzero_si128(), c), 1), keep);
        __m128i hi =
            _mm_and_si128(_mm_srai_epi16(_mm_unpackhi_epi8(_mm_setzero_si128(), c), 1), keep);
        _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_mul_ps(_mm256_cvtph_ps(lo), mend), scale));
        _mm256_storeu_ps(out + i + 8,
                         _mm256_mul_ps(_mm256_mul_ps(_mm256_cvtph_ps(hi), mend), scale));
    }
    return i;
}

static void widen_fp8(const mq_matrix *m, int64_t r, int64_t col0, int64_t n, float *out)
{
    const uint8_t *codes = (const uint8_t *)m->data + r * m->cols;
    int64_t scale_row = r / m->seg_rows * mq_fp8_seg_scale_rows(m) +
                        (m->row_phase + r % m->seg_rows) / MQ_FP8_BLOCK;
    const uint8_t *scales = (const uint8_t *)m->scale + scale_row * mq_fp8_scale_cols(m) * 4;
    for (int64_t c = col0, end = col0 + n; c < end;) {
        int64_t block = (m->col_phase + c) / MQ_FP8_BLOCK,
                stop = (block + 1) * MQ_FP8_BLOCK - m->col_phase;
        stop = stop < end ? stop : end;
        float s;
        memcpy(&s, scales + block * 4, sizeof s);
        c += widen_e4m3(codes + c, stop - c, s, out + (c - col0));
        mq_round_ops_scalar.widen(m, r, c, stop - c, out + (c - col0));
        c = stop;
    }
}

static void widen_mxfp4(const mq_matrix *m, int64_t r, int64_t col0, int64_t n, float *out)
{
    const uint8_t *codes = (const uint8_t *)m->data + r * (m->cols / 2);
    const uint8_t *scales = (const uint8_t *)m->scale + r * (m->cols / MQ_MX_GROUP);
    const __m128i low = _mm_set1_epi8(15);
    const __m256 magnitudes = _mm256_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f);
    for (int64_t c = col0; c < col0 + n; c += MQ_MX_GROUP, out += MQ_MX_GROUP) {
        __m128i x = _mm_loadu_si128((const __m128i *)(const void *)(codes + c / 2));
        __m128i even = _mm_and_si128(x, low), odd = _mm_and_si128(_mm_srli_epi16(x, 4), low);
        __m128i pair[2] = {_mm_unpacklo_epi8(even, odd), _mm_unpackhi_epi8(even, odd)};
        __m256 scale = _mm256_set1_ps(mq_e8m0_to_f32(scales[c / MQ_MX_GROUP]));
        for (int i = 0; i < 4; i++) {
            __m128i eight = i % 2 ? _mm_srli_si128(pair[i / 2], 8) : pair[i / 2];
            __m256i code = _mm256_cvtepu8_epi32(eight);
            __m256i sign = _mm256_slli_epi32(_mm256_srli_epi32(code, 3), 31);
            __m256 v = _mm256_xor_ps(_mm256_permutevar8x32_ps(magnitudes, code),
                                     _mm256_castsi256_ps(sign));
            _mm256_storeu_ps(out + 8 * i, _mm256_mul_ps(v, scale));
        }
    }
}

void mq_round_widen_avx2(const mq_matrix *m, int64_t r, int64_t col0, int64_t n, float *out)
{
    const uint8_t *plain = (const uint8_t *)m->data + 2 * (r * m->cols + col0);
    int64_t done = 0;
    if (m->scheme == MQ_SCHEME_FP8_BLOCK) {
        widen_fp8(m, r, col0, n, out);
        return;
    }
    if (m->scheme == MQ_SCHEME_MXFP4_ROWS) {
        widen_mxfp4(m, r, col0, n, out);
        return;
    }
    if (m->scheme == MQ_SCHEME_BF16)
        done = widen_bf16(plain, n, out);
    else if (m->scheme == MQ_SCHEME_F16)
        done = widen_f16(plain, n, out);
    mq_round_ops_scalar.widen(m, r, col0 + done, n - done, out + done);
}

const mq_round_ops mq_round_ops_avx2 = {"avx2", mq_round_absmax_avx2, mq_round_rtn_avx2, search,
                                        encode, mq_round_widen_avx2};
