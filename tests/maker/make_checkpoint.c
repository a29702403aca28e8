/* make-checkpoint: a random checkpoint of any geometry, for tests and measurements. */
#include <errno.h>
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "src/pool.h"
#include "tests/maker/maker_packed.h"

static const char USAGE[] =
    "make-checkpoint [--preset NAME] [options] OUT\n"
    "  --preset nano|mini|pro-small|flash|v25|pro   settings to start from (default nano); give it first\n"
    "  --experts-dtype bf16|f16|f32|fp8|mxfp4       routed experts\n"
    "  --dtype bf16|f16|f32|fp8                     everything else (fp8: o_proj, embedding, head stay bf16)\n"
    "  --layout split|fused     --router f32|bf16   --split-pairs (scales in the next file)   --no-index\n"
    "  --full-sink 0|1          --swa-sink 0|1      --seed N        --tokenizer FOLDER\n"
    "  --NAME N for these numbers:\n"
    "    layers hidden vocab heads kv-heads head-dim v-head-dim swa-heads swa-kv-heads swa-head-dim swa-v-head-dim window\n"
    "    full-every dense-layers intermediate experts top-k moe-intermediate max-positions eos mtp files\n"
    "    draft-layers (0: no drafter) draft-heads draft-kv-heads draft-head-dim draft-intermediate draft-window\n"
    "  --NAME X for: rope-theta swa-rope-theta partial-rotary value-scale eps\n"
    "  --packed N (a packed model for N ranks instead: INT4 experts, the rest BF16, no drafters)   --group N  --zstd LEVEL\n"
    "Examples: a 4 GB file set   --preset mini --hidden 2048 --moe-intermediate 1024 --experts 46 --files 4 OUT\n"
    "          20 GB packed      --preset flash --layers 7 --packed 2 OUT\n"
    "          Pro, two layers   --preset pro --layers 2 --experts 64 --files 2 OUT\n";

typedef struct number {
    const char *name;
    size_t off;
} number;

#define FIELD(name, field) {name, offsetof(mq_maker, field)}
static const number INTS[] = {
    FIELD("layers", layers), FIELD("hidden", hidden), FIELD("vocab", vocab), FIELD("heads", heads),
    FIELD("kv-heads", kv_heads), FIELD("head-dim", head_dim), FIELD("v-head-dim", v_head_dim),
    FIELD("swa-heads", swa_heads), FIELD("swa-kv-heads", swa_kv_heads), FIELD("swa-head-dim", swa_head_dim),
    FIELD("swa-v-head-dim", swa_v_head_dim), FIELD("window", window), FIELD("full-every", full_every),
    FIELD("dense-layers", dense_layers), FIELD("intermediate", intermediate), FIELD("experts", experts),
    FIELD("top-k", top_k), FIELD("moe-intermediate", moe_intermediate), FIELD("max-positions", max_positions),
    FIELD("eos", eos), FIELD("mtp", mtp), FIELD("files", files), FIELD("draft-layers", draft_layers),
    FIELD("draft-heads", draft_heads), FIELD("draft-kv-heads", draft_kv_heads),
    FIELD("draft-head-dim", draft_head_dim), FIELD("draft-intermediate", draft_intermediate),
    FIELD("draft-window", draft_window)};
static const number DOUBLES[] = {FIELD("rope-theta", rope_theta), FIELD("swa-rope-theta", swa_rope_theta),
                                 FIELD("partial-rotary", partial_rotary), FIELD("value-scale", value_scale),
                                 FIELD("eps", eps)};
enum { N_INTS = sizeof INTS / sizeof INTS[0], N_DOUBLES = sizeof DOUBLES / sizeof DOUBLES[0] };

static bool read_long(const char *s, long *out)
{
    char *end;
    errno = 0;
    *out = strtol(s, &end, 10);
    return errno == 0 && *s && !*end && *out >= 0 && *out <= INT_MAX;
}

static bool read_scheme(const char *s, bool is_expert, mq_scheme *out)
{
    static const char *const names[] = {"bf16", "f16", "f32", "fp8", "mxfp4"};
    static const mq_scheme schemes[] = {MQ_SCHEME_BF16, MQ_SCHEME_F16, MQ_SCHEME_F32, MQ_SCHEME_FP8_BLOCK,
                                        MQ_SCHEME_MXFP4_ROWS};
    for (int i = 0; i < (is_expert ? 5 : 4); i++)
        if (strcmp(s, names[i]) == 0) {
            *out = schemes[i];
            return true;
        }
    return false;
}

