/* What every Check program of ours shares: a runner that prints one line per test, a temporary folder that is
 * removed at exit, paths of the bundled data, and a few comparisons. */
#ifndef MQ_TESTS_HARNESS_H
#define MQ_TESTS_HARNESS_H

#include <check.h>
#include <stdint.h>

#include "src/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Exit status that ctest reports as skipped. */
enum { MQ_TEST_SKIP = 77 };

/* Run a suite (owned by the call) and return the process exit status.  CK_NOFORK unless the environment says
 * otherwise: sanitizers and CUDA want one process. */
int mq_test_run(Suite *s);

/* A fresh folder below $TMPDIR or /tmp; removed when the process ends.  Static storage per call site is the
 * caller's: returns a heap string owned by the harness. */
const char *mq_test_dir(void);

/* Path below the project's root ($MQ_SOURCE, or found by walking up from the working directory to the folder
 * that holds CMakeLists.txt and formats/); heap string owned by the harness. */
const char *mq_test_path(const char *rel);

/* Folder of a model that is not bundled: $MQ_TEST_MODELS/name or ../shared/models/name; NULL where absent (the
 * test then prints a line "SKIPPED: ..." and passes nothing). */
const char *mq_test_model(const char *name);

/* Assert success, showing the error text. */
#define mq_assert_ok(call, err)                                              \
    do {                                                                     \
        mq_status st_ = (call);                                              \
        ck_assert_msg(st_ == MQ_OK, "%s: %s", #call, (err)->text);           \
    } while (0)

/* Assert a status and that the text holds a fragment. */
#define mq_assert_fails(call, status, err, fragment)                                                             \
    do {                                                                                                         \
        mq_status st_ = (call);                                                                                  \
        ck_assert_msg(st_ == (status), "%s: status %s, expected %s (%s)", #call, mq_status_name(st_),            \
                      mq_status_name(status), (err)->text);                                                      \
        ck_assert_msg(strstr((err)->text, (fragment)) != NULL, "%s: text '%s' lacks '%s'", #call, (err)->text,   \
                      (fragment));                                                                               \
    } while (0)

/* Deterministic noise: splitmix64; the normal one is Box-Muller on it. */
uint64_t mq_test_rand(uint64_t *state);
float mq_test_normal(uint64_t *state);

#ifdef __cplusplus
}
#endif
#endif
