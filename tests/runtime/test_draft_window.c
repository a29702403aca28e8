/* Drafters around the edge of their windows.  DFlash, whose edge no reference sequence reaches,
 * against the same equations in plain double loops that see all features and no ring; both kinds by
 * features that may or may not matter. */
#include <math.h>

#include "tests/runtime/draft_bench.h"

enum { MOST = BLOCK - 1, POSITIONS = 600, MAX_KEYS = POSITIONS + BLOCK };

typedef struct features {
    float *of[3]; /* [POSITIONS, hidden] */
} features;

static features make_features(const mq_model *m)
{
    features f;
    uint64_t state = 11;
    for (int i = 0; i < 3; i++) {
        f.of[i] = malloc((size_t)(POSITIONS * m->hidden) * sizeof(float));
        for (int64_t j = 0; j < (int64_t)POSITIONS * m->hidden; j++)
            f.of[i][j] = mq_test_normal(&state);
    }
    return f;
}

static void free_features(features *f)
{
    for (int i = 0; i < 3; i++)
        free(f->of[i]);
}

/* ---- The drafter in double ---- */

static double *zeros(int64_t n)
{
    double *p = calloc((size_t)n, sizeof *p);
    ck_assert_ptr_nonnull(p);
    return p;
}

/* y [n, w.rows] += x [n, w.cols] w^T */
static void slow_linear(double *y, const double *x, const mq_matrix *w, int64_t n)
{
    float *row = malloc((size_t)w->cols * sizeof *row);
    for (int64_t r = 0; r < w->rows; r++) {
        mq_matrix_widen(w, r, 1, row);
        for (int64_t i = 0; i < n; i++)
            for (int64_t c = 0; c < w->cols; c++)
                y[i * w->rows + r] += x[i * w->cols + c] * (double)row[c];
    }
    free(row);
}

static void slow_norm(double *y, const double *x, const float *weight, double eps, int64_t n,
                      int64_t cols)
{
    for (int64_t i = 0; i < n; i++) {
        double sum = 0.0;
        for (int64_t c = 0; c < cols; c++)
            sum += x[i * cols + c] * x[i * cols + c];
        for (int64_t c = 0; c < cols; c++)
            y[i * cols + c] = x[i * cols + c] / sqrt(sum / (double)cols + eps) * (double)weight[c];
    }
}

static void slow_rope(double *x, const mq_attn_geometry *g, int n_heads, int64_t n, int64_t pos0)
{
    int half = g->rotary_dims / 2;
    for (int64_t i = 0; i < n * n_heads; i++)
        for (int k = 0; k < half; k++) {
            double angle = (double)(pos0 + i / n_heads) *
                           pow(g->rope_theta, -2.0 * k / (double)g->rotary_dims);
            double *a = x + i * g->head_dim + k, *b = a + half, a0 = *a;
            *a = a0 * cos(angle) - *b * sin(angle);
            *b = *b * cos(angle) + a0 * sin(angle);
        }
}

/* Keys and values of rows h at positions pos0 .., appended at key and value. */
static void slow_keys(double *key, double *value, const double *h, int64_t n, int64_t pos0,
                      const mq_draft_layer_weights *w, const mq_draft_model *m)
{
    const mq_attn_geometry *g = &m->attn;
    slow_linear(key, h, &w->layer.attn.k, n);
    slow_linear(value, h, &w->layer.attn.v, n);
    slow_norm(key, key, w->k_norm, m->norm_eps, n * g->n_kv_heads, g->head_dim);
    slow_rope(key, g, g->n_kv_heads, n, pos0);
    for (int64_t i = 0; i < n * g->n_kv_heads * g->v_head_dim; i++)
        value[i] *= m->value_scale;
}

/* Block rows at positions length + i over context keys j with j + window > length + i, and every
 * key of the block. */
