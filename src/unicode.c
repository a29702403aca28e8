/* UTF-8, character classes and NFC; unicode.h says which Unicode versions and why.
 *
 * NFC works on spans: one ASCII character (it may take the mark that follows) and the run of
 * non-ASCII behind it. An ASCII character is a starter that never composes with what stands before
 * it, so spans are independent, and prose costs little.  utf8proc decomposes and composes, but its
 * canonical ordering is an insertion sort, quadratic in a hostile run of marks: ordering is done
 * here, by counting. */
#include "src/unicode.h"

#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

typedef struct range {
    int32_t first, last;
} range;

/* Letters and numbers of Unicode 15.1 and 16.0. */
static const range new_letters[] = {
    {0x1C89, 0x1C8A},   {0xA7CB, 0xA7CD},   {0xA7DA, 0xA7DC},   {0x105C0, 0x105F3},
    {0x10D4A, 0x10D65}, {0x10D6F, 0x10D85}, {0x10EC2, 0x10EC4}, {0x11380, 0x11389},
    {0x1138B, 0x1138B}, {0x1138E, 0x1138E}, {0x11390, 0x113B5}, {0x113B7, 0x113B7},
    {0x113D1, 0x113D1}, {0x113D3, 0x113D3}, {0x11BC0, 0x11BE0}, {0x13460, 0x143FA},
    {0x16100, 0x1611D}, {0x16D40, 0x16D6C}, {0x18CFF, 0x18CFF}, {0x1E5D0, 0x1E5ED},
    {0x1E5F0, 0x1E5F0}, {0x2EBF0, 0x2EE5D},
};
static const range new_numbers[] = {
    {0x10D40, 0x10D49}, {0x116D0, 0x116E3}, {0x11BF0, 0x11BF9}, {0x16130, 0x16139},
    {0x16D70, 0x16D79}, {0x1CCF0, 0x1CCF9}, {0x1E5F1, 0x1E5FA},
};
/* Marks with a combining class that the library's NFC takes for starters; U+11930, which it does
 * not compose; and U+11A7, just before the first trailing Hangul jamo, which utf8proc 2.8 takes for
 * an empty one and drops. */
static const range old_starters[] = {
    {0x7FD, 0x7FD},     {0x898, 0x89F},     {0x8CA, 0x8D3},     {0x9FE, 0x9FE},
    {0xC3C, 0xC3C},     {0xD3B, 0xD3C},     {0xEBA, 0xEBA},     {0x11A7, 0x11A7},
    {0x1715, 0x1715},   {0x1ABF, 0x1ACE},   {0x1DF6, 0x1DFA},   {0xA82C, 0xA82C},
    {0x10D24, 0x10D27}, {0x10EAB, 0x10EAC}, {0x10EFD, 0x10EFF}, {0x10F46, 0x10F50},
    {0x10F82, 0x10F85}, {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x1145E, 0x1145E},
    {0x11839, 0x1183A}, {0x11930, 0x11930}, {0x1193D, 0x1193E}, {0x11943, 0x11943},
    {0x119E0, 0x119E0}, {0x11A34, 0x11A34}, {0x11A47, 0x11A47}, {0x11A99, 0x11A99},
    {0x11D42, 0x11D42}, {0x11D44, 0x11D45}, {0x11D97, 0x11D97}, {0x11F41, 0x11F42},
    {0x16FF0, 0x16FF1}, {0x1E08F, 0x1E08F}, {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE},
    {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF},
};

#define N_OF(array) ((int)(sizeof(array) / sizeof((array)[0])))

