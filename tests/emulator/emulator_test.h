/* What the tests of the emulator share: a plain launch, and kernels that must end the process. */
#ifndef MQ_TESTS_EMULATOR_EMULATOR_TEST_H
#define MQ_TESTS_EMULATOR_EMULATOR_TEST_H

#include <cuda_runtime.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/emulator/emulator.h"
#include "tests/harness.h"

template <class... P, class... A>
static cudaError_t run(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, A... args)
{
    cudaLaunchConfig_t c = {};
    c.gridDim = grid;
    c.blockDim = block;
    c.dynamicSmemBytes = shared;
    return cudaLaunchKernelEx(&c, kernel, args...);
}

/* The kernel must end a child process with text, and its place in the source, in what it says. */
template <class... P, class... A> static void dies(const char *text, void (*kernel)(P...), A... args)
{
    int pipes[2];
    ck_assert(pipe(pipes) == 0);
    pid_t child = fork();
    if (child == 0) {
        dup2(pipes[1], 2);
        signal(SIGABRT, SIG_DFL);
        run(kernel, 1, 64, 0, args...);
        _exit(0);
    }
    close(pipes[1]);
    char said[2048];
    ssize_t n, total = 0;
    while ((n = read(pipes[0], said + total, sizeof said - 1 - (size_t)total)) > 0)
        total += n;
    said[total] = 0;
    close(pipes[0]);
    int status;
    ck_assert(waitpid(child, &status, 0) == child);
    ck_assert_msg(!WIFEXITED(status) || WEXITSTATUS(status) != 0, "the kernel went through, expected: %s", text);
    ck_assert_msg(strstr(said, text) && strstr(said, "test_emul"), "it said: %s", said);
}

#endif
