/* The CPU device: threads, instruction set, memory and workspaces, and the table that lists the operations.
 *
 * The instruction set is chosen here, once; nothing below asks the processor again.  Memory is the host's, so copies
 * are memcpy and dev_sync has nothing to wait for. */
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "src/isa.h"
#include "src/machine.h"

enum { ALIGN = 64, HOST_ALIGN = 4096 };

static mq_status choose_ops(const mq_vector_ops **out, const char *name, mq_err *err)
{
    static const mq_vector_ops *const ops[] = {
        [MQ_ISA_SCALAR] = &mq_vector_scalar,
        [MQ_ISA_AVX2] = &mq_vector_avx2,
        [MQ_ISA_AVX512] = &mq_vector_avx512,
    };
    mq_isa isa;
    MQ_TRY(mq_isa_choose(&isa, name, err));
    *out = ops[isa];
    return MQ_OK;
}

static int processors(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set))
        return 1;
    int n = CPU_COUNT(&set);
    return n > 0 ? n : 1;
}

mq_status mq_cpu_dev_open(mq_dev **out, int ordinal, int n_threads, const char *isa, mq_err *err)
{
    *out = NULL;
    const mq_vector_ops *v;
    if (ordinal != 0)
        return mq_fail(err, MQ_E_DEVICE, "cpu %d: only cpu 0 exists", ordinal);
    MQ_TRY(choose_ops(&v, isa, err));
    mq_dev *dev = calloc(1, sizeof *dev);
    if (!dev)
        return mq_fail(err, MQ_E_NOMEM, "cpu device: out of memory");
    dev->n_threads = n_threads > 0 ? n_threads : processors();
    dev->v = v;
    snprintf(dev->name, sizeof dev->name, "cpu, %d thread%s, %s", dev->n_threads, dev->n_threads == 1 ? "" : "s", v->isa);
    *out = dev;
    return MQ_OK;
}

void mq_cpu_dev_close(mq_dev *dev)
{
    if (!dev)
        return;
    for (int i = 0; i < MQ_WS_COUNT; i++)
        free(dev->ws[i]);
    for (int i = 0; i < MQ_ROPE_TABLES; i++)
        free(dev->rope[i].cos_sin);
    free(dev);
}

const char *mq_cpu_dev_name(const mq_dev *dev)
{
    return dev->name;
}

static const char *dev_arch(const mq_dev *dev)
{
    return dev->v->isa;
}

static void dev_clocks(const mq_dev *dev, int *core_mhz, int *memory_mhz)
{
    FILE *f = fopen("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq", "r");
    int khz = 0;
    (void)dev;
    if (f && fscanf(f, "%d", &khz) != 1)
        khz = 0;
    if (f)
        fclose(f);
    *core_mhz = khz / 1000;
    *memory_mhz = 0;
}

static mq_status set_precision(mq_dev *dev, mq_precision p, mq_err *err)
{
    (void)dev;
    return p == MQ_PRECISION_F32 ? MQ_OK : mq_fail(err, MQ_E_UNSUPPORTED, "cpu: products in BF16, expected F32");
}

static mq_precision precision(const mq_dev *dev)
{
    (void)dev;
    return MQ_PRECISION_F32;
}

static void *aligned_room(int64_t n_bytes)
{
    if (n_bytes < 0 || n_bytes > INT64_MAX / 2)
        return NULL;
    return aligned_alloc(ALIGN, ((size_t)n_bytes + 2 * ALIGN - 1) / ALIGN * ALIGN);
}

mq_status mq_cpu_alloc(mq_dev *dev, void **out, int64_t n_bytes, mq_err *err)
{
    (void)dev;
    *out = aligned_room(n_bytes);
    if (!*out)
        return mq_fail(err, MQ_E_NOMEM, "cpu: out of memory (%lld bytes)", (long long)n_bytes);
    memset(*out, 0, (size_t)n_bytes);
    return MQ_OK;
}

void mq_cpu_release(mq_dev *dev, void *p)
{
    (void)dev;
    free(p);
}

mq_status mq_cpu_copy(mq_dev *dev, void *dst, const void *src, int64_t n_bytes, mq_err *err)
{
    (void)dev;
    (void)err;
    if (n_bytes > 0)
        memcpy(dst, src, (size_t)n_bytes);
    return MQ_OK;
}

/* ---- Copies with a fence: done when they return ---- */

struct mq_fence {
    int unused;
};

static mq_status host_alloc(mq_dev *dev, void **out, int64_t n_bytes, mq_err *err)
{
    (void)dev;
    *out = NULL;
    if (n_bytes >= 0 && n_bytes <= INT64_MAX / 2)
        *out = aligned_alloc(HOST_ALIGN, ((size_t)n_bytes / HOST_ALIGN + 1) * HOST_ALIGN);
    return *out ? MQ_OK : mq_fail(err, MQ_E_NOMEM, "cpu: out of memory (%lld bytes)", (long long)n_bytes);
}

static mq_status fence_create(mq_dev *dev, mq_fence **out, mq_err *err)
{
    (void)dev;
    *out = calloc(1, sizeof **out);
    return *out ? MQ_OK : mq_fail(err, MQ_E_NOMEM, "cpu: out of memory");
}

