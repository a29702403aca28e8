/* The emulator itself: what warps and blocks exchange, where matrix fragments lie, and that each mistake it promises to
 * find ends the process with its place. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <vector>

#include "kernels/cuda/ptx.cuh"
#include "src/float.h"
#include "tests/emulator/emulator_test.h"

using namespace mq_cuda;

/* ---- what threads exchange ---- */

static __global__ void shuffle_kernel(int *out)
{
    int l = (int)threadIdx.x, v = 100 + l;
    out[l] = __shfl_xor_sync(~0u, v, 5);
    out[32 + l] = __shfl_down_sync(~0u, v, 3);
    out[64 + l] = __shfl_up_sync(~0u, v, 3, 8);
    out[96 + l] = __shfl_sync(~0u, v, 9, 8);
    if (l % 2)
        out[128 + l] = (int)__ballot_sync(0xaaaaaaaau, l > 16);
    else
        out[128 + l] = __all_sync(0x55555555u, l < 31) + 2 * __any_sync(0x55555555u, l == 31);
    unsigned half = l < 16 ? 0xffffu : 0xffff0000u;
    out[160 + l] = (int)(__reduce_max_sync(half, 0xfffffff0u - (unsigned)l) - 0xffffff00u);
}

START_TEST(lanes_read_each_other)
{
    int out[192];
    ck_assert(run(shuffle_kernel, 1, 32, 0, (int *)out) == cudaSuccess);
    for (int l = 0; l < 32; l++) {
        ck_assert_int_eq(out[l], 100 + (l ^ 5));
        ck_assert_int_eq(out[32 + l], 100 + (l + 3 < 32 ? l + 3 : l));
        ck_assert_int_eq(out[64 + l], 100 + (l % 8 >= 3 ? l - 3 : l));
        ck_assert_int_eq(out[96 + l], 100 + l / 8 * 8 + 1);
        ck_assert_int_eq(out[128 + l], l % 2 ? (int)0xaaaa0000u : 1);
        ck_assert_int_eq(out[160 + l], l < 16 ? 0xf0 : 0xe0);
    }
}
END_TEST

static __global__ void reverse_kernel(int *data, int *count)
{
    MQ_SHARED(tile, int[96]);
    MQ_SHARED_DYNAMIC(more, int);
    int t = (int)threadIdx.x, n = (int)blockDim.x, *mine = data + (int)blockIdx.x * n;
    tile[t] = mine[t];
    more[t] = t;
    __syncthreads();
    mine[t] = tile[n - 1 - t] + more[n - 1 - t];
    int odd = __syncthreads_count(t % 2);
    if (t == 0)
        atomicAdd(count, odd);
}

START_TEST(a_block_reverses_its_part)
{
    int data[192], count = 0;
    for (int i = 0; i < 192; i++)
        data[i] = i;
    ck_assert(run(reverse_kernel, 2, 96, 96 * sizeof(int), (int *)data, &count) == cudaSuccess);
    for (int i = 0; i < 192; i++)
        ck_assert_int_eq(data[i], i / 96 * 96 + 2 * (95 - i % 96));
    ck_assert_int_eq(count, 96);
}
END_TEST

static __global__ void index_kernel(unsigned *out)
{
    unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    out[block * 24 + thread] += 1;
}

START_TEST(every_thread_of_a_grid_runs_once)
{
    std::vector<unsigned> out(2 * 3 * 4 * 24, 0);
    ck_assert(run(index_kernel, dim3(2, 3, 4), dim3(4, 3, 2), 0, out.data()) == cudaSuccess);
    for (unsigned v : out)
        ck_assert_int_eq(v, 1);
}
END_TEST

/* ---- matrix fragments ---- */

static uint32_t bf16_pair(float low, float high)
{
    return mq_f32_to_bf16(low) | (uint32_t)mq_f32_to_bf16(high) << 16;
}

