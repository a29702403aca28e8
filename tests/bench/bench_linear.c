/* Speed of the products: GB/s of stored weights for linear_fixed, GFLOP/s for linear; of attention and sampling in microseconds.
 * Several copies of a matrix are cycled through, so that big ones come from memory.  bench_linear [THREADS [ISA]] */
#include <stdio.h>
#include <time.h>

#include "kernels/kernels.h"
#include "tests/maker/random_matrix.h"

static const mq_kernels *k;
static mq_dev *dev;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static const struct {
    mq_scheme scheme;
    int group;
    const char *name;
} kinds[] = {{MQ_SCHEME_BF16, 0, "bf16"},        {MQ_SCHEME_F32, 0, "f32"},   {MQ_SCHEME_FP8_BLOCK, 0, "fp8"},
             {MQ_SCHEME_INT4, 32, "int4 g32"},   {MQ_SCHEME_INT4, 64, "int4 g64"}, {MQ_SCHEME_INT4, 128, "int4 g128"},
             {MQ_SCHEME_MXFP4, 0, "mxfp4"},      {MQ_SCHEME_MXFP4_ROWS, 0, "mxfp4 rows"}};
enum { N_KINDS = sizeof kinds / sizeof kinds[0], MAX_N = 2048 };

/* Best seconds per call over about a fifth of a second. */
static double time_product(bool fixed, random_matrix *copies, int n_copies, const float *x, float *y, int64_t n)
{
    double best = 1e9, end = now() + 0.2;
    int at = 0, batch = copies[0].m.rows * copies[0].m.cols * n < 10000000 ? 20 : 1;
    do {
        double t = now();
        for (int i = 0; i < batch; i++, at++) {
            const mq_matrix *m = &copies[at % n_copies].m;
            (void)(fixed ? k->linear_fixed(dev, y, x, m, n, NULL) : k->linear(dev, y, x, m, n, NULL));
        }
        t = (now() - t) / batch;
        best = t < best ? t : best;
    } while (now() < end);
    return best;
}

static void bench_shape(int64_t rows, int64_t cols, int n_copies)
{
    static const int64_t few[] = {1, 4, 8}, many[] = {16, 64, 512, 2048};
    float *x = random_floats(MAX_N * cols, 1), *y = malloc((size_t)(MAX_N * rows) * sizeof *y);
    printf("%lld x %lld, %d copies\n%-12s %28s   %40s\n", (long long)rows, (long long)cols, n_copies, "",
           "linear_fixed GB/s (us) n=1 4 8", "linear GFLOP/s n=16 64 512 2048");
    for (int s = 0; s < N_KINDS; s++) {
        matrix_spec spec = {kinds[s].scheme, kinds[s].group, rows, cols, rows, 0, 0};
        random_matrix copies[64];
        copies[0] = random_matrix_create(spec, 1);
        double bytes = (double)random_code_bytes(&spec);
        for (int c = 1; c < n_copies; c++) {
            copies[c] = copies[0];
            void *data = malloc((size_t)bytes);
            memcpy(data, copies[0].data, (size_t)bytes);
            copies[c].m.data = copies[c].data = data;
        }
        printf("%-12s", kinds[s].name);
        for (int i = 0; i < 3; i++) {
            double t = time_product(true, copies, n_copies, x, y, few[i]);
            printf(" %6.2f (%7.1f)", bytes / t * 1e-9, t * 1e6);
        }
        printf("  ");
        for (int i = 0; i < 4; i++) {
            double t = time_product(false, copies, n_copies, x, y, many[i]);
            printf(" %7.1f", 2.0 * (double)(rows * cols * many[i]) / t * 1e-9);
        }
        printf("\n");
        for (int c = 1; c < n_copies; c++)
            free(copies[c].data);
        random_matrix_free(&copies[0]);
    }
    free(x);
    free(y);
}

static void bench_attention(int64_t n, int64_t pos0, int heads, int kv_heads, int dim, int v_dim, int window)
{
    int64_t total = pos0 + n;
    float *q = random_floats(n * heads * dim, 1), *out = malloc((size_t)(n * heads * v_dim) * sizeof *out);
    mq_kv kv = {random_floats(total * kv_heads * dim, 2), random_floats(total * kv_heads * v_dim, 3), total, kv_heads, dim, v_dim};
    double best = 1e9;
    for (int i = 0; i < 30; i++) {
        double t = now();
        (void)k->attention(dev, out, q, &kv, heads, NULL, window, n, pos0, NULL);
        t = now() - t;
        best = t < best ? t : best;
    }
    printf("attention n=%lld at %lld, %d heads / %d, dims %d %d, window %d: %.1f us\n", (long long)n, (long long)pos0, heads,
           kv_heads, dim, v_dim, window, best * 1e6);
    free(q);
    free(out);
    free(kv.k);
    free(kv.v);
}

static void bench_sample(float top_p, int top_k, int64_t vocab)
{
    float *logits = random_floats(vocab, 1);
    mq_sampling s = {1.0f, top_k, top_p, 1};
    double best = 1e9;
    for (int64_t i = 0; i < vocab; i++)
        logits[i] *= 3.0f;
    for (int i = 0; i < 30; i++) {
        int32_t token;
        double t = now();
        (void)k->sample(dev, &token, logits, &s, 1, vocab, i, NULL);
        t = now() - t;
        best = t < best ? t : best;
    }
    printf("sample vocab %lld, top-k %d, top-p %g: %.1f us\n", (long long)vocab, top_k, (double)top_p, best * 1e6);
    free(logits);
}

static void bench_stats(int64_t n, int64_t vocab)
{
    float *a = random_floats(n * vocab, 1), *b = random_floats(n * vocab, 2);
    int32_t *targets = calloc((size_t)n, sizeof *targets);
    mq_logit_stats *st = calloc((size_t)n, sizeof *st);
    double t = now();
    (void)k->logit_stats(dev, st, a, b, targets, n, vocab, NULL);
    t = now() - t;
    printf("logit_stats %lld rows of %lld, two models: %.2f s for 65536 rows\n", (long long)n, (long long)vocab,
           t * 65536.0 / (double)n);
    free(a);
    free(b);
    free(targets);
    free(st);
}

int main(int argc, char **argv)
{
    mq_err err;
    k = mq_kernels_find("cpu");
    if (k->dev_open(&dev, 0, argc > 1 ? atoi(argv[1]) : 0, argc > 2 ? argv[2] : NULL, &err) != MQ_OK) {
        fprintf(stderr, "bench_linear: %s\n", err.text);
        return 1;
    }
    printf("%s\n", k->dev_name(dev));
    bench_shape(2048, 6144, 4);
    bench_shape(256, 256, 40);
    bench_shape(128, 256, 1);
    bench_attention(512, 0, 8, 2, 96, 64, 0);
    bench_attention(512, 0, 8, 4, 96, 64, 64);
    bench_attention(1, 512, 8, 2, 96, 64, 0);
    bench_attention(8, 512, 8, 2, 96, 64, 0);
    bench_attention(1, 4096, 128, 8, 192, 128, 0);
    bench_sample(1.0f, 0, 152576);
    bench_sample(0.95f, 0, 152576);
    bench_sample(1.0f, 50, 152576);
    bench_stats(4096, 4096);
    k->dev_close(dev);
    return 0;
}
