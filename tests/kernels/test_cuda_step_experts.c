/* The experts of a decode step: against sums in double and against the table's own linear and swiglu, for every group and
 * geometry; a row's bits whatever its place, its neighbours and their number; a value worked by hand; refusals. */
#include "kernels/decode_parts.h"
#include "tests/kernels/cuda_test.h"

enum { R = MQ_DECODE_ROWS };

typedef struct geometry {
    int group;
    int64_t hidden, width;
    int n_experts, topk;
} geometry;

/* The experts on both sides. */
typedef struct layer {
    geometry g;
    random_matrix *gate_up, *down; /* [n_experts] */
    const uint8_t **on_device[2];  /* [2][n_experts], host */
    void *table[2];                /* the same on the device */
} layer;

/* What eight rows ask for; a row whose first choice is negative asks for nothing. */
typedef struct request {
    uint16_t *x;     /* [R, hidden] */
    int32_t *expert; /* [R, topk], ascending */
    float *coef;     /* [R, topk] */
} request;

typedef struct answer {
    uint16_t *h; /* [R * topk, width] */
    float *y;    /* [R, hidden] */
} answer;

static const mq_decode_parts *parts(void)
{
    return gpu->decode->parts;
}

static random_matrix random_expert(int group, int64_t rows, int64_t cols, uint64_t seed)
{
    return random_matrix_create(
        (matrix_spec){.scheme = group == MQ_GROUP_MXFP4 ? MQ_SCHEME_MXFP4 : MQ_SCHEME_INT4, .group = group, .rows = rows, .cols = cols},
        seed);
}

static void upload_layer(layer *l)
{
    for (int k = 0; k < 2; k++) {
        const random_matrix *m = k ? l->down : l->gate_up;
        l->on_device[k] = calloc((size_t)l->g.n_experts, sizeof(uint8_t *));
        for (int e = 0; e < l->g.n_experts; e++)
            l->on_device[k][e] = put(m[e].data, mq_units_bytes(m[e].m.rows, m[e].m.cols, l->g.group));
        l->table[k] = put(l->on_device[k], l->g.n_experts * (int64_t)sizeof(uint8_t *));
    }
}

static layer make_layer(geometry g, uint64_t seed)
{
    layer l = {.g = g};
    l.gate_up = calloc((size_t)g.n_experts, sizeof *l.gate_up);
    l.down = calloc((size_t)g.n_experts, sizeof *l.down);
    for (int e = 0; e < g.n_experts; e++) {
        l.gate_up[e] = random_expert(g.group, 2 * g.width, g.hidden, seed + 2 * (uint64_t)e);
        l.down[e] = random_expert(g.group, g.hidden, g.width, seed + 2 * (uint64_t)e + 1);
    }
    upload_layer(&l);
    return l;
}

static void free_layer(layer *l)
{
    for (int e = 0; e < l->g.n_experts; e++) {
        random_matrix_free(&l->gate_up[e]);
        random_matrix_free(&l->down[e]);
        drop(l->on_device[0][e]);
        drop(l->on_device[1][e]);
    }
    for (int k = 0; k < 2; k++) {
        drop(l->table[k]);
        free(l->on_device[k]);
    }
    free(l->gate_up);
    free(l->down);
}

/* The k-th of topk ascending experts, all distinct: a random subset. */
static void choose(int32_t *expert, const geometry *g, uint64_t *seed)
{
    int chosen = 0;
    for (int e = 0; e < g->n_experts; e++)
        if (mq_test_rand(seed) % (uint64_t)(g->n_experts - e) < (uint64_t)(g->topk - chosen))
            expert[chosen++] = e;
}

static request make_request(const geometry *g, int n, uint64_t seed)
{
    request q = {.x = calloc((size_t)(R * g->hidden), 2), .expert = calloc((size_t)(R * g->topk), 4),
                 .coef = calloc((size_t)(R * g->topk), 4)};
    float size = 4.0f / sqrtf((float)g->hidden);
    for (int r = 0; r < R; r++) {
        for (int64_t c = 0; r < n && c < g->hidden; c++)
            q.x[r * g->hidden + c] = mq_f32_to_bf16(size * mq_test_normal(&seed));
        choose(q.expert + r * g->topk, g, &seed);
        for (int k = 0; k < g->topk; k++)
            q.coef[r * g->topk + k] = 0.05f + (float)(mq_test_rand(&seed) % 1000) / 1000.0f;
        if (r >= n)
            q.expert[r * g->topk] = -1;
    }
    return q;
}

