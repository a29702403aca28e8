/* Noise into the safetensors header reader.  Whatever it accepts obeys the rules: tensors in order, without hole or
 * overlap, up to the end of the data; each is found by its name.  The first two bytes choose the data's size. */
#include <stdlib.h>
#include <string.h>

#include "formats/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n < 2)
        return 0;
    int64_t data_bytes = data[0] | data[1] << 8;
    mq_safetensors *s;
    mq_err err;
    if (mq_safetensors_parse(&s, (const char *)data + 2, (int64_t)n - 2, data_bytes, "fuzz", &err) != MQ_OK) {
        if (s || strncmp(err.text, "fuzz: ", 6) != 0)
            abort();
        return 0;
    }
    int64_t end = 8 + (int64_t)n - 2;
    for (int64_t i = 0; i < mq_safetensors_count(s); i++) {
        const mq_st_tensor *t = mq_safetensors_get(s, i);
        if (t->off != end || t->n_bytes < 0 || (int64_t)strlen(t->name) != t->name_bytes ||
            mq_safetensors_find(s, t->name) != t)
            abort();
        end += t->n_bytes;
    }
    if (end != 8 + (int64_t)n - 2 + data_bytes)
        abort();
    mq_safetensors_close(s);
    return 0;
}