static bool set_number(mq_maker *m, const char *name, const char *value)
{
    long v;
    for (int i = 0; i < N_INTS; i++)
        if (strcmp(name, INTS[i].name) == 0) {
            if (!read_long(value, &v))
                return false;
            int n = (int)v;
            memcpy((char *)m + INTS[i].off, &n, sizeof n);
            return true;
        }
    for (int i = 0; i < N_DOUBLES; i++)
        if (strcmp(name, DOUBLES[i].name) == 0) {
            char *end;
            double d = strtod(value, &end);
            memcpy((char *)m + DOUBLES[i].off, &d, sizeof d);
            return *value && !*end;
        }
    return false;
}

/* An option with a value; false: unknown, or a bad value. */
static bool set(mq_maker *m, const char *name, const char *value)
{
    if (strcmp(name, "preset") == 0)
        return mq_maker_preset(m, value);
    if (strcmp(name, "experts-dtype") == 0)
        return read_scheme(value, true, &m->expert_scheme);
    if (strcmp(name, "dtype") == 0)
        return read_scheme(value, false, &m->scheme);
    if (strcmp(name, "tokenizer") == 0) {
        m->tokenizer = value;
        return true;
    }
    if (strcmp(name, "layout") == 0) {
        m->fused = strcmp(value, "fused") == 0;
        return m->fused || strcmp(value, "split") == 0;
    }
    if (strcmp(name, "router") == 0) {
        m->router_bf16 = strcmp(value, "bf16") == 0;
        return m->router_bf16 || strcmp(value, "f32") == 0;
    }
    long v;
    bool is_count = read_long(value, &v);
    if (is_count && strcmp(name, "seed") == 0)
        m->seed = (uint64_t)v;
    else if (is_count && v <= 1 && strcmp(name, "full-sink") == 0)
        m->full_sink = v == 1;
    else if (is_count && v <= 1 && strcmp(name, "swa-sink") == 0)
        m->swa_sink = v == 1;
    else
        return set_number(m, name, value);
    return true;
}

/* An option of --packed with a value; false: unknown, or a bad value. */
static bool set_packed(mq_maker_packed *p, const char *name, const char *value)
{
    int *field = strcmp(name, "packed") == 0  ? &p->n_ranks
                 : strcmp(name, "group") == 0 ? &p->group
                 : strcmp(name, "zstd") == 0  ? &p->zstd_level
                                              : NULL;
    long v;
    if (!field || !read_long(value, &v))
        return false;
    *field = (int)v;
    return true;
}

static int usage(const char *what)
{
    fprintf(stderr, "make-checkpoint: %s\n%s", what, USAGE);
    return 2;
}

int main(int argc, char **argv)
{
    mq_maker m;
    mq_maker_packed packed = {.group = 64, .n_threads = mq_cpu_count()};
    mq_maker_preset(&m, "nano");
    int i = 1;
    for (; i < argc && strncmp(argv[i], "--", 2) == 0; i++) {
        const char *name = argv[i] + 2;
        if (strcmp(name, "help") == 0) {
            fputs(USAGE, stdout);
            return 0;
        }
        if (strcmp(name, "split-pairs") == 0)
            m.split_pairs = true;
        else if (strcmp(name, "no-index") == 0)
            m.no_index = true;
        else if (i + 1 >= argc || !(set_packed(&packed, name, argv[i + 1]) || set(&m, name, argv[i + 1])))
            return usage(argv[i]);
        else
            i++;
    }
    if (i + 1 != argc)
        return usage("expected one output folder");

    struct timespec t0, t1;
    int64_t n_bytes;
    mq_err err;
    clock_gettime(CLOCK_MONOTONIC, &t0);
    mq_status st = packed.n_ranks ? mq_maker_write_packed(&m, &packed, argv[i], &n_bytes, &err)
                                  : mq_maker_write(&m, argv[i], &n_bytes, &err);
    if (st != MQ_OK) {
        fprintf(stderr, "make-checkpoint: %s\n", err.text);
        return 1;
    }
    clock_gettime(CLOCK_MONOTONIC, &t1);
    double s = (double)(t1.tv_sec - t0.tv_sec) + 1e-9 * (double)(t1.tv_nsec - t0.tv_nsec);
    printf("%s: %.3f GB in %.1f s (%.2f GB/s)\n", argv[i], (double)n_bytes * 1e-9, s, (double)n_bytes * 1e-9 / s);
    return 0;
}