static void free_request(request *q)
{
    free(q->x);
    free(q->expert);
    free(q->coef);
}

static void free_answer(answer *a)
{
    free(a->h);
    free(a->y);
}

/* As the router would leave it; what is not valid is filled with nonsense. */
static mq_decode_plan put_plan(const geometry *g, const request *q)
{
    int32_t n = 0, room = (int32_t)(R * g->topk), *expert = malloc((size_t)room * 4), *slot = malloc((size_t)room * R * 4);
    memset(expert, 0x5b, (size_t)room * 4);
    memset(slot, 0x5b, (size_t)room * R * 4);
    for (int32_t e = 0; e < g->n_experts; e++) {
        bool active = false;
        int32_t of_row[R];
        for (int r = 0; r < R; r++) {
            of_row[r] = -1;
            for (int k = 0; k < g->topk && q->expert[r * g->topk] >= 0; k++)
                if (q->expert[r * g->topk + k] == e)
                    of_row[r] = (int32_t)(r * g->topk + k);
            active = active || of_row[r] >= 0;
        }
        if (!active)
            continue;
        expert[n] = e;
        memcpy(slot + n * R, of_row, sizeof of_row);
        n++;
    }
    mq_decode_plan p = {.n = put(&n, 4), .expert = put(expert, room * 4), .slot = put(slot, room * R * 4),
                        .coef = put(q->coef, room * 4)};
    free(expert);
    free(slot);
    return p;
}

static answer ask(const layer *l, const request *q)
{
    const geometry *g = &l->g;
    int64_t n_h = R * g->topk * g->width, n_y = R * g->hidden;
    answer a = {.h = malloc((size_t)n_h * 2), .y = malloc((size_t)n_y * 4)};
    memset(a.h, 0xff, (size_t)n_h * 2);
    memset(a.y, 0xff, (size_t)n_y * 4);
    mq_decode_experts job = {
        .experts = {.gate_up = l->table[0], .down = l->table[1], .group = g->group, .hidden = g->hidden, .width = g->width,
                    .n_experts = g->n_experts, .topk = g->topk},
        .plan = put_plan(g, q), .x = put(q->x, n_y * 2)};
    int64_t n_done = 4 * (R * g->topk + 1);
    uint16_t *h = put(a.h, n_h * 2);
    float *y = put(a.y, n_y * 4);
    uint32_t *done = calloc((size_t)n_done, 1), *none = calloc((size_t)n_done, 1);
    job.h = h;
    job.y = y;
    job.done = put(done, n_done);
    mq_assert_ok(parts()->check_experts(&job.experts, &err), &err);
    mq_assert_ok(parts()->experts(gpu_dev, &job, &err), &err);
    take(a.h, h, n_h * 2);
    take(a.y, y, n_y * 4);
    take(done, job.done, n_done);
    ck_assert(same_bytes(done, none, n_done)); /* as before */
    free(done);
    free(none);
    drop(job.x);
    drop(job.plan.n);
    drop(job.plan.expert);
    drop(job.plan.slot);
    drop(job.plan.coef);
    return a;
}

/* w row . x in double, and the sum of the products' magnitudes. */
static double dot(const float *w, const uint16_t *x, int64_t n, double *magnitude)
{
    double sum = 0.0;
    *magnitude = 0.0;
    for (int64_t c = 0; c < n; c++) {
        double p = (double)w[c] * (double)mq_bf16_to_f32(x[c]);
        sum += p;
        *magnitude += fabs(p);
    }
    return sum;
}

