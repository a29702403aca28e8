/* SHA-256 over OpenSSL's EVP interface, which picks the processor's SHA instructions.
 *
 * After creation EVP's SHA-256 has no reason to fail; if it does, the library is broken.  A made-up
 * digest would pass for a real one, so must() ends the process instead of carrying on. */
#include "src/sha256.h"

#include <assert.h>
#include <stdlib.h>

#include <openssl/evp.h>

struct mq_sha256 {
    EVP_MD_CTX *ctx;
};

static void must(int ok)
{
    if (ok != 1)
        abort();
}

mq_status mq_sha256_create(mq_sha256 **out, mq_err *err)
{
    *out = NULL;
    mq_sha256 *h = calloc(1, sizeof *h);
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    if (!h || !ctx || EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) != 1) {
        EVP_MD_CTX_free(ctx);
        free(h);
        return mq_fail(err, MQ_E_NOMEM, "out of memory for a SHA-256 state");
    }
    h->ctx = ctx;
    *out = h;
    return MQ_OK;
}

void mq_sha256_free(mq_sha256 *h)
{
    if (!h)
        return;
    EVP_MD_CTX_free(h->ctx);
    free(h);
}

void mq_sha256_reset(mq_sha256 *h)
{
    must(EVP_DigestInit_ex(h->ctx, EVP_sha256(), NULL));
}

void mq_sha256_update(mq_sha256 *h, const void *bytes, int64_t n_bytes)
{
    assert(n_bytes >= 0);
    if (n_bytes > 0)
        must(EVP_DigestUpdate(h->ctx, bytes, (size_t)n_bytes));
}

void mq_sha256_finish(mq_sha256 *h, uint8_t digest[MQ_SHA256_BYTES])
{
    unsigned n = 0;
    must(EVP_DigestFinal_ex(h->ctx, digest, &n));
    must(n == MQ_SHA256_BYTES);
    mq_sha256_reset(h);
}

void mq_sha256_of(uint8_t digest[MQ_SHA256_BYTES], const void *bytes, int64_t n_bytes)
{
    assert(n_bytes >= 0);
    unsigned n = 0;
    must(EVP_Digest(n_bytes ? bytes : "", (size_t)n_bytes, digest, &n, EVP_sha256(), NULL));
    must(n == MQ_SHA256_BYTES);
}

void mq_sha256_hex(char hex[MQ_SHA256_HEX], const uint8_t digest[MQ_SHA256_BYTES])
{
    static const char digits[] = "0123456789abcdef";
    for (int i = 0; i < MQ_SHA256_BYTES; i++) {
        hex[2 * i] = digits[digest[i] >> 4];
        hex[2 * i + 1] = digits[digest[i] & 15];
    }
    hex[2 * MQ_SHA256_BYTES] = '\0';
}
