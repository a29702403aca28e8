/* The recipe of a calibrated run as text, and as the manifest's member. */
#include <stdio.h>
#include <string.h>

#include "tools/calibrate_state.h"

typedef struct text_out {
    char *at;
    size_t left;
} text_out;

static void put(text_out *t, const char *key, const char *value)
{
    int n = snprintf(t->at, t->left, "%s%s=%s", t->left == sizeof((mq_recipe_calib *)0)->options ? "" : ",", key, value);
    size_t used = n > 0 && (size_t)n < t->left ? (size_t)n : t->left - 1;
    t->at += used;
    t->left -= used;
}

static void put_switch(text_out *t, const char *key, bool on)
{
    put(t, key, on ? "on" : "off");
}

static void put_int(text_out *t, const char *key, int value)
{
    char text[16];
    snprintf(text, sizeof text, "%d", value);
    put(t, key, text);
}

/* The shortest decimal fraction that reads back as value. */
static void put_float(text_out *t, const char *key, float value)
{
    char text[32];
    for (int digits = 1; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)value);
        float back;
        if (sscanf(text, "%f", &back) == 1 && back == value)
            break;
    }
    put(t, key, text);
}

/* Every member, in the form and with the keys of --recipe. */
static void recipe_text(char out[256], const mq_calib_recipe *r)
{
    text_out t = {out, sizeof((mq_recipe_calib *)0)->options};
    out[0] = '\0';
    put(&t, "precision", r->precision == MQ_PRECISION_BF16 ? "bf16" : "f32");
    put_int(&t, "weight", r->weight_power);
    put_switch(&t, "weighted-search", r->weighted_search);
    put_switch(&t, "act-order", r->act_order);
    put_switch(&t, "refit", r->refit);
    put_int(&t, "rounds", r->rounds);
    put_int(&t, "descent", r->descent);
    put_switch(&t, "shrink", r->shrink);
    put_switch(&t, "quantized-h", r->quantized_h);
    put_switch(&t, "down-target", r->down_target);
    put_float(&t, "target-few", r->target_few);
    put_float(&t, "kappa", r->kappa);
    put_switch(&t, "damp-columns", r->damp_columns);
    put_float(&t, "damp", r->damp);
    put_float(&t, "damp-few", r->damp_few);
}

const mq_kernels *mq_calibration_kernels(const mq_convert_job *job)
{
    return job->opt.kernels ? job->opt.kernels : mq_kernels_find("cpu");
}

int mq_calibration_n_devices(const mq_convert_job *job)
{
    return job->opt.n_devices > 0 ? job->opt.n_devices : 1;
}

int mq_calibration_ordinal(const mq_convert_job *job, int i)
{
    return job->opt.n_devices > 0 ? job->opt.devices[i % job->opt.n_devices] : 0;
}

/* The kind that all devices are of, and the library: bits must not depend on which of them an expert meets. */
static mq_status find_arch(char *arch, size_t arch_bytes, char *library, int64_t library_bytes, const mq_convert_job *job,
                           mq_err *err)
{
    const mq_kernels *k = mq_calibration_kernels(job);
    for (int i = 0; i < mq_calibration_n_devices(job); i++) {
        mq_dev *dev;
        mq_status st = MQ_OK;
        MQ_TRY(k->dev_open(&dev, mq_calibration_ordinal(job, i), 1, NULL, err));
        if (i == 0) {
            snprintf(arch, arch_bytes, "%s", k->dev_arch(dev));
            st = k->library(dev, library, library_bytes, err);
        } else if (strcmp(arch, k->dev_arch(dev)) != 0) {
            st = mq_fail(err, MQ_E_DEVICE, "%s is %s, expected %s as the first device", k->dev_name(dev), k->dev_arch(dev),
                         arch);
        }
        k->dev_close(dev);
        if (st != MQ_OK)
            return st;
    }
    return MQ_OK;
}

mq_status mq_calibration_fill_recipe(mq_calibration *c, mq_err *err)
{
    mq_recipe *r = &c->job->recipe;
    const mq_kernels *k = mq_calibration_kernels(c->job);
    char library[sizeof r->calib.library];
    MQ_TRY(find_arch(r->isa, sizeof r->isa, library, (int64_t)sizeof library, c->job, err));
    snprintf(r->backend, sizeof r->backend, "%s", k->name);
    r->calib = (mq_recipe_calib){.present = true, .tokens = c->n_rows, .window = c->corpus.window};
    memcpy(r->calib.text, c->corpus.sha256, sizeof r->calib.text);
    recipe_text(r->calib.options, &c->job->opt.calib.recipe);
    memcpy(r->calib.library, library, sizeof library);
    return MQ_OK;
}