/* One slot of h: a BF16 rounding of silu(gate) * up, whose sums are right to 2^-20 of their magnitude. */
static void check_h(const layer *l, const request *q, const answer *a, int row, int rank)
{
    const geometry *g = &l->g;
    int slot = row * g->topk + rank;
    const float *w = l->gate_up[q->expert[slot]].wide;
    const uint16_t *x = q->x + row * g->hidden;
    for (int64_t i = 0; i < g->width; i++) {
        double gate_size, up_size, gate = dot(w + mq_gate_up_row(i, 0) * g->hidden, x, g->hidden, &gate_size);
        double up = dot(w + mq_gate_up_row(i, 1) * g->hidden, x, g->hidden, &up_size);
        double want = gate / (1.0 + exp(-gate)) * up, got = (double)mq_bf16_to_f32(a->h[slot * g->width + i]);
        /* silu's slope stays below 1.1 */
        double sums = 0x1p-20 * (1.1 * gate_size * fabs(up) + fabs(gate) * up_size);
        ck_assert_msg(fabs(got - want) <= 0x1.02p-8 * fabs(want) + sums + 1e-30, "group %d, hidden %lld, row %d, rank %d, column %lld: h is %g, expected %g",
                      g->group, (long long)g->hidden, row, rank, (long long)i, got, want);
    }
}

/* y of a row from the h that the device made: F32 sums, right to 2^-19 of their magnitude. */
static void check_y(const layer *l, const request *q, const answer *a, int row)
{
    const geometry *g = &l->g;
    for (int64_t c = 0; c < g->hidden; c++) {
        double want = 0.0, size = 0.0, part;
        for (int k = 0; k < g->topk && q->expert[row * g->topk] >= 0; k++) {
            int slot = row * g->topk + k;
            double d = dot(l->down[q->expert[slot]].wide + c * g->width, a->h + slot * g->width, g->width, &part);
            want += (double)q->coef[slot] * d;
            size += fabs((double)q->coef[slot]) * part;
        }
        double got = (double)a->y[row * g->hidden + c];
        ck_assert_msg(fabs(got - want) <= 0x1p-19 * size, "group %d, hidden %lld, row %d, column %lld: y is %g, expected %g", g->group,
                      (long long)g->hidden, row, (long long)c, got, want);
    }
}

static void check_answer(const layer *l, const request *q, const answer *a)
{
    for (int row = 0; row < R; row++) {
        for (int k = 0; k < l->g.topk && q->expert[row * l->g.topk] >= 0; k++)
            check_h(l, q, a, row, k);
        check_y(l, q, a, row);
    }
}

static const geometry small[] = {
    {64, 64, 64, 1, 1},   {64, 256, 128, 5, 2},   {64, 320, 1088, 3, 2},  {32, 320, 192, 3, 3}, {32, 64, 64, 2, 1},
    {128, 128, 256, 7, 4}, {128, 384, 128, 3, 1}, {128, 256, 640, 2, 2}, {0, 192, 320, 5, 2},  {0, 64, 64, 9, 8},
};
/* hidden sizes that have a kernel of their own, and some between and beyond */
static const geometry large[] = {
    {64, 4096, 64, 2, 1}, {64, 6144, 64, 2, 1},   {64, 6208, 64, 1, 1}, {64, 4160, 64, 1, 1},  {32, 4096, 64, 1, 1}, {32, 6144, 64, 1, 1},
    {32, 8256, 64, 1, 1}, {128, 4096, 128, 1, 1}, {128, 6144, 128, 1, 1}, {128, 6272, 128, 1, 1}, {0, 4096, 64, 1, 1},  {0, 6144, 64, 1, 1},
    {0, 6208, 64, 1, 1},
};

static void check_geometry(geometry g, int n, uint64_t seed)
{
    layer l = make_layer(g, seed);
    request q = make_request(&g, n, seed + 100);
    answer a = ask(&l, &q);
    check_answer(&l, &q, &a);
    free_answer(&a);
    free_request(&q);
    free_layer(&l);
}

START_TEST(sums_agree_with_double)
{
    size_t step = getenv("MQ_TEST_SMALL") ? 3 : 1; /* one of each format */
    for (size_t i = 0; i < sizeof small / sizeof small[0]; i += step)
        check_geometry(small[i], i % 2 ? 8 : 3, 1000 * i);
}
END_TEST