static __global__ void mma_kernel(float *c, const float *a, const float *b)
{
    int l = (int)threadIdx.x, g = l / 4, t = l % 4;
    uint32_t fa[4], fb[2];
    for (int r = 0; r < 4; r++) {
        const float *p = a + (g + 8 * (r % 2)) * 16 + 2 * t + 8 * (r / 2);
        fa[r] = bf16_pair(p[0], p[1]);
    }
    for (int r = 0; r < 2; r++)
        fb[r] = bf16_pair(b[(2 * t + 8 * r) * 8 + g], b[(2 * t + 8 * r + 1) * 8 + g]);
    float fc[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    mma_bf16(fc, fa, fb);
    for (int i = 0; i < 4; i++)
        c[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = fc[i];
}

START_TEST(fragments_lie_as_the_manual_says)
{
    float a[256], b[128], c[128];
    for (int i = 0; i < 256; i++)
        a[i] = (float)(i * 7 % 31 - 15);
    for (int i = 0; i < 128; i++)
        b[i] = (float)(i * 5 % 17 - 8);
    ck_assert(run(mma_kernel, 1, 32, 0, (float *)c, (const float *)a, (const float *)b) == cudaSuccess);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++) {
            float sum = 1.0f;
            for (int k = 0; k < 16; k++)
                sum += a[i * 16 + k] * b[k * 8 + j];
            ck_assert(c[i * 8 + j] == sum);
        }
}
END_TEST

/* ---- mistakes ---- */

static __global__ void early_exit_kernel()
{
    if (threadIdx.x == 7)
        return;
    __syncthreads();
}
static __global__ void two_barriers_kernel()
{
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
}
static __global__ void lost_lane_kernel()
{
    if (threadIdx.x != 3)
        __syncwarp();
    else
        __syncthreads();
}
static __global__ void gone_lane_kernel()
{
    if (threadIdx.x != 3)
        __syncwarp();
}
static __global__ void foreign_lane_kernel(int *out)
{
    if (threadIdx.x < 16)
        *out = __shfl_sync(0xffffu, 1, 20);
}
static __global__ void two_shuffles_kernel(int *out)
{
    if (threadIdx.x % 2)
        *out = __shfl_xor_sync(~0u, 1, 1);
    else
        *out = __shfl_xor_sync(~0u, 2, 1);
}
static __global__ void not_in_mask_kernel()
{
    __syncwarp(1u);
}

#if defined(__SANITIZE_ADDRESS__)
static const bool has_sanitizer = true;
#elif defined(__has_feature)
static const bool has_sanitizer = __has_feature(address_sanitizer);
#else
static const bool has_sanitizer = false;
#endif

static __global__ void past_shared_kernel(int *out)
{
    MQ_SHARED(tile, int[64]);
    int *p = tile; /* or the bounds of the array's type are what is noticed */
    p[threadIdx.x + 1] = 1;
    __syncthreads();
    out[0] = tile[0];
}
static __global__ void past_memory_kernel(int *out)
{
    out[threadIdx.x] = 1;
}

START_TEST(overruns_meet_the_sanitizer)
{
    int *out;
    if (!has_sanitizer) {
        printf("SKIPPED: overruns, without the address sanitizer\n");
        return;
    }
    ck_assert(cudaMalloc((void **)&out, 63 * sizeof *out) == cudaSuccess);
    dies("heap-buffer-overflow", past_shared_kernel, out);
    dies("heap-buffer-overflow", past_memory_kernel, out);
    ck_assert(cudaFree(out) == cudaSuccess);
}
END_TEST

START_TEST(mistakes_end_the_process)
{
    int out;
    dies("a thread ended while another waits at a barrier", early_exit_kernel);
    dies("threads wait at different barriers", two_barriers_kernel);
    dies("a warp operation waits for a lane that never comes", lost_lane_kernel);
    dies("a warp operation names a lane that is not there", gone_lane_kernel);
    dies("lane 0 reads lane 20, which takes no part", foreign_lane_kernel, &out);
    dies("lanes of one mask wait in different warp operations", two_shuffles_kernel, &out);
    dies("a lane's mask lacks the lane itself", not_in_mask_kernel);
}
END_TEST

static __global__ void poison_kernel(float *out)
{
    MQ_SHARED(v, float);
    MQ_SHARED_DYNAMIC(d, float);
    out[0] = v;
    out[1] = d[0];
    v = d[0] = 1.0f;
}

START_TEST(memory_is_nan_until_written)
{
    float out[2], *p;
    for (int i = 0; i < 2; i++) {
        ck_assert(run(poison_kernel, 2, 1, sizeof(float), (float *)out) == cudaSuccess);
        ck_assert(isnan(out[0]) && isnan(out[1]));
    }
    ck_assert(cudaMalloc((void **)&p, 4) == cudaSuccess);
    ck_assert(isnan(*p));
    ck_assert(cudaFree(p) == cudaSuccess);
}
END_TEST

static __global__ void order_kernel(unsigned *out)
{
    out[0] = 64 * blockIdx.x + threadIdx.x; /* the last to run wins */
}

static __global__ void write_kernel(int *out)
{
    *out = 5;
}

START_TEST(host_and_device_keep_apart)
{
    int on_host = 0, *p, back;
    int *volatile address = &on_host;
    mq_emulator_allow_host_pointers(false);
    ck_assert(run(write_kernel, 1, 1, 0, (int *)address) == cudaErrorIllegalAddress);
    ck_assert(cudaGetLastError() == cudaErrorIllegalAddress);
    mq_emulator_guard_memory(true);
    ck_assert(cudaMalloc((void **)&p, 3 * sizeof *p) == cudaSuccess);
    mq_emulator_guard_memory(false);
    ck_assert(run(write_kernel, 1, 1, 0, p) == cudaSuccess);
    ck_assert(cudaMemcpyAsync(&back, p, sizeof back, cudaMemcpyDeviceToHost, nullptr) == cudaSuccess);
    ck_assert_int_eq(back, 5);
    pid_t child = fork();
    if (child == 0) {
        signal(SIGSEGV, SIG_DFL);
        _exit(*(volatile int *)p == 5);
    }
    int status;
    ck_assert(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    ck_assert(cudaFree(p) == cudaSuccess);
    mq_emulator_allow_host_pointers(true);
}
END_TEST

START_TEST(order_can_be_turned_round)
{
    unsigned out;
    run(order_kernel, 2, 64, 0, &out);
    ck_assert_int_eq(out, 127);
    mq_emulator_run_backwards(true);
    run(order_kernel, 2, 64, 0, &out);
    mq_emulator_run_backwards(false);
    ck_assert_int_eq(out, 0);
}
END_TEST

START_TEST(limits_are_those_of_a_device)
{
    unsigned out;
    ck_assert(run(order_kernel, 1, 1025, 0, &out) == cudaErrorInvalidConfiguration);
    ck_assert(run(order_kernel, dim3(1, 65536), 1, 0, &out) == cudaErrorInvalidConfiguration);
    ck_assert(run(order_kernel, 0, 32, 0, &out) == cudaErrorInvalidConfiguration);
    ck_assert(run(order_kernel, 1, 32, 49153, &out) == cudaErrorInvalidConfiguration);
    ck_assert(cudaFuncSetAttribute(order_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 232449) ==
              cudaErrorInvalidValue);
    ck_assert(cudaFuncSetAttribute(order_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 65536) == cudaSuccess);
    ck_assert(run(order_kernel, 1, 32, 49153, &out) == cudaSuccess);
    ck_assert(cudaMemcpyAsync(&out, &out, 4, cudaMemcpyDeviceToHost, nullptr) == cudaErrorInvalidValue);
    ck_assert(cudaGetLastError() == cudaErrorInvalidValue);
    ck_assert(cudaGetLastError() == cudaSuccess);
}
END_TEST

int main()
{
    mq_emulator_allow_host_pointers(true); /* most of these kernels work on arrays of the tests */
    Suite *s = suite_create("emulator");
    TCase *t = tcase_create("all");
    tcase_add_test(t, lanes_read_each_other);
    tcase_add_test(t, a_block_reverses_its_part);
    tcase_add_test(t, every_thread_of_a_grid_runs_once);
    tcase_add_test(t, fragments_lie_as_the_manual_says);
    tcase_add_test(t, mistakes_end_the_process);
    tcase_add_test(t, overruns_meet_the_sanitizer);
    tcase_add_test(t, memory_is_nan_until_written);
    tcase_add_test(t, host_and_device_keep_apart);
    tcase_add_test(t, order_can_be_turned_round);
    tcase_add_test(t, limits_are_those_of_a_device);
    suite_add_tcase(s, t);
    return mq_test_run(s);
}
