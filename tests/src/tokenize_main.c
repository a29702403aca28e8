/* The tokenizer behind a pipe, for test_tokenizer_reference.py, and a clock for its speed.
 *
 *   tokenize-records TOKENIZER.json               records on stdin, answers on stdout
 *   tokenize-records TOKENIZER.json --bench FILE  MB per CPU second of encoding FILE whole, best of five
 *
 * A record: one byte of command, u32 payload bytes, payload.  E: encode with added tokens, P:
 * without; D: decode i32 ids, S: decode without special tokens.  An answer: u32 payload bytes,
 * payload (i32 ids or text); or 0xFFFFFFFF and then the error's text in the same form.  Integers
 * are little-endian. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "src/file.h"
#include "src/tokenizer.h"

static int put(uint32_t n_bytes, const void *payload)
{
    if (fwrite(&n_bytes, sizeof n_bytes, 1, stdout) != 1)
        return 1;
    return n_bytes > 0 && fwrite(payload, 1, n_bytes, stdout) != n_bytes;
}

static int answer(const mq_tokenizer *t, int command, const char *payload, uint32_t n_bytes)
{
    mq_err err = {0};
    mq_tokens ids = {0};
    mq_buf text = mq_buf_empty();
    mq_status st;
    int bad;
    if (command == 'E' || command == 'P')
        st = mq_tokenizer_encode(t, &ids, payload, n_bytes, command == 'E', &err);
    else
        st = mq_tokenizer_decode(t, &text, (const int32_t *)(const void *)payload, n_bytes / 4,
                                 command == 'S', &err);
    if (st != MQ_OK) {
        uint32_t mark = 0xFFFFFFFFu;
        bad =
            fwrite(&mark, sizeof mark, 1, stdout) != 1 || put((uint32_t)strlen(err.text), err.text);
    } else if (command == 'E' || command == 'P') {
        bad = put((uint32_t)(ids.n * 4), ids.ids);
    } else {
        bad = put((uint32_t)text.n_bytes, text.data);
    }
    mq_tokens_release(&ids);
    mq_buf_release(&text);
    return bad;
}

static int serve(const mq_tokenizer *t)
{
    int command, bad = 0;
    while (!bad && (command = getchar()) != EOF) {
        uint32_t n_bytes;
        if (fread(&n_bytes, sizeof n_bytes, 1, stdin) != 1)
            return 1;
        char *payload = malloc((size_t)n_bytes + 1);
        if (!payload)
            return 1;
        bad = fread(payload, 1, n_bytes, stdin) != n_bytes || answer(t, command, payload, n_bytes);
        free(payload);
    }
    return bad || fflush(stdout) != 0;
}

static double now_s(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

static int bench(const mq_tokenizer *t, const char *path)
{
    mq_err err = {0};
    mq_buf text = mq_buf_empty();
    mq_tokens ids = {0};
    double best = 1e9;
    mq_status st = mq_file_load(&text, path, 1 << 30, &err);
    for (int i = 0; i < 5 && st == MQ_OK; i++) {
        ids.n = 0;
        double start = now_s();
        st = mq_tokenizer_encode(t, &ids, text.data ? text.data : "", text.n_bytes, true, &err);
        double took = now_s() - start;
        best = took < best ? took : best;
    }
    if (st == MQ_OK)
        printf("%lld bytes, %lld ids, %.2f MB/s\n", (long long)text.n_bytes, (long long)ids.n,
               (double)text.n_bytes / 1e6 / best);
    else
        fprintf(stderr, "%s\n", err.text);
    mq_buf_release(&text);
    mq_tokens_release(&ids);
    return st != MQ_OK;
}

int main(int argc, char **argv)
{
    mq_err err = {0};
    mq_tokenizer *t = NULL;
    if (argc != 2 && !(argc == 4 && strcmp(argv[2], "--bench") == 0)) {
        fprintf(stderr, "usage: tokenize-records TOKENIZER.json [--bench FILE]\n");
        return 2;
    }
    if (mq_tokenizer_open(&t, argv[1], &err) != MQ_OK) {
        fprintf(stderr, "%s\n", err.text);
        return 3;
    }
    int rc = argc == 4 ? bench(t, argv[3]) : serve(t);
    mq_tokenizer_close(t);
    return rc;
}