START_TEST(large_hidden_sizes_agree_with_double)
{
    size_t step = getenv("MQ_TEST_SMALL") ? 4 : 1;
    for (size_t i = 0; i < sizeof large / sizeof large[0]; i += step)
        check_geometry(large[i], 8, 77 * i);
}
END_TEST

/* Two kernels, weights through registers. */
START_TEST(devices_without_bulk_copies_agree_with_double)
{
    if (!is_emulated)
        return;
    struct mq_dev *newer = gpu_dev;
    mq_emulator_set_capability(8, 0);
    mq_status st = gpu->dev_open(&gpu_dev, 0, 0, NULL, &err);
    mq_emulator_set_capability(9, 0);
    mq_assert_ok(st, &err);
    size_t step = getenv("MQ_TEST_SMALL") ? 4 : 1;
    for (size_t i = 0; i < sizeof small / sizeof small[0]; i += step)
        check_geometry(small[i], i % 2 ? 8 : 3, 1000 * i);
    for (size_t i = 0; i < sizeof large / sizeof large[0]; i += 3 * step)
        check_geometry(large[i], 8, 77 * i);
    gpu->dev_close(gpu_dev);
    gpu_dev = newer;
}
END_TEST

START_TEST(sixty_four_experts_of_each_row)
{
    check_geometry((geometry){64, getenv("MQ_TEST_SMALL") ? 128 : 256, 64, 67, 64}, 8, 5);
}
END_TEST

START_TEST(value_worked_by_hand)
{
    geometry g = {64, 64, 64, 1, 1};
    layer l = {.g = g, .gate_up = calloc(1, sizeof *l.gate_up), .down = calloc(1, sizeof *l.down)};
    l.gate_up[0] = random_expert(64, 128, 64, 1);
    l.down[0] = random_expert(64, 64, 64, 2);
    uint16_t one = mq_f32_to_bf16(1.0f), half = mq_f32_to_bf16(0.5f);
    for (int u = 0; u < 8 + 4; u++) { /* codes 1, scales 1; codes -2, scales 1/2 */
        uint8_t *unit = u < 8 ? (uint8_t *)l.gate_up[0].data + 544 * u : (uint8_t *)l.down[0].data + 544 * (u - 8);
        memset(unit, u < 8 ? 0x99 : 0x66, MQ_UNIT_CODE_BYTES);
        for (int i = 0; i < 16; i++)
            memcpy(unit + MQ_UNIT_CODE_BYTES + 2 * i, u < 8 ? &one : &half, 2);
    }
    upload_layer(&l);
    request q = make_request(&g, 0, 1);
    q.x[3 * 64 + 17] = mq_f32_to_bf16(2.0f); /* row 3: gate 2, up 2 everywhere */
    q.expert[3] = 0;
    q.coef[3] = 0.5f;
    answer a = ask(&l, &q);
    for (int c = 0; c < 64; c++) {
        /* silu(2) * 2 = 3.5232, steps of 1/64: 225/64; 64 columns of -1 times it, halved */
        ck_assert(mq_bf16_to_f32(a.h[3 * 64 + c]) == 3.515625f);
        for (int r = 0; r < R; r++)
            ck_assert(a.y[r * 64 + c] == (r == 3 ? -112.5f : 0.0f));
    }
    free_answer(&a);
    free_request(&q);
    free_layer(&l);
}
END_TEST

