/* The recipe of a calibrated run as text, and as the manifest's member. */
#include <stdio.h>
#include <string.h>

#include "src/isa.h"
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

mq_status mq_calibration_fill_recipe(mq_calibration *c, mq_err *err)
{
    static const char *const names[] = {[MQ_ISA_SCALAR] = "scalar", [MQ_ISA_AVX2] = "avx2", [MQ_ISA_AVX512] = "avx512"};
    mq_recipe *r = &c->job->recipe;
    mq_isa isa;
    MQ_TRY(mq_isa_choose(&isa, NULL, err));
    snprintf(r->isa, sizeof r->isa, "%s", names[isa]);
    r->calib = (mq_recipe_calib){.present = true, .tokens = c->n_rows, .window = c->corpus.window};
    memcpy(r->calib.text, c->corpus.sha256, sizeof r->calib.text);
    recipe_text(r->calib.options, &c->job->opt.calib.recipe);
    mq_cpu_library(r->calib.library, sizeof r->calib.library);
    return MQ_OK;
}