static bool is_in(const range *r, int n, int32_t cp)
{
    int lo = 0, hi = n;
    while (lo < hi) {
        int mid = (lo + hi) / 2;
        if (cp > r[mid].last)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < n && cp >= r[lo].first;
}

int mq_unicode_next(const char *text, int64_t n_bytes, int32_t *cp)
{
    const uint8_t *s = (const uint8_t *)text;
    uint8_t lead = s[0];
    *cp = -1;
    if (lead < 0x80) {
        *cp = lead;
        return 1;
    }
    if (lead < 0xC2 || lead > 0xF4)
        return 1;
    int want = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    /* The second byte's range excludes overlong forms, surrogates and what lies above U+10FFFF. */
    uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    int32_t value = lead & (0xFF >> (want + 1));
    for (int i = 1; i < want; i++) {
        if (i >= n_bytes || s[i] < low || s[i] > high)
            return i;
        value = value << 6 | (s[i] & 0x3F);
        low = 0x80;
        high = 0xBF;
    }
    *cp = value;
    return want;
}

int mq_unicode_put(char *out, int32_t cp)
{
    return (int)utf8proc_encode_char(cp, (utf8proc_uint8_t *)out);
}

/* Bytes before the first one that is not ASCII. */
static int64_t ascii_run(const char *text, int64_t n_bytes)
{
    int64_t i = 0;
    for (; i + 8 <= n_bytes; i += 8) {
        uint64_t w;
        memcpy(&w, text + i, 8);
        if (w & 0x8080808080808080u)
            break;
    }
    while (i < n_bytes && !(text[i] & 0x80))
        i++;
    return i;
}

mq_status mq_unicode_check(const char *text, int64_t n_bytes, mq_err *err)
{
    int64_t i = ascii_run(text, n_bytes);
    while (i < n_bytes) {
        int32_t cp;
        int n = mq_unicode_next(text + i, n_bytes - i, &cp);
        if (cp < 0)
            return mq_fail(err, MQ_E_FORMAT, "byte %lld is not UTF-8", (long long)i);
        i += n;
        if (cp < 0x80)
            i += ascii_run(text + i, n_bytes - i);
    }
    return MQ_OK;
}

void mq_unicode_append_lossy(mq_buf *out, const char *bytes, int64_t n_bytes)
{
    int64_t start = 0;
    for (int64_t i = 0; i < n_bytes;) {
        int32_t cp;
        int n = mq_unicode_next(bytes + i, n_bytes - i, &cp);
        if (cp < 0) {
            mq_buf_append(out, bytes + start, i - start);
            mq_buf_append(out, "\xEF\xBF\xBD", 3);
            start = i + n;
        }
        i += n;
    }
    mq_buf_append(out, bytes + start, n_bytes - start);
}

static bool is_space(int32_t cp)
{
    switch (cp) {
    case 0x09:
    case 0x0B:
    case 0x0C:
    case 0x20:
    case 0x85:
    case 0xA0:
    case 0x1680:
    case 0x2028:
    case 0x2029:
    case 0x202F:
    case 0x205F:
    case 0x3000:
        return true;
    default:
        return cp >= 0x2000 && cp <= 0x200A;
    }
}

mq_char_class mq_unicode_class(int32_t cp)
{
    if (cp < 0x80) {
        int32_t lower = cp | 0x20;
        if (lower >= 'a' && lower <= 'z')
            return MQ_CHAR_LETTER;
        if (cp >= '0' && cp <= '9')
            return MQ_CHAR_NUMBER;
        if (cp == '\r' || cp == '\n')
            return MQ_CHAR_NEWLINE;
        return is_space(cp) ? MQ_CHAR_SPACE : MQ_CHAR_OTHER;
    }
    if (is_space(cp))
        return MQ_CHAR_SPACE;
    switch (utf8proc_category(cp)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
        return MQ_CHAR_LETTER;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
        return MQ_CHAR_NUMBER;
    case UTF8PROC_CATEGORY_CN: /* not assigned in utf8proc's version */
        if (is_in(new_letters, N_OF(new_letters), cp))
            return MQ_CHAR_LETTER;
        return is_in(new_numbers, N_OF(new_numbers), cp) ? MQ_CHAR_NUMBER : MQ_CHAR_OTHER;
    default:
        return MQ_CHAR_OTHER;
    }
}

bool mq_unicode_is_plain(const char *text, int64_t n_bytes)
{
    int64_t i = ascii_run(text, n_bytes);
    for (; i < n_bytes; i++)
        if ((uint8_t)text[i] >=
            0xCC) /* leads U+0300 and above; continuation bytes are below 0xC0 */
            return false;
    return true;
}

/* Code points of one span; grown once to the longest, then reused. */
typedef struct span {
    int32_t *cp;  /* [cap] decomposed */
    int32_t *tmp; /* [cap] for ordering */
    int64_t n, cap;
} span;

/* A canonical decomposition is at most 4 code points long (Unicode 3.2 and later, UAX 15). */
enum { MAX_DECOMPOSITION = 4 };

static mq_status span_reserve(span *s, int64_t n_more, mq_err *err)
{
    if (s->n + n_more <= s->cap)
        return MQ_OK;
    int64_t cap = 2 * s->cap + n_more + 64;
    int32_t *cp = realloc(s->cp, (size_t)cap * sizeof *cp);
    if (cp)
        s->cp = cp;
    int32_t *tmp = realloc(s->tmp, (size_t)cap * sizeof *tmp);
    if (tmp)
        s->tmp = tmp;
    if (!cp || !tmp)
        return mq_fail(err, MQ_E_NOMEM, "out of memory for NFC of %lld code points",
                       (long long)cap);
    s->cap = cap;
    return MQ_OK;
}

static int combining_class(int32_t cp)
{
    return (int)utf8proc_get_property(cp)->combining_class;
}

/* Order the marks cp[0..n) by combining class, equal ones kept in order (counting sort). */
static void order_marks(int32_t *cp, int32_t *tmp, int64_t n)
{
    int64_t at[257] = {0};
    for (int64_t i = 0; i < n; i++)
        at[combining_class(cp[i]) + 1]++;
    for (int c = 0; c < 256; c++)
        at[c + 1] += at[c];
    for (int64_t i = 0; i < n; i++)
        tmp[at[combining_class(cp[i])]++] = cp[i];
    memcpy(cp, tmp, (size_t)n * sizeof *cp);
}

static void order_span(span *s)
{
    for (int64_t i = 0; i < s->n;) {
        int64_t end = i;
        bool sorted = true;
        int last = 0, c;
        while (end < s->n && (c = combining_class(s->cp[end])) != 0) {
            sorted = sorted && c >= last;
            last = c;
            end++;
        }
        if (!sorted)
            order_marks(s->cp + i, s->tmp + i, end - i);
        i = end + 1;
    }
}

/* Order, compose and append what the span holds; empties it. */
static mq_status flush_span(mq_buf *out, span *s, mq_err *err)
{
    if (s->n == 0)
        return MQ_OK;
    order_span(s);
    utf8proc_option_t options = UTF8PROC_STABLE | UTF8PROC_COMPOSE;
    utf8proc_ssize_t n = utf8proc_normalize_utf32(s->cp, s->n, options);
    s->n = 0;
    if (n < 0)
        return mq_fail(err, MQ_E_BUG, "composition: %s", utf8proc_errmsg(n));
    for (utf8proc_ssize_t i = 0; i < n; i++) {
        char bytes[4];
        mq_buf_append(out, bytes, mq_unicode_put(bytes, s->cp[i]));
    }
    return MQ_OK;
}

/* Decompose text into the span, cut at the library's starters. */
static mq_status nfc_span(mq_buf *out, span *s, const char *text, int64_t n_bytes, mq_err *err)
{
    utf8proc_option_t options = UTF8PROC_STABLE | UTF8PROC_COMPOSE;
    for (int64_t i = 0; i < n_bytes;) {
        int32_t cp;
        int taken = mq_unicode_next(text + i, n_bytes - i, &cp);
        if (is_in(old_starters, N_OF(old_starters), cp)) {
            MQ_TRY(flush_span(out, s, err));
            mq_buf_append(out, text + i, taken);
        } else {
            MQ_TRY(span_reserve(s, MAX_DECOMPOSITION, err));
            int boundary = 0;
            utf8proc_ssize_t n =
                utf8proc_decompose_char(cp, s->cp + s->n, MAX_DECOMPOSITION, options, &boundary);
            if (n < 0 || n > MAX_DECOMPOSITION)
                return mq_fail(err, MQ_E_BUG, "decomposition of U+%04X", (unsigned)cp);
            s->n += n;
        }
        i += taken;
    }
    return flush_span(out, s, err);
}

mq_status mq_unicode_nfc(mq_buf *out, const char *text, int64_t n_bytes, mq_err *err)
{
    span s = {0};
    mq_status st = MQ_OK;
    int64_t i = 0;
    while (i < n_bytes && st == MQ_OK) {
        int64_t ascii = ascii_run(text + i, n_bytes - i);
        if (i + ascii == n_bytes) {
            mq_buf_append(out, text + i, ascii);
            break;
        }
        int64_t start = ascii > 0 ? i + ascii - 1 : i;
        mq_buf_append(out, text + i, start - i);
        i += ascii;
        while (i < n_bytes && (text[i] & 0x80))
            i++;
        if (mq_unicode_is_plain(text + start, i - start))
            mq_buf_append(out, text + start, i - start);
        else
            st = nfc_span(out, &s, text + start, i - start, err);
    }
    free(s.cp);
    free(s.tmp);
    return st != MQ_OK ? st : mq_buf_status(out, err);
}