/* The composition that the step replaces: linear, swiglu, linear, scatter_add on the CPU. */
START_TEST(agrees_with_the_operations_of_the_table)
{
    geometry g = {64, 256, 128, 6, 2};
    layer l = make_layer(g, 40);
    request q = make_request(&g, 5, 41);
    answer a = ask(&l, &q);
    float *x = floats(g.hidden), *both = floats(2 * g.width), *h = floats(g.width), *y = floats(g.hidden), *sum = floats(g.hidden);
    for (int r = 0; r < 5; r++) {
        memset(sum, 0, (size_t)g.hidden * 4);
        for (int64_t c = 0; c < g.hidden; c++)
            x[c] = mq_bf16_to_f32(q.x[r * g.hidden + c]);
        for (int k = 0; k < g.topk; k++) {
            int e = q.expert[r * g.topk + k], zero = 0;
            mq_assert_ok(cpu->linear(cpu_dev, both, x, &l.gate_up[e].m, 1, &err), &err);
            mq_assert_ok(cpu->swiglu(cpu_dev, h, both, NULL, true, 1, g.width, &err), &err);
            mq_assert_ok(cpu->linear(cpu_dev, y, h, &l.down[e].m, 1, &err), &err);
            mq_assert_ok(cpu->scatter_add(cpu_dev, sum, y, &zero, q.coef + r * g.topk + k, 1, g.hidden, &err), &err);
        }
        double worst = 0.0, size = 0.0;
        for (int64_t c = 0; c < g.hidden; c++) {
            worst = fmax(worst, fabs((double)sum[c] - (double)a.y[r * g.hidden + c]));
            size = fmax(size, fabs((double)sum[c]));
        }
        ck_assert(worst <= 0x1p-8 * size); /* h rounded to BF16, errors of 2^-9 that partly cancel */
    }
    free(x);
    free(both);
    free(h);
    free(y);
    free(sum);
    free_answer(&a);
    free_request(&q);
    free_layer(&l);
}
END_TEST

/* ---- a row's bits ---- */

/* Put row `from` of one request into row `to` of another. */
static void move_row(request *dst, int to, const request *src, int from, const geometry *g)
{
    memcpy(dst->x + to * g->hidden, src->x + from * g->hidden, (size_t)g->hidden * 2);
    memcpy(dst->expert + to * g->topk, src->expert + from * g->topk, (size_t)g->topk * 4);
    memcpy(dst->coef + to * g->topk, src->coef + from * g->topk, (size_t)g->topk * 4);
}

static void rows_are_alone(geometry g, uint64_t seed)
{
    layer l = make_layer(g, seed);
    request all = make_request(&g, R, seed + 1);
    for (int k = 0; k < g.topk; k++) /* rows 2 and 5 meet in every expert */
        all.expert[5 * g.topk + k] = all.expert[2 * g.topk + k];
    answer together = ask(&l, &all);
    for (int r = 0; r < R; r++) {
        /* alone in row 0; and in another row, between rows of NaN that choose the same experts */
        for (int noisy = 0; noisy < 2; noisy++) {
            request q = make_request(&g, 0, seed + 2);
            int to = noisy ? (r + 3) % R : 0;
            for (int other = 0; noisy && other < R; other++) {
                move_row(&q, other, &all, r, &g);
                for (int64_t c = 0; c < g.hidden; c++)
                    q.x[other * g.hidden + c] = other % 2 ? 0x7fc0u : 0x7f80u;
                for (int k = 0; k < g.topk; k++)
                    q.coef[other * g.topk + k] = NAN;
            }
            move_row(&q, to, &all, r, &g);
            answer a = ask(&l, &q);
            ck_assert(same_bytes(a.y + to * g.hidden, together.y + r * g.hidden, g.hidden * 4));
            free_answer(&a);
            free_request(&q);
        }
    }
    free_answer(&together);
    free_request(&all);
    free_layer(&l);
}

START_TEST(a_row_has_the_same_bits_whatever_its_place_and_neighbours)
{
    rows_are_alone((geometry){64, 192, 192, 7, 3}, 300);
    if (getenv("MQ_TEST_SMALL"))
        return;
    rows_are_alone((geometry){32, 128, 64, 3, 2}, 301);
    rows_are_alone((geometry){128, 256, 128, 5, 2}, 302);
    rows_are_alone((geometry){0, 128, 320, 5, 5}, 303);
    rows_are_alone((geometry){64, 6208, 64, 2, 1}, 304);
}
END_TEST