static void slow_attention(double *out, const double *q, const double *key, const double *value,
                           const float *sink, const mq_attn_geometry *g, int64_t length,
                           int64_t window)
{
    int share = g->n_heads / g->n_kv_heads;
    for (int64_t i = 0; i < BLOCK; i++)
        for (int h = 0; h < g->n_heads; h++) {
            double sum = exp((double)sink[h]), *o = out + (i * g->n_heads + h) * g->v_head_dim;
            for (int64_t j = 0; j < length + BLOCK; j++) {
                if (j < length && j + window <= length + i)
                    continue;
                int64_t at = j * g->n_kv_heads + h / share;
                double dot = 0.0;
                for (int d = 0; d < g->head_dim; d++)
                    dot += q[(i * g->n_heads + h) * g->head_dim + d] * key[at * g->head_dim + d];
                double e = exp(dot / sqrt((double)g->head_dim));
                sum += e;
                for (int d = 0; d < g->v_head_dim; d++)
                    o[d] += e * value[at * g->v_head_dim + d];
            }
            for (int d = 0; d < g->v_head_dim; d++)
                o[d] /= sum;
        }
}

static void slow_mlp(double *x, const mq_mlp_weights *w, const double *h)
{
    int64_t width = w->gate.rows;
    double *gate = zeros(BLOCK * width), *up = zeros(BLOCK * width);
    slow_linear(gate, h, &w->gate, BLOCK);
    slow_linear(up, h, &w->up, BLOCK);
    for (int64_t i = 0; i < BLOCK * width; i++)
        gate[i] = gate[i] / (1.0 + exp(-gate[i])) * up[i];
    slow_linear(x, gate, &w->down, BLOCK);
    free(gate);
    free(up);
}

static void slow_layer(double *x, const double *context, int64_t length, int64_t window,
                       const mq_draft_layer_weights *w, const mq_draft_model *m)
{
    const mq_attn_geometry *g = &m->attn;
    int64_t k_cols = (int64_t)g->n_kv_heads * g->head_dim;
    int64_t v_cols = (int64_t)g->n_kv_heads * g->v_head_dim;
    double *h = zeros(BLOCK * m->hidden), *q = zeros((int64_t)BLOCK * g->n_heads * g->head_dim);
    double *key = zeros(MAX_KEYS * k_cols), *value = zeros(MAX_KEYS * v_cols);
    double *heads = zeros((int64_t)BLOCK * g->n_heads * g->v_head_dim);
    slow_norm(h, x, w->layer.input_norm, m->norm_eps, BLOCK, m->hidden);
    slow_keys(key, value, context, length, 0, w, m);
    slow_keys(key + length * k_cols, value + length * v_cols, h, BLOCK, length, w, m);
    slow_linear(q, h, &w->layer.attn.q, BLOCK);
    slow_norm(q, q, w->q_norm, m->norm_eps, BLOCK * g->n_heads, g->head_dim);
    slow_rope(q, g, g->n_heads, BLOCK, length);
    slow_attention(heads, q, key, value, w->layer.attn.sink, g, length, window);
    slow_linear(x, heads, &w->layer.attn.o, BLOCK);
    slow_norm(h, x, w->layer.post_norm, m->norm_eps, BLOCK, m->hidden);
    slow_mlp(x, &w->layer.mlp, h);
    free(h);
    free(q);
    free(key);
    free(value);
    free(heads);
}

/* The best token of each row of logits with its probability. */
static void slow_top(int32_t *tokens, double *confidence, const double *logits, int64_t vocab)
{
    for (int i = 0; i < MOST; i++) {
        const double *row = logits + i * vocab;
        double sum = 0.0;
        tokens[i] = 0;
        for (int64_t v = 0; v < vocab; v++)
            tokens[i] = row[v] > row[tokens[i]] ? (int32_t)v : tokens[i];
        for (int64_t v = 0; v < vocab; v++)
            sum += exp(row[v] - row[tokens[i]]);
        confidence[i] = 1.0 / sum;
    }
}

