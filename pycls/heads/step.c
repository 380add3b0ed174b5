/* A head's training step but for its three matrix products, all classes at once: see loss_native.py.
 *
 * There are m = k centers prototypes, those of a class in adjacent rows; with several the class's measure is the largest of
 * theirs, which is done for cosines whose link is the identity.
 *
 * The four functions are called in the order in which they stand, with x W^T made between the first two, and by_x = grad W and
 * by_w = grad^T x between the last two. One structure goes through all four. NULL stands for what is not there or not wanted.
 */

#include "rows.h"
#include "tail.h"

enum kind { PRODUCT = 0, COSINE = 1, DISTANCE = 2 };

typedef struct {
    int64_t n, d, k, centers;
    const float *x, *w, *bias;          /* [n, d], [m, d], [k] */
    const int64_t *target;              /* [n], below 0 for none */
    const float *offset, *weights;      /* [k], added to the logits before they are compared; of the classes in the mean */
    const float *determinant;           /* [k], log|Lambda| */
    const double *margins;              /* [k] */
    float *stretched;                   /* [n, d], x as it is multiplied where it has a length */
    float *vectors;                     /* VECTORS [n] and then two [m] */
    float *products, *z;                /* [n, m], [n, k]; the same where a class has one centre */
    uint8_t *picks;                     /* [n, k], which centre it was */
    const float *by_z, *more_by_measure; /* [n, k], [n]: what else there is of these gradients */
    float *grad, *by_x, *by_w, *by_bias, *by_determinant; /* [n, m], [n, d], [m, d], [k], [k] */
    double a, b, c, grown, length, constant, rate, scale, kappa; /* see tail.h */
    double mean_logit_weight;           /* times the mean of the targets' measures is part of the loss, where they are logits */
    double form_constant, form_rate;    /* of DISTANCE: u = form_constant - form_rate |x - w|^2 */
    double upstream;                    /* gradient by the loss */
    double loss, by_length, by_scale;   /* results of the forward pass, for an upstream of 1 */
    double mean_logit;
    double all_by_length, all_by_scale; /* results of the backward pass */
    int32_t kind, link, domain, margin, threads, lengthened, absent; /* absent: whether a label is below 0 */
} step;

/* The vectors [n]. ROW: what x is multiplied with, or what is added to a row's measures. */
enum { ROW, MEASURE, TOP, SUM, OTHERS, FEATURE_SQUARE, BY_OTHERS, BY_MEASURE, BY_FEATURE, BY_SQUARE, BY_DETERMINANT, ALONG,
       BY_SCALE, VECTORS };

static const float LEAST = 1e-12f; /* norm under which a vector counts as zero */

static float *vector(const step *s, int which) { return s->vectors + which * s->n; }

static int64_t prototypes(const step *s) { return s->k * s->centers; }

/* [m]: 1 / |w| of cosines, or what is added to a column's measures. */
static float *column(const step *s) { return s->vectors + VECTORS * s->n; }

/* [m]: sums over the samples of the gradient by the measures, for cosines times the measure. */
static float *along_column(const step *s) { return column(s) + prototypes(s); }

static int threads_for(const step *s, int64_t elements)
{
    const int64_t worth = elements >> 13;
    return worth < 1 ? 1 : worth < s->threads ? (int)worth : s->threads;
}

static chunk chunk_of(const step *s)
{
    return (chunk){.n = s->n, .c = s->k, .stride = s->k, .target = s->target, .offset = s->offset,
                   .inverse = s->kind == COSINE && s->centers == 1 ? column(s) : NULL, .scale = (float)s->scale, .kappa = (float)s->kappa,
                   .link = s->link, .threads = threads_for(s, s->n * s->k)};
}

static void prepare_sample(const step *s, int64_t i)
{
    const float *v = s->x + i * s->d;
    if (s->lengthened) {
        const float by = (float)s->length * inverse_of(v, s->d, LEAST);
        float *o = s->stretched + i * s->d;
#pragma omp simd
        for (int64_t j = 0; j < s->d; j++) o[j] = by * v[j];
        vector(s, ROW)[i] = by;
    } else if (s->kind == DISTANCE)
        vector(s, ROW)[i] = (float)s->form_constant - (float)s->form_rate * square_of(v, s->d);
    if (s->domain == OVER_FEATURE || s->domain == OVER_BOTH) vector(s, FEATURE_SQUARE)[i] = square_of(v, s->d);
}

/* Returns a label that is neither a class nor -1, or else -1. */
int64_t pycls_step_prepare(step *s)
{
    for (int64_t i = 0; i < s->n; i++) {
        if (s->target[i] >= s->k || s->target[i] < -1) return s->target[i];
        s->absent |= s->target[i] < 0;
    }
#pragma omp parallel num_threads(threads_for(s, (s->n + prototypes(s)) * s->d))
    {
#pragma omp for schedule(static) nowait
        for (int64_t i = 0; i < s->n; i++) prepare_sample(s, i);
        if (s->kind != PRODUCT) {
#pragma omp for schedule(static)
            for (int64_t j = 0; j < prototypes(s); j++) {
                const float *v = s->w + j * s->d;
                column(s)[j] = s->kind == COSINE ? inverse_of(v, s->d, LEAST) : -(float)s->form_rate * square_of(v, s->d);
            }
        }
    }
    return -1;
}

