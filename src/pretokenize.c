/* The two matchers behind pretokenize.h.
 *
 * The Qwen2 matcher tries the pattern's alternatives in order at one position and always advances:
 * the classes L, N, space, newline and other cover everything, so there is never text between
 * matches.  It needs no backtracking beyond one character, and each character is looked at a
 * bounded number of times. The PCRE2 walk repeats the library's iteration: an empty match right
 * behind a match is skipped by one character, and text between two matches is a piece of its own
 * (behavior Isolated). */
#include "src/pretokenize.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "src/unicode.h"

enum {
    MAX_PATTERN_BYTES = 4096,
    MATCH_LIMIT = 2000000,   /* steps of one match; JIT counts coarser ones */
    HEAP_LIMIT_KIB = 65536,  /* backtracking memory of the interpreter */
    JIT_STACK_BYTES = 262144 /* fixed: what needs more goes to the interpreter and its limits */
};

struct mq_split {
    pcre2_code *code; /* NULL: Qwen2's pattern, own matcher */
    bool has_jit;
};

/* ---- Qwen2 ---- */

/* Class and length of the character at pos; *n is 0 at the end. */
static mq_char_class class_at(const mq_split_walk *w, int64_t pos, int *n, int32_t *cp)
{
    *n = 0;
    *cp = -1;
    if (pos >= w->n_bytes)
        return MQ_CHAR_OTHER;
    *n = mq_unicode_next(w->text + pos, w->n_bytes - pos, cp);
    return mq_unicode_class(*cp);
}

/* End of the longest run of class c from pos. */
static int64_t run_of(const mq_split_walk *w, int64_t pos, mq_char_class c)
{
    int n;
    int32_t cp;
    while (class_at(w, pos, &n, &cp) == c && n > 0)
        pos += n;
    return pos;
}

/* Lower case of the letters that contractions use; U+017F (long s) folds to s. */
static int32_t fold(int32_t cp)
{
    return cp >= 'A' && cp <= 'Z' ? cp + 32 : cp == 0x17F ? 's' : cp;
}

/* (?i:'s|'t|'re|'ve|'m|'ll|'d) at pos, where an apostrophe stands: its end, or pos. */
static int64_t contraction(const mq_split_walk *w, int64_t pos)
{
    int n1, n2;
    int32_t a, b;
    (void)class_at(w, pos + 1, &n1, &a);
    a = fold(a);
    if (a == 's' || a == 't' || a == 'm' || a == 'd')
        return pos + 1 + n1;
    (void)class_at(w, pos + 1 + n1, &n2, &b);
    b = fold(b);
    if (((a == 'r' || a == 'v') && b == 'e') || (a == 'l' && b == 'l'))
        return pos + 1 + n1 + n2;
    return pos;
}

/* \s*[\r\n]+|\s+(?!\S)|\s+ at pos, where white space stands. */
static int64_t space_piece(const mq_split_walk *w, int64_t pos)
{
    int64_t end = pos, last = pos, newline_end = -1;
    for (;;) {
        int n;
        int32_t cp;
        mq_char_class c = class_at(w, end, &n, &cp);
        if (n == 0 || (c != MQ_CHAR_SPACE && c != MQ_CHAR_NEWLINE))
            break;
        last = end;
        end += n;
        if (c == MQ_CHAR_NEWLINE)
            newline_end = end;
    }
    if (newline_end >= 0)
        return newline_end;
    /* The last space belongs to what follows, unless it is the only one or nothing follows. */
    return end == w->n_bytes || last == pos ? end : last;
}

static int64_t qwen2_piece(const mq_split_walk *w, int64_t pos)
{
    int n, n2;
    int32_t cp, cp2;
    mq_char_class c = class_at(w, pos, &n, &cp);
    if (cp == '\'') {
        int64_t end = contraction(w, pos);
        if (end > pos)
            return end;
    }
    if (c == MQ_CHAR_LETTER)
        return run_of(w, pos + n, MQ_CHAR_LETTER);
    if (c == MQ_CHAR_NUMBER)
        return pos + n;
    mq_char_class c2 = class_at(w, pos + n, &n2, &cp2);
    if (c != MQ_CHAR_NEWLINE && n2 > 0 && c2 == MQ_CHAR_LETTER)
        return run_of(w, pos + n + n2, MQ_CHAR_LETTER);
    if (c == MQ_CHAR_OTHER || (cp == ' ' && n2 > 0 && c2 == MQ_CHAR_OTHER))
        return run_of(w, run_of(w, pos + n, MQ_CHAR_OTHER), MQ_CHAR_NEWLINE);
    return space_piece(w, pos);
}

/* ---- PCRE2 ---- */

mq_status mq_split_create_pcre2(mq_split **out, const char *pattern, mq_err *err)
{
    *out = NULL;
    size_t n_bytes = strlen(pattern);
    if (n_bytes > MAX_PATTERN_BYTES)
        return mq_fail(err, MQ_E_UNSUPPORTED, "split pattern: %zu bytes, at most %d are read",
                       n_bytes, MAX_PATTERN_BYTES);
    mq_split *s = calloc(1, sizeof *s);
    if (!s)
        return mq_fail(err, MQ_E_NOMEM, "out of memory for the split pattern");
    int code = 0;
    PCRE2_SIZE at = 0;
    s->code = pcre2_compile((PCRE2_SPTR)pattern, n_bytes,
                            PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &code, &at, NULL);
    if (!s->code) {
        PCRE2_UCHAR text[128] = "";
        (void)pcre2_get_error_message(code, text, sizeof text);
        free(s);
        return mq_fail(err, MQ_E_UNSUPPORTED, "split pattern: %s at byte %zu", (const char *)text,
                       at);
    }
    s->has_jit = pcre2_jit_compile(s->code, PCRE2_JIT_COMPLETE) == 0;
    *out = s;
    return MQ_OK;
}

