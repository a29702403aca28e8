/* Acceptance and speed of speculative decoding, for prompts of code and of English.
 *
 *     bench_speculate TEXT dflash|mtp PROMPTS TOKENS WIDTHS THREADS MODEL...
 *
 * TEXT: documents separated by <|endoftext|>; one that begins like a Python module is code, any
 * other English.  For each MODEL (packed or a checkpoint) and kind, PROMPTS prompts of 128 tokens
 * are continued greedily by TOKENS tokens: plainly, with every fixed width in WIDTHS (digits such
 * as 248, or 0 for none) and with auto.  The ways take turns prompt by prompt, so that the
 * machine's moods hit all alike. Prints tokens per step, tokens per second of the decode loop and
 * the share of drafting. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime/speculate.h"
#include "src/file.h"
#include "src/tokenizer.h"

enum { PROMPT = 128, WAYS = 10, KINDS = 2 };
static const char *const kind_names[KINDS] = {"code", "English"};
static const char separator[] = "<|endoftext|>";

/* Prompts of one kind, PROMPT ids each. */
typedef struct prompts {
    int32_t *ids;
    int n;
} prompts;

typedef struct way {
    char name[16];
    mq_engine *engine;
    mq_speculate *speculate;
    double s;
    int64_t tokens;
} way;

static void check(mq_status st, const mq_err *err)
{
    if (st == MQ_OK)
        return;
    fprintf(stderr, "bench_speculate: %s\n", err->text);
    exit(1);
}

/* Processor time where there is one thread: what other programs take does not count. */
static clockid_t clock_used = CLOCK_MONOTONIC;