/* A block after length positions of f. */
static void slow_draft(int32_t *tokens, double *confidence, mq_store *s, const features *f,
                       int64_t length, int32_t anchor, int64_t window)
{
    mq_err err;
    mq_draft_weights shared;
    mq_draft_layer_weights w;
    mq_matrix embedding, head;
    const mq_draft_model *m = mq_store_draft_model(s);
    int64_t hidden = m->hidden, vocab = mq_store_model(s)->vocab;
    double *joined = zeros(length * m->n_taps * hidden), *context = zeros(length * hidden);
    double *x = zeros(BLOCK * hidden), *logits = zeros(MOST * vocab);
    float *row = malloc((size_t)hidden * sizeof *row);
    mq_assert_ok(mq_store_draft(s, &shared, &err), &err);
    mq_assert_ok(mq_store_embedding(s, &embedding, &err), &err);
    for (int64_t i = 0; i < length; i++)
        for (int t = 0; t < m->n_taps; t++)
            for (int64_t c = 0; c < hidden; c++)
                joined[(i * m->n_taps + t) * hidden + c] = (double)f->of[t][i * hidden + c];
    slow_linear(context, joined, &shared.fc, length);
    slow_norm(context, context, shared.hidden_norm, m->norm_eps, length, hidden);
    mq_matrix_widen(&embedding, anchor, 1, row);
    for (int64_t c = 0; c < BLOCK * hidden; c++)
        x[c] = (double)(c < hidden ? row[c] : shared.mask[c % hidden]);
    for (int l = 0; l < m->n_layers; l++) {
        mq_assert_ok(mq_store_draft_layer(s, &w, l, 0, &err), &err);
        slow_layer(x, context, length, window, &w, m);
    }
    slow_norm(x, x, shared.norm, m->norm_eps, BLOCK, hidden);
    mq_assert_ok(mq_store_head(s, &head, 0, &err), &err);
    slow_linear(logits, x + hidden, &head, MOST);
    slow_top(tokens, confidence, logits, vocab);
    free(joined);
    free(context);
    free(x);
    free(logits);
    free(row);
}

/* ---- Tests ---- */

typedef struct fast {
    mq_dev *dev;
    mq_store *store;
    mq_draft *d;
} fast;

static fast open_fast(const char *dir, mq_draft_kind kind, int64_t max_rows)
{
    mq_err err;
    fast f = {.dev = ref_dev(2), .store = draft_store(dir, 1, true)};
    mq_assert_ok(mq_draft_create(&f.d, kind, ref_kernels(), f.dev, f.store, max_rows, &err), &err);
    return f;
}

static void close_fast(fast *f)
{
    mq_draft_free(f->d);
    mq_store_close(f->store);
    ref_kernels()->dev_close(f->dev);
}

static void commit(fast *f, const features *from, int64_t row0, int64_t n)
{
    static const int32_t ids[POSITIONS] = {0}; /* DFlash does not look at them */
    mq_err err;
    const float *rows[3];
    for (int i = 0; i < 3; i++)
        rows[i] = from->of[i] + row0 * mq_store_model(f->store)->hidden;
    mq_assert_ok(mq_draft_commit(f->d, ids, rows, n, &err), &err);
}