mq_status mq_split_create(mq_split **out, const char *pattern, mq_err *err)
{
    if (strcmp(pattern, MQ_SPLIT_QWEN2) != 0)
        return mq_split_create_pcre2(out, pattern, err);
    *out = calloc(1, sizeof **out);
    return *out ? MQ_OK : mq_fail(err, MQ_E_NOMEM, "out of memory for the split pattern");
}

void mq_split_free(mq_split *s)
{
    if (!s)
        return;
    pcre2_code_free(s->code);
    free(s);
}

void mq_split_walk_restart(mq_split_walk *w, const char *text, int64_t n_bytes)
{
    w->text = text;
    w->n_bytes = n_bytes;
    w->pos = w->search_pos = 0;
    w->match_start = w->match_end = w->last_match_end = -1;
}

mq_status mq_split_walk_init(mq_split_walk *w, const mq_split *split, const char *text,
                             int64_t n_bytes, mq_err *err)
{
    memset(w, 0, sizeof *w);
    w->split = split;
    mq_split_walk_restart(w, text, n_bytes);
    if (!split->code)
        return MQ_OK;
    pcre2_match_data *data = pcre2_match_data_create(1, NULL);
    pcre2_match_context *context = pcre2_match_context_create(NULL);
    w->match_data = data;
    w->match_context = context;
    if (!data || !context) {
        mq_split_walk_release(w);
        return mq_fail(err, MQ_E_NOMEM, "out of memory for pattern matching");
    }
    pcre2_set_match_limit(context, MATCH_LIMIT);
    pcre2_set_heap_limit(context, HEAP_LIMIT_KIB);
    if (split->has_jit) {
        w->jit_stack = pcre2_jit_stack_create(JIT_STACK_BYTES, JIT_STACK_BYTES, NULL);
        if (w->jit_stack) /* else PCRE2 uses 32 KiB of the machine's stack */
            pcre2_jit_stack_assign(context, NULL, w->jit_stack);
    }
    return MQ_OK;
}

void mq_split_walk_release(mq_split_walk *w)
{
    pcre2_match_data_free(w->match_data);
    pcre2_match_context_free(w->match_context);
    pcre2_jit_stack_free(w->jit_stack);
    memset(w, 0, sizeof *w);
}

static mq_status match_failure(const mq_split_walk *w, int rc, mq_err *err)
{
    PCRE2_UCHAR text[128] = "";
    (void)pcre2_get_error_message(rc, text, sizeof text);
    mq_status st = rc == PCRE2_ERROR_NOMEMORY ? MQ_E_NOMEM : MQ_E_FORMAT;
    return mq_fail(err, st, "split pattern at byte %lld: %s", (long long)w->search_pos,
                   (const char *)text);
}

/* Find the next match from search_pos into match_start and match_end; no more: match_start =
 * n_bytes, both equal. */
static mq_status find_match(mq_split_walk *w, mq_err *err)
{
    for (;;) {
        w->match_start = w->match_end = w->n_bytes;
        if (w->search_pos > w->n_bytes)
            return MQ_OK;
        PCRE2_SPTR text = (PCRE2_SPTR)w->text;
        PCRE2_SIZE n = (PCRE2_SIZE)w->n_bytes, from = (PCRE2_SIZE)w->search_pos;
        uint32_t options =
            PCRE2_NO_UTF_CHECK; /* the caller checked; PCRE2 would do it for each match */
        int rc =
            pcre2_match(w->split->code, text, n, from, options, w->match_data, w->match_context);
        if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
            rc = pcre2_match(w->split->code, text, n, from, options | PCRE2_NO_JIT, w->match_data,
                             w->match_context);
        if (rc == PCRE2_ERROR_NOMATCH) {
            w->search_pos = w->n_bytes + 1;
            return MQ_OK;
        }
        if (rc < 0)
            return match_failure(w, rc, err);
        const PCRE2_SIZE *o = pcre2_get_ovector_pointer(w->match_data);
        if (o[0] > o[1] || o[0] < from)
            return mq_fail(err, MQ_E_UNSUPPORTED,
                           "split pattern: a match ends before it starts (\\K)");
        if (o[0] == o[1] && (int64_t)o[1] == w->last_match_end) {
            int32_t cp;
            w->search_pos +=
                w->search_pos < w->n_bytes
                    ? mq_unicode_next(w->text + w->search_pos, w->n_bytes - w->search_pos, &cp)
                    : 1;
            continue;
        }
        w->match_start = (int64_t)o[0];
        w->match_end = w->search_pos = w->last_match_end = (int64_t)o[1];
        return MQ_OK;
    }
}

mq_status mq_split_walk_next(mq_split_walk *w, int64_t *start, int64_t *end, mq_err *err)
{
    *start = *end = w->pos;
    if (w->pos >= w->n_bytes)
        return MQ_OK;
    if (!w->split->code) {
        *end = w->pos = qwen2_piece(w, w->pos);
        return MQ_OK;
    }
    /* Empty matches give no piece, but they do cut: text before one ends at it. */
    while (w->pos == *start) {
        if (w->match_start < 0)
            MQ_TRY(find_match(w, err));
        if (w->pos < w->match_start) {
            w->pos = w->match_start;
        } else {
            w->pos = w->match_end;
            w->match_start = -1;
        }
    }
    *end = w->pos;
    return MQ_OK;
}