static void fence_free(mq_dev *dev, mq_fence *f)
{
    (void)dev;
    free(f);
}

static mq_status upload_async(mq_dev *dev, void *dst, const void *src_host, int64_t n_bytes, mq_fence *f, mq_err *err)
{
    (void)f;
    return mq_cpu_copy(dev, dst, src_host, n_bytes, err);
}

static mq_status fence_wait(mq_dev *dev, mq_fence *f, mq_err *err)
{
    (void)dev;
    (void)f;
    (void)err;
    return MQ_OK;
}

/* Free: pages nobody uses, and those that only cache files. */
static mq_status memory(mq_dev *dev, int64_t *free_bytes, int64_t *total_bytes, mq_err *err)
{
    (void)dev;
    *total_bytes = mq_machine_bytes();
    *free_bytes = 0;
    FILE *info = fopen("/proc/meminfo", "r");
    char line[128];
    long long kib = -1;
    while (info && kib < 0 && fgets(line, sizeof line, info))
        if (sscanf(line, "MemAvailable: %lld kB", &kib) != 1)
            kib = -1;
    if (info)
        fclose(info);
    if (kib < 0)
        return mq_fail(err, MQ_E_DEVICE, "cpu: /proc/meminfo does not say how much memory is available");
    *free_bytes = kib * 1024 < *total_bytes ? kib * 1024 : *total_bytes;
    return MQ_OK;
}

mq_status mq_cpu_dev_sync(mq_dev *dev, mq_err *err)
{
    (void)dev;
    (void)err;
    return MQ_OK;
}

int64_t mq_cpu_workspace_room(int64_t n_bytes)
{
    return n_bytes + n_bytes / 4;
}

mq_status mq_cpu_workspace(mq_dev *dev, int slot, int64_t n_bytes, void **out, mq_err *err)
{
    if (n_bytes > dev->ws_bytes[slot] || !dev->ws[slot]) {
        int64_t room = mq_cpu_workspace_room(n_bytes);
        free(dev->ws[slot]);
        dev->ws_bytes[slot] = 0;
        dev->ws[slot] = aligned_room(room);
        if (!dev->ws[slot])
            return mq_fail(err, MQ_E_NOMEM, "cpu workspace: out of memory (%lld bytes)", (long long)room);
        dev->ws_bytes[slot] = room;
    }
    *out = dev->ws[slot];
    return MQ_OK;
}

int mq_cpu_threads(const mq_dev *dev, double n_ops)
{
    /* About 3 us of work; waking a team costs 1 to 2. */
    return n_ops < 1e5 ? 1 : dev->n_threads;
}

const mq_kernels mq_cpu_kernels = {
    .name = "cpu",
    .dev_open = mq_cpu_dev_open,
    .dev_close = mq_cpu_dev_close,
    .dev_name = mq_cpu_dev_name,
    .dev_arch = dev_arch,
    .set_precision = set_precision,
    .precision = precision,
    .library = mq_cpu_library,
    .alloc = mq_cpu_alloc,
    .release = mq_cpu_release,
    .upload = mq_cpu_copy,
    .download = mq_cpu_copy,
    .dev_sync = mq_cpu_dev_sync,
    .memory = memory,
    .host_alloc = host_alloc,
    .host_free = mq_cpu_release,
    .fence_create = fence_create,
    .fence_free = fence_free,
    .upload_async = upload_async,
    .fence_wait = fence_wait,
    .linear = mq_cpu_linear,
    .linear_fixed = mq_cpu_linear_fixed,
    .embed = mq_cpu_embed,
    .rmsnorm = mq_cpu_rmsnorm,
    .rope = mq_cpu_rope,
    .kv_store = mq_cpu_kv_store,
    .attention = mq_cpu_attention,
    .attention_block = mq_cpu_attention_block,
    .swiglu = mq_cpu_swiglu,
    .route = mq_cpu_route,
    .gather = mq_cpu_gather,
    .pick = mq_cpu_pick,
    .put_cols = mq_cpu_put_cols,
    .scatter_add = mq_cpu_scatter_add,
    .add = mq_cpu_add,
    .sample = mq_cpu_sample,
    .top = mq_cpu_top,
    .logit_stats = mq_cpu_logit_stats,
    .copy = mq_cpu_copy,
    .widen = mq_cpu_widen,
    .search_scales = mq_cpu_search_scales,
    .nearest = mq_cpu_nearest,
    .weight_error = mq_cpu_weight_error,
    .pack_units = mq_cpu_pack_units,
    .axpby = mq_cpu_axpby,
    .gram = mq_cpu_gram,
    .diag = mq_cpu_diag,
    .set_diag = mq_cpu_set_diag,
    .factor = mq_cpu_factor,
    .ldlq = mq_cpu_ldlq,
    .cross = mq_cpu_cross,
    .solve = mq_cpu_solve,
    .quant_loss = mq_cpu_quant_loss,
    .refit_scales = mq_cpu_refit_scales,
    .descend = mq_cpu_descend,
    .keep_better = mq_cpu_keep_better,
    .calibration_bytes = mq_cpu_calibration_bytes,
    .fill = mq_cpu_fill,
    .sum_words = mq_cpu_sum_words,
    .dev_clocks = dev_clocks,
};