START_TEST(every_length_equals_the_double_loop)
{
    static const int64_t lengths[] = {1, 60, 255, 256, 257, 258, 263, 264, 265, 520, 600};
    const char *dir = ref_model("nano");
    if (!dir)
        return;
    fast f = open_fast(dir, MQ_DRAFT_DFLASH, 7);
    const int64_t window = mq_store_draft_model(f.store)->attn.window;
    features from = make_features(mq_store_model(f.store));
    double worst = 0.0, least_other = 1.0;
    ck_assert_int_eq(window, 256);
    for (size_t c = 0; c < sizeof lengths / sizeof lengths[0]; c++) {
        mq_err err;
        int32_t got[MOST], want[MOST], other[MOST];
        float confidence[MOST];
        double p[MOST], q[MOST];
        for (int64_t pos = mq_draft_length(f.d); pos < lengths[c]; pos = mq_draft_length(f.d))
            commit(&f, &from, pos, lengths[c] - pos < 7 ? lengths[c] - pos : 7);
        mq_assert_ok(mq_draft_propose(f.d, got, confidence, 77, MOST, &err), &err);
        slow_draft(want, p, f.store, &from, lengths[c], 77, window);
        for (int i = 0; i < MOST; i++) {
            ck_assert_msg(got[i] == want[i], "length %d, guess %d: %d, expected %d",
                          (int)lengths[c], i, got[i], want[i]);
            worst = fmax(worst, fabs((double)confidence[i] / p[i] - 1.0));
        }
        /* Would one key more or less be seen? */
        for (int64_t by = -1; by <= 1 && lengths[c] >= window; by += 2) {
            double most = 0.0;
            slow_draft(other, q, f.store, &from, lengths[c], 77, window + by);
            for (int i = 0; i < MOST; i++)
                most = fmax(most, fabs(q[i] / p[i] - 1.0));
            least_other = fmin(least_other, most);
        }
    }
    printf("confidence: off by %.1e at most; one key more or less: %.1e at least\n", worst,
           least_other);
    ck_assert_double_lt(worst, 2e-4); /* the angle of position 600 in F32 errs by 3e-5 */
    ck_assert_double_gt(least_other, 10.0 * worst);
    free_features(&from);
    close_fast(&f);
}
END_TEST

/* Confidences after length positions when the feature of position changed is another one. */
static void draft_changed(float *confidence, const char *dir, mq_draft_kind kind,
                          const features *from, int64_t length, int64_t changed)
{
    mq_err err;
    int32_t tokens[MOST];
    fast f = open_fast(dir, kind, POSITIONS);
    int64_t hidden = mq_store_model(f.store)->hidden;
    float *at = changed >= 0 ? from->of[0] + changed * hidden : NULL;
    for (int64_t c = 0; at && c < hidden; c++)
        at[c] = -at[c];
    commit(&f, from, 0, length);
    mq_assert_ok(mq_draft_propose(f.d, tokens, confidence, 77, mq_draft_most(f.d), &err), &err);
    for (int64_t c = 0; at && c < hidden; c++)
        at[c] = -at[c];
    close_fast(&f);
}

START_TEST(the_last_visible_position_matters_and_the_one_before_does_not)
{
    enum { LENGTH = 400 };
    const char *dir = ref_model("nano");
    if (!dir)
        return;
    /* DFlash: j + 256 > 400.  MTP, whose row is the last committed position: 399 - j < 64. */
    static const struct {
        mq_draft_kind kind;
        int64_t first;
    } seen[2] = {{MQ_DRAFT_DFLASH, 145}, {MQ_DRAFT_MTP, 336}};
    for (int i = 0; i < 2; i++) {
        fast f = open_fast(dir, seen[i].kind, 1);
        features from = make_features(mq_store_model(f.store));
        close_fast(&f);
        float plain[MOST] = {0}, outside[MOST] = {0}, inside[MOST] = {0};
        draft_changed(plain, dir, seen[i].kind, &from, LENGTH, -1);
        draft_changed(outside, dir, seen[i].kind, &from, LENGTH, seen[i].first - 1);
        draft_changed(inside, dir, seen[i].kind, &from, LENGTH, seen[i].first);
        ck_assert_mem_eq(plain, outside, sizeof plain);
        ck_assert_mem_ne(plain, inside, sizeof plain);
        free_features(&from);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("draft_window");
    TCase *t = tcase_create("draft_window");
    tcase_add_test(t, every_length_equals_the_double_loop);
    tcase_add_test(t, the_last_visible_position_matters_and_the_one_before_does_not);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