static double seconds(void)
{
    struct timespec t;
    clock_gettime(clock_used, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Does the document begin like a module: a comment, a docstring, an import, an assignment? */
static bool is_code(const char *text, size_t n_bytes)
{
    static const char *const starts[] = {"#",       "\"",    "'",    "r\"",
                                         "import ", "from ", "def ", "class "};
    for (size_t i = 0; i < sizeof starts / sizeof starts[0]; i++)
        if (n_bytes > strlen(starts[i]) && memcmp(text, starts[i], strlen(starts[i])) == 0)
            return true;
    const char *line_end = memchr(text, '\n', n_bytes);
    size_t line = line_end ? (size_t)(line_end - text) : n_bytes;
    return memmem(text, line, " = ", 3) != NULL;
}

/* n prompts of a kind, spread evenly over its documents. */
static prompts read_prompts(const mq_tokenizer *t, const mq_buf *text, bool code, int n)
{
    mq_tokens ids = {0};
    mq_err err;
    const char *at = text->data, *end = text->data + text->n_bytes;
    while (at < end) {
        const char *stop = memmem(at, (size_t)(end - at), separator, sizeof separator - 1);
        stop = stop ? stop : end;
        while (at < stop && *at == '\n')
            at++;
        if (stop > at && is_code(at, (size_t)(stop - at)) == code)
            check(mq_tokenizer_encode(t, &ids, at, stop - at, false, &err), &err);
        at = stop + sizeof separator - 1;
    }
    prompts p = {malloc((size_t)n * PROMPT * sizeof *p.ids), n};
    if (!p.ids || ids.n < (int64_t)n * PROMPT) {
        fprintf(stderr, "bench_speculate: %lld tokens of text are too few\n", (long long)ids.n);
        exit(1);
    }
    for (int i = 0; i < n; i++)
        memcpy(p.ids + (int64_t)i * PROMPT, ids.ids + (ids.n - PROMPT) * i / n,
               PROMPT * sizeof *p.ids);
    mq_tokens_release(&ids);
    return p;
}

static way open_way(const char *name, const char *dir, mq_draft_kind draft, int width, int threads)
{
    way w = {.s = 0.0};
    mq_err err;
    const mq_engine_options eo = {.n_threads = threads, .context = 1024, .draft = draft};
    const mq_speculate_options so = {.width = width, .now = seconds};
    snprintf(w.name, sizeof w.name, "%s", name);
    check(mq_engine_open(&w.engine, dir, mq_kernels_find("cpu"), &eo, &err), &err);
    check(mq_speculate_create(&w.speculate, w.engine, &so, &err), &err);
    return w;
}

static void continue_prompt(way *w, const int32_t *ids, int n_tokens)
{
    static const mq_sampling greedy = {.temperature = 0.0f, .top_p = 1.0f};
    mq_err err;
    int32_t tokens[MQ_SPECULATE_ROWS], last;
    mq_engine_reset(w->engine);
    check(mq_engine_prefill(w->engine, ids, PROMPT, &err), &err);
    check(mq_engine_sample(w->engine, &last, 0, &greedy, &err), &err);
    double start = seconds();
    for (int at = 0, n; at < n_tokens; at += n, last = tokens[n - 1]) {
        const mq_speculate_end end = {.limit = n_tokens - at};
        check(mq_speculate_step(w->speculate, tokens, &n, last, &greedy, &end, &err), &err);
    }
    w->s += seconds() - start;
    w->tokens += n_tokens;
}

static void print_way(const char *model, int kind, const way *w, double plain_rate, double *best)
{
    const mq_speculate_figures *f = mq_speculate_get_figures(w->speculate);
    double rate = (double)w->tokens / w->s;
    *best = rate > *best ? rate : *best;
    printf("%-28s %-8s %-8s %7.3f tokens/step %8.1f tokens/s  x%.3f  drafting %4.1f %%  widths",
           model, kind_names[kind], w->name, (double)f->n_tokens / (double)f->n_steps, rate,
           rate / plain_rate, 100 * f->draft_s / (f->draft_s + f->verify_s));
    for (int i = 0; i < MQ_SPECULATE_ROWS; i++)
        if (f->steps[i])
            printf(" %d:%lld", i + 1, (long long)f->steps[i]);
    printf("  accepted");
    for (int i = 0; i < MQ_SPECULATE_ROWS - 1 && f->offered[i]; i++)
        printf(" %.2f", (double)f->accepted[i] / (double)f->offered[i]);
    printf("\n");
    fflush(stdout);
}

static void bench_model(const char *dir, mq_draft_kind draft, const prompts *p, int n_tokens,
                        const char *widths, int threads)
{
    way ways[WAYS];
    int n = 0;
    const char *slash = strrchr(dir, '/'), *model = slash ? slash + 1 : dir;
    ways[n++] = open_way("plain", dir, MQ_DRAFT_NONE, 1, threads);
    for (const char *w = widths; *w && n < WAYS - 1; w++)
        if (*w >= '1' && *w <= '8') {
            char name[16];
            snprintf(name, sizeof name, "width %c", *w);
            ways[n++] = open_way(name, dir, draft, *w - '0', threads);
        }
    ways[n++] = open_way("auto", dir, draft, 0, threads);
    for (int kind = 0; kind < KINDS; kind++) {
        for (int i = 0; i < p[kind].n; i++)
            for (int j = 0; j < n; j++)
                continue_prompt(&ways[(i + j) % n], p[kind].ids + (int64_t)i * PROMPT, n_tokens);
        double plain_rate = (double)ways[0].tokens / ways[0].s, best = 0.0;
        for (int j = 0; j < n; j++) {
            print_way(model, kind, &ways[j], plain_rate, &best);
            if (j == n - 1 && n > 2)
                printf("%-28s %-8s auto is at %.3f of the fastest\n", model, kind_names[kind],
                       (double)ways[j].tokens / ways[j].s / best);
            ways[j].s = 0.0;
            ways[j].tokens = 0;
            mq_speculate_clear_figures(ways[j].speculate);
        }
    }
    const mq_width *w = mq_speculate_width(ways[n - 1].speculate);
    printf("%-28s costs in ms at the end: drafting %.3f to %.3f, rows", model, 1e3 * w->draft_s[1],
           1e3 * w->draft_s[w->most]);
    for (int i = 0; i <= w->most; i++)
        printf(" %.3f", 1e3 * w->step_s[i]);
    printf("\n");
    for (int j = 0; j < n; j++) {
        mq_speculate_free(ways[j].speculate);
        mq_engine_close(ways[j].engine);
    }
}

int main(int argc, char **argv)
{
    if (argc < 8) {
        fprintf(stderr,
                "usage: bench_speculate TEXT dflash|mtp PROMPTS TOKENS WIDTHS THREADS MODEL...\n");
        return 2;
    }
    mq_draft_kind draft = strcmp(argv[2], "mtp") == 0 ? MQ_DRAFT_MTP : MQ_DRAFT_DFLASH;
    int n_prompts = atoi(argv[3]), n_tokens = atoi(argv[4]), threads = atoi(argv[6]);
    mq_err err;
    if (threads == 1)
        clock_used = CLOCK_PROCESS_CPUTIME_ID;
    for (int i = 7; i < argc; i++) {
        mq_tokenizer *t;
        mq_buf text = mq_buf_empty();
        char *path = mq_path_join(argv[i], "tokenizer.json");
        check(mq_tokenizer_open(&t, path, &err), &err);
        check(mq_file_load(&text, argv[1], (int64_t)1 << 30, &err), &err);
        prompts p[KINDS] = {read_prompts(t, &text, true, n_prompts),
                            read_prompts(t, &text, false, n_prompts)};
        bench_model(argv[i], draft, p, n_tokens, argv[5], threads);
        free(p[0].ids);
        free(p[1].ids);
        mq_buf_release(&text);
        mq_tokenizer_close(t);
        free(path);
    }
    return 0;
}