/* The sample's share of the mean is its weight over that of all. */
static double weight_of(const step *s, int64_t i)
{
    if (s->target[i] < 0) return 0;
    return s->weights ? s->weights[s->target[i]] : 1;
}

static void losses(step *s)
{
    const tail facts = {s->margins, s->a, s->b, s->c, s->grown, s->length, s->constant, s->rate, s->scale, s->kappa,
                        s->link, s->domain, s->margin};
    double all = 0, present = 0;
    for (int64_t i = 0; i < s->n; i++) all += weight_of(s, i), present += s->target[i] >= 0;
    const double even = 1 / fmax(present, 1);
    s->loss = s->by_length = s->by_scale = s->mean_logit = 0;
    for (int64_t i = 0; i < s->n; i++) {
        const int64_t y = s->target[i];
        const sample at = {.target = y, .measure = vector(s, MEASURE)[i], .others = vector(s, OTHERS)[i],
                           .offset = y >= 0 && s->offset ? s->offset[y] : 0, .feature_square = vector(s, FEATURE_SQUARE)[i],
                           .prototype_square = y >= 0 && s->domain == OVER_BOTH ? square_of(s->w + y * s->d, s->d) : 0,
                           .determinant = y >= 0 && s->determinant ? s->determinant[y] : 0,
                           .share = weight_of(s, i) / (all > DBL_MIN ? all : DBL_MIN)};
        const slopes found = tail_of(&facts, &at);
        vector(s, BY_OTHERS)[i] = (float)found.by_others;
        vector(s, BY_MEASURE)[i] = (float)(found.by_measure + (y >= 0 ? even * s->mean_logit_weight : 0));
        vector(s, BY_FEATURE)[i] = (float)found.by_feature;
        vector(s, BY_SQUARE)[i] = (float)found.by_square;
        vector(s, BY_DETERMINANT)[i] = (float)found.by_determinant;
        s->loss += found.loss;
        if (y >= 0) s->mean_logit += even * at.measure;
        s->by_length += found.by_length;
        s->by_scale += found.by_scale;
    }
}

/* The cosines of the nearest centres. */
static void pick(const step *s, int64_t i)
{
    const int64_t centers = s->centers;
    const float *p = s->products + i * prototypes(s), *inverse = column(s);
    float *z = s->z + i * s->k;
    uint8_t *picks = s->picks + i * s->k;
    for (int64_t j = 0; j < s->k; j++, p += centers, inverse += centers) {
        float most = p[0] * inverse[0];
        int at = 0;
        for (int c = 1; c < centers; c++) {
            const float u = p[c] * inverse[c];
            if (u > most || u != u) most = u, at = c;
        }
        z[j] = most;
        picks[j] = (uint8_t)at;
    }
}

/* From the gradient by the picked cosines [k] to that by the products [m]; as along_cosines. */
static float spread(const step *s, int64_t i, const float *g, float *columns)
{
    const float *z = s->z + i * s->k, *inverse = column(s);
    const uint8_t *picks = s->picks + i * s->k;
    float *out = s->grad + i * prototypes(s), along = 0;
    memset(out, 0, (size_t)prototypes(s) * sizeof(float));
    for (int64_t j = 0; j < s->k; j++) {
        const int64_t at = j * s->centers + picks[j];
        const float v = g[j] * z[j];
        along += v;
        columns[at] += v;
        out[at] = g[j] * inverse[at];
    }
    return along;
}

/* Logits in place of products; losses and their slopes. */
void pycls_step_forward(step *s)
{
    const chunk of = chunk_of(s);
    const float *row = s->kind == DISTANCE ? vector(s, ROW) : NULL;
    const float *added = s->kind == DISTANCE ? column(s) : s->bias, alpha = s->kind == DISTANCE ? 2 * (float)s->form_rate : 1;
#pragma omp parallel for schedule(static) num_threads(of.threads)
    for (int64_t i = 0; i < s->n; i++) {
        float *z = s->z + i * s->k;
        const int64_t t = place_of(&of, i);
        vector(s, MEASURE)[i] = 0;
        if (s->centers > 1) pick(s, i);
        logits_of_products(&of, z, alpha, row ? row[i] : 0, added, t, vector(s, MEASURE) + i);
        const others found = others_of(&of, z, t, 0);
        /* of a single class there is nothing to sum: a finite stand-in for log 0 keeps the gradients finite */
        const int alone = s->k == 1 && t == 0;
        vector(s, TOP)[i] = alone ? -FLT_MAX / 4 : found.top;
        vector(s, SUM)[i] = alone ? 1 : found.sum;
        vector(s, OTHERS)[i] = alone ? -FLT_MAX / 4 : found.top + logf(found.sum);
    }
    losses(s);
}