START_TEST(a_row_has_the_same_bits_whatever_the_number_of_rows)
{
    geometry g = {64, 256, 128, 9, 4};
    layer l = make_layer(g, 60);
    request all = make_request(&g, R, 61);
    answer together = ask(&l, &all);
    for (int n = 0; n < R; n += getenv("MQ_TEST_SMALL") ? 3 : 1) {
        request q = make_request(&g, 0, 62);
        for (int r = 0; r < n; r++)
            move_row(&q, r, &all, r, &g);
        for (int64_t i = n * g.hidden; i < R * g.hidden; i++)
            q.x[i] = 0x7fc0u; /* rows beyond n are zero or unspecified */
        answer a = ask(&l, &q);
        ck_assert(same_bytes(a.y, together.y, n * g.hidden * 4));
        for (int64_t i = n * g.hidden; i < R * g.hidden; i++)
            ck_assert(a.y[i] == 0.0f);
        free_answer(&a);
        free_request(&q);
    }
    free_answer(&together);
    free_request(&all);
    free_layer(&l);
}
END_TEST

START_TEST(one_expert_of_all_rows_and_rows_that_differ)
{
    geometry g = {64, 128, 128, 11, 1};
    layer l = make_layer(g, 70);
    for (int different = 0; different < 2; different++) {
        request q = make_request(&g, R, 71);
        for (int r = 0; r < R; r++)
            q.expert[r] = different ? 10 - r : 4;
        answer a = ask(&l, &q);
        check_answer(&l, &q, &a);
        free_answer(&a);
        free_request(&q);
    }
    free_layer(&l);
}
END_TEST

/* ---- scales ---- */

/* E8M0 from 2^-127 to 2^127 on down's weights, and NaN. */
START_TEST(every_mxfp4_scale)
{
    static const uint8_t scales[] = {0, 1, 2, 100, 253, 254, 255};
    geometry g = {MQ_GROUP_MXFP4, 64, 64, 1, 1};
    for (size_t s = 0; s < sizeof scales; s++) {
        layer l = {.g = g, .gate_up = calloc(1, sizeof *l.gate_up), .down = calloc(1, sizeof *l.down)};
        l.gate_up[0] = random_expert(g.group, 128, 64, 81);
        l.down[0] = random_expert(g.group, 64, 64, 82);
        for (int u = 0; u < 4; u++) /* scales of columns 0..31 alone: [g][group][half] */
            for (int i = 0; i < 32; i++)
                ((uint8_t *)l.down[0].data)[544 * u + MQ_UNIT_CODE_BYTES + i] = i / 2 % 2 ? 0 : scales[s];
        mq_matrix_widen(&l.down[0].m, 0, 64, l.down[0].wide);
        upload_layer(&l);
        request q = make_request(&g, 1, 83);
        for (int64_t c = 0; c < 64; c++) /* so that 2^127 * y is finite */
            q.x[c] = mq_f32_to_bf16(mq_bf16_to_f32(q.x[c]) * 0x1p-10f);
        answer a = ask(&l, &q);
        for (int64_t c = 0; c < 64; c++) {
            double want = 0.0, size = 0.0;
            for (int64_t i = 0; i < 64; i++) {
                const float power = i < 32 ? mq_e8m0_to_f32(scales[s]) : mq_e8m0_to_f32(0);
                const uint8_t *unit = (const uint8_t *)l.down[0].data + 544 * (c / 16);
                unsigned code = (unsigned)unit[mq_unit_byte((int)(c % 16), (int)i)] >> mq_unit_shift((int)(c % 16)) & 15u;
                double p = (double)mq_e2m1_to_f32(code) * (double)mq_bf16_to_f32(a.h[i]) * (double)power;
                want += p;
                size += fabs(p);
            }
            want *= (double)q.coef[0];
            if (scales[s] == 255)
                ck_assert(isnan(a.y[c]));
            else
                ck_assert(fabs((double)a.y[c] - want) <= 0x1p-20 * size + 0x1p-147);
        }
        free_answer(&a);
        free_request(&q);
        free_layer(&l);
    }
}
END_TEST

/* ---- refusals ---- */

