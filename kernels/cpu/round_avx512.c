/* Rounding with AVX-512 (F, BW, VL, DQ): the bits of round_scalar.c.  A tile's 16 rows are the 16
 * lanes of the search; codes go along the rows as in round_avx2.c. */
#include <immintrin.h>

#include "kernels/cpu/round_avx2.h"

typedef __m512 vf;
enum { VF_LANES = 16 };

static inline vf vf_load(const float *p)
{
    return _mm512_load_ps(p);
}
static inline void vf_store(float *p, vf x)
{
    _mm512_store_ps(p, x);
}
static inline vf vf_set1(float x)
{
    return _mm512_set1_ps(x);
}
static inline vf vf_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}
static inline vf vf_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}
static inline vf vf_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}
static inline vf vf_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}
static inline vf vf_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}
static inline vf vf_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}
static inline vf vf_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}
static inline vf vf_fnma(vf a, vf b, vf c)
{
    return _mm512_fnmadd_ps(a, b, c);
}
static inline vf vf_neg(vf a)
{
    return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f));
}
static inline vf vf_less(vf a, vf b, vf x, vf y)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
static inline vf vf_same(vf a, vf b, vf x, vf y)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), y, x);
}
static inline vf vf_scale(vf s, vf floor)
{
    __m512i u = _mm512_castps_si512(s),
            odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    u = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    vf b = _mm512_castsi512_ps(_mm512_and_si512(u, _mm512_set1_epi32(-0x10000)));
    vf minus = _mm512_set1_ps(-0.0f);
    return _mm512_or_ps(_mm512_max_ps(_mm512_andnot_ps(minus, b), floor), _mm512_and_ps(minus, b));
}

#include "kernels/cpu/round_lanes.inc"

static void search(const mq_round_chunk *c, int k, const float *omega,
                   const uint32_t max[MQ_UNIT_ROWS], mq_round_scales *scales, float *work)
{
    float *pre = scales->pre[k];
    for (int r = 0; r < MQ_UNIT_ROWS; r++)
        pre[r] = mq_round_pow2(-mq_round_exponent(max[r]));
    for (int h = 0; h < MQ_UNIT_ROWS; h += 8)
        mq_round_columns_avx2(c->rows + h, k * c->group, c->group, pre + h, work + h, VF_LANES);
    search_lanes(work, omega, c->group, max, scales->s[k], pre, scales->inv[k]);
}

/* ---- codes ---- */

typedef struct row_state {
    __m512 s, pre, inv;
    __m512d err2, norm2;
} row_state;

/* Columns 0..7 of the sixteen first: the order of the lanes' sums. */
static inline __m512d add_squares(__m512d sum, __m512 x)
{
    __m512d lo = _mm512_cvtps_pd(_mm512_castps512_ps256(x)),
            hi = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
    return _mm512_fmadd_pd(hi, hi, _mm512_fmadd_pd(lo, lo, sum));
}

/* q + 8 in the low bits of 16 words. */
static inline __m512i encode16(row_state *row, const float *at, int is_search)
{
    const __m512 magic = _mm512_set1_ps(MQ_ROUND_MAGIC);
    __m512 w = _mm512_loadu_ps(at);
    __m512 x =
        is_search ? _mm512_mul_ps(_mm512_mul_ps(w, row->pre), row->inv) : _mm512_div_ps(w, row->s);
    x = _mm512_max_ps(_mm512_min_ps(x, _mm512_set1_ps(7.0f)), _mm512_set1_ps(-8.0f));
    __m512 t = _mm512_add_ps(x, magic);
    row->err2 = add_squares(row->err2, _mm512_fnmadd_ps(row->s, _mm512_sub_ps(t, magic), w));
    row->norm2 = add_squares(row->norm2, w);
    return _mm512_castps_si512(t);
}

/* 32 columns of both rows: 32 bytes, columns in order. */
static inline __m256i encode_half(row_state *lo, row_state *hi, const float *w_lo,
                                  const float *w_hi, int is_search)
{
    __m128i v[2];
    for (int i = 0; i < 2; i++) {
        __m512i a = encode16(lo, w_lo + 16 * i, is_search),
                b = encode16(hi, w_hi + 16 * i, is_search);
        /* low nibble from a, the rest from b << 4 */
        __m512i both =
            _mm512_ternarylogic_epi32(_mm512_set1_epi32(15), a, _mm512_slli_epi32(b, 4), 0xca);
        v[i] = _mm512_cvtepi32_epi8(both);
    }
    return _mm256_inserti128_si256(_mm256_castsi128_si256(v[0]), v[1], 1);
}

static inline void set_scales(row_state *row, const mq_round_scales *scales, int k, int r,
                              int is_search)
{
    row->s = _mm512_set1_ps(scales->s[k][r]);
    if (is_search) {
        row->pre = _mm512_set1_ps(scales->pre[k][r]);
        row->inv = _mm512_set1_ps(scales->inv[k][r]);
    }
}

static inline __attribute__((always_inline)) void
encode_rows(const mq_round_chunk *c, int g, int is_search, const mq_round_scales *scales,
            mq_round_lanes *lo, mq_round_lanes *hi)
{
    row_state a = {0}, b = {0};
    a.err2 = _mm512_load_pd(lo->err2), a.norm2 = _mm512_load_pd(lo->norm2);
    b.err2 = _mm512_load_pd(hi->err2), b.norm2 = _mm512_load_pd(hi->norm2);
    /* columns 0 2 1 3 within each four; then lane t of the unit takes 8 bytes of each half */
    const __m512i order = _mm512_set4_epi32(0x0f0d0e0c, 0x0b090a08, 0x07050604, 0x03010200);
    const __m512i lanes = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    for (int u = 0; u < c->n_cols / MQ_UNIT_COLS; u++) {
        __m256i half[2];
        for (int h = 0; h < 2; h++) {
            int col = u * MQ_UNIT_COLS + 32 * h;
            set_scales(&a, scales, col / c->group, g, is_search);
            set_scales(&b, scales, col / c->group, g + 8, is_search);
            half[h] = encode_half(&a, &b, c->rows[g] + col, c->rows[g + 8] + col, is_search);
        }
        __m512i bytes = _mm512_inserti64x4(_mm512_castsi256_si512(half[0]), half[1], 1);
        bytes = _mm512_permutexvar_epi64(lanes, _mm512_shuffle_epi8(bytes, order));
        _mm512_storeu_si512(mq_round_unit(c, u) + 64 * g, bytes);
    }
    _mm512_store_pd(lo->err2, a.err2), _mm512_store_pd(lo->norm2, a.norm2);
    _mm512_store_pd(hi->err2, b.err2), _mm512_store_pd(hi->norm2, b.norm2);
}

static void encode(const mq_round_chunk *c, int g, int is_search, const mq_round_scales *scales,
                   mq_round_lanes *lo, mq_round_lanes *hi)
{
    if (is_search)
        encode_rows(c, g, 1, scales, lo, hi);
    else
        encode_rows(c, g, 0, scales, lo, hi);
}

const mq_round_ops mq_round_ops_avx512 = {"avx512", mq_round_absmax_avx2, mq_round_rtn_avx2, search,
                                          encode,   mq_round_widen_avx2};