/* A row of the gradient by the products (over 2 rate, for distances); adds to the columns' sums. scratch [k], for centres. */
static void gradient_row(const step *s, const chunk *of, int64_t i, float *columns, float *scratch)
{
    const float *z = s->z + i * s->k, upstream = (float)s->upstream;
    float *g = s->centers > 1 ? scratch : s->grad + i * s->k;
    const int64_t t = place_of(of, i);
    softmax_of(of, z, g, t, vector(s, TOP)[i], upstream * vector(s, BY_OTHERS)[i] / vector(s, SUM)[i], 0);
    if (s->by_z) {
        const float *more = s->by_z + i * s->k;
#pragma omp simd
        for (int64_t j = 0; j < s->k; j++) g[j] += more[j];
    }
    vector(s, BY_SCALE)[i] = through_link(of, z, g);
    if (t >= 0) g[t] += upstream * vector(s, BY_MEASURE)[i] + (s->more_by_measure ? s->more_by_measure[i] : 0);
    vector(s, ALONG)[i] = s->centers > 1      ? spread(s, i, g, columns)
                          : s->kind == COSINE ? along_cosines(of, z, g, columns)
                                              : sums(s->k, g, columns);
}

/* Returns whether there was memory for it. */
int32_t pycls_step_gradient(step *s)
{
    const chunk of = chunk_of(s);
    const int64_t m = prototypes(s), of_thread = s->centers > 1 ? m + s->k : m;
    float *partial = malloc((size_t)(of.threads * of_thread) * sizeof(float)), *to = s->by_bias ? s->by_bias : along_column(s);
    if (!partial) return 0;
    int used = 1;
#pragma omp parallel num_threads(of.threads)
    {
        float *columns = partial + omp_get_thread_num() * of_thread;
        memset(columns, 0, (size_t)m * sizeof(float));
#pragma omp single
        used = omp_get_num_threads();
#pragma omp for schedule(static)
        for (int64_t i = 0; i < s->n; i++) gradient_row(s, &of, i, columns, columns + m);
        add_columns(partial, m, of_thread, used, to);
    }
    free(partial);
    double along = 0, scaled = 0;
    for (int64_t i = 0; i < s->n; i++) along += vector(s, ALONG)[i], scaled += vector(s, BY_SCALE)[i];
    s->all_by_length = s->upstream * s->by_length + (s->lengthened ? along / s->length : 0);
    s->all_by_scale = s->upstream * s->by_scale + scaled / s->scale;
    if (s->by_determinant) {
        memset(s->by_determinant, 0, (size_t)s->k * sizeof(float));
        for (int64_t i = 0; i < s->n; i++)
            if (s->target[i] >= 0) s->by_determinant[s->target[i]] += (float)s->upstream * vector(s, BY_DETERMINANT)[i];
    }
    return 1;
}

/* out = a out + b v */
static inline void combine(float *out, const float *v, int64_t d, float a, float b)
{
#pragma omp simd
    for (int64_t j = 0; j < d; j++) out[j] = a * out[j] + b * v[j];
}

static void finish_sample(const step *s, int64_t i)
{
    float *out = s->by_x + i * s->d;
    const float rate = 2 * (float)s->form_rate, along = vector(s, ALONG)[i], factor = vector(s, ROW)[i];
    if (s->lengthened) /* d(s x / |x|) / dx = s / |x| - (s x / |x|) (s x / |x|)^T / (s |x|) */
        combine(out, s->stretched + i * s->d, s->d, factor, -along * factor / (float)(s->length * s->length));
    else if (s->kind == DISTANCE)
        combine(out, s->x + i * s->d, s->d, rate, -rate * along);
    if (s->margin && (s->domain == OVER_FEATURE || s->domain == OVER_BOTH))
        combine(out, s->x + i * s->d, s->d, 1, (float)s->upstream * vector(s, BY_FEATURE)[i]);
}

static void finish_prototype(const step *s, int64_t j)
{
    const float rate = 2 * (float)s->form_rate, along = along_column(s)[j], inverse = column(s)[j];
    if (s->kind == COSINE) /* d(p / |w|) / dw = x / |w| - u w / |w|^2 */
        combine(s->by_w + j * s->d, s->w + j * s->d, s->d, 1, -along * inverse * inverse);
    else if (s->kind == DISTANCE)
        combine(s->by_w + j * s->d, s->w + j * s->d, s->d, rate, -rate * along);
}

/* by_x and by_w from what the products with grad gave. */
void pycls_step_finish(const step *s)
{
#pragma omp parallel num_threads(threads_for(s, (s->n + prototypes(s)) * s->d))
    {
        if (s->by_x) {
#pragma omp for schedule(static) nowait
            for (int64_t i = 0; i < s->n; i++) finish_sample(s, i);
        }
        if (s->by_w && s->kind != PRODUCT) {
#pragma omp for schedule(static)
            for (int64_t j = 0; j < prototypes(s); j++) finish_prototype(s, j);
        }
    }
    if (!s->by_w || !s->margin || s->domain != OVER_BOTH) return;
    for (int64_t i = 0; i < s->n; i++) { /* a class may be several samples' target */
        const int64_t y = s->target[i];
        if (y >= 0) combine(s->by_w + y * s->d, s->w + y * s->d, s->d, 1, 2 * (float)s->upstream * vector(s, BY_SQUARE)[i]);
    }
}