START_TEST(what_is_not_computed_is_refused)
{
    mq_decode_expert_table good = {.group = 64, .hidden = 256, .width = 128, .n_experts = 4, .topk = 2}, t;
    mq_assert_ok(parts()->check_experts(&good, &err), &err);
    t = good;
    t.group = 16;
    mq_assert_fails(parts()->check_experts(&t, &err), MQ_E_UNSUPPORTED, &err, "group 16, expected 32, 64, 128 or 0 (MXFP4)");
    t = good;
    t.hidden = 96;
    mq_assert_fails(parts()->check_experts(&t, &err), MQ_E_UNSUPPORTED, &err, "hidden 96, expected a multiple of 64");
    t = good;
    t.width = 0;
    mq_assert_fails(parts()->check_experts(&t, &err), MQ_E_UNSUPPORTED, &err, "width 0, expected a multiple of 64");
    t = good;
    t.width = 64;
    t.group = 128;
    mq_assert_fails(parts()->check_experts(&t, &err), MQ_E_UNSUPPORTED, &err, "width 64, expected a multiple of 128");
    t = good;
    t.hidden = (int64_t)1 << 40;
    mq_assert_fails(parts()->check_experts(&t, &err), MQ_E_UNSUPPORTED, &err, "up to 1048576");
    t = good;
    t.topk = 65;
    mq_assert_fails(parts()->check_experts(&t, &err), MQ_E_UNSUPPORTED, &err, "65 of each row, expected 1 to 64");
    t = good;
    t.n_experts = 1;
    mq_assert_fails(parts()->check_experts(&t, &err), MQ_E_UNSUPPORTED, &err, "1, expected at least the 2 of each row");
}
END_TEST

START_TEST(a_failed_launch_is_reported)
{
    if (!is_emulated)
        return;
    geometry g = {64, 64, 64, 1, 1};
    layer l = make_layer(g, 90);
    request q = make_request(&g, 1, 91);
    mq_decode_plan plan = put_plan(&g, &q);
    uint16_t *x = put(q.x, R * 64 * 2), *h = put(NULL, R * 64 * 2);
    float *y = put(NULL, R * 64 * 4);
    void *done = put(NULL, 4 * (R + 1));
    mq_decode_experts job = {.experts = {.gate_up = l.table[0], .down = l.table[1], .group = 64, .hidden = 64, .width = 64,
                                         .n_experts = 1, .topk = 1},
                             .plan = plan, .x = x, .h = h, .done = done, .y = y};
    for (int nth = 1; nth <= 2; nth++) {
        mq_emulator_fail_launch(nth);
        mq_assert_fails(parts()->experts(gpu_dev, &job, &err), MQ_E_DEVICE, &err, nth == 1 ? "experts" : "down");
    }
    drop(plan.n);
    drop(plan.expert);
    drop(plan.slot);
    drop(plan.coef);
    drop(x);
    drop(h);
    drop(done);
    drop(y);
    free_request(&q);
    free_layer(&l);
}
END_TEST

static Suite *make_suite(void)
{
    Suite *s = suite_create("cuda_step_experts");
    TCase *c = tcase_create("experts");
    tcase_add_test(c, value_worked_by_hand);
    tcase_add_test(c, sums_agree_with_double);
    tcase_add_test(c, large_hidden_sizes_agree_with_double);
    tcase_add_test(c, devices_without_bulk_copies_agree_with_double);
    tcase_add_test(c, sixty_four_experts_of_each_row);
    tcase_add_test(c, agrees_with_the_operations_of_the_table);
    tcase_add_test(c, a_row_has_the_same_bits_whatever_its_place_and_neighbours);
    tcase_add_test(c, a_row_has_the_same_bits_whatever_the_number_of_rows);
    tcase_add_test(c, one_expert_of_all_rows_and_rows_that_differ);
    tcase_add_test(c, every_mxfp4_scale);
    tcase_add_test(c, what_is_not_computed_is_refused);
    tcase_add_test(c, a_failed_launch_is_reported);
    suite_add_tcase(s, c);
    return s;
}

int main(int argc, char **argv)
{
    return cuda_test_main(argc, argv, make_suite);
}
