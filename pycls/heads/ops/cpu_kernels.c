/* The elementwise work of a head on a processor, row by row while a row is in the cache: see cpu_backend.py.
 *
 * A chunk of c classes with `centers` prototypes each (m = c centers), and n samples. All arrays are float32, [n, c] with rows
 * `stride` apart, or [n], or [c]. NULL stands for what is not there.
 *
 *   score     u_ij = alpha p_ij inverse_j + row_i + column_j      p the products x . w; the largest of a class's centres
 *   logit     z_ij = transform(u_ij)
 *   softmax   over z_ij + offset_j without the target, as the largest of them and the sum of exp(. - largest)
 *
 * Threads are OpenMP's, of the runtime that torch has loaded. Each takes adjacent rows, and the order of every sum depends on
 * their number alone: two runs give the same bits.
 */

#include <omp.h>
#include <stdlib.h>

#include "exp.h"

enum { IDENTITY = 0, EXPONENTIAL = 1, STUDENT_T = 2 }; /* LogitTransform.kernel_id */

typedef struct {
    int64_t n, c, stride, index_stride, low;
    float *z;              /* [n, c] */
    const int64_t *target; /* [n]; the place of a target in this chunk is target - low, if that is in [0, c) */
    const float *offset;   /* [c] */
    const float *inverse;  /* [m], 1 / |w|, for cosines */
    const float *total;    /* [c], weights of the sum of the logits */
    uint8_t *index;        /* [n, c], rows `index_stride` apart: which centre gives a class's score; of several centres */
    float scale, constant; /* of the transform */
    int32_t transform, centers, threads;
} chunk;

typedef struct {
    const float *products; /* [n, m]; z itself where a class has one centre */
    float alpha;
    const float *row, *column; /* [n], [c] */
    float *score;              /* [n]: u of the target, where it is in this chunk (else untouched) */
    float *max, *sum_exp, *logsumexp;
    float *max_other; /* [n]: the largest logit, without offset, that is not the target's */
} forward_results;

typedef struct {
    const float *max, *sum_exp;
    /* [n]: exp(z + offset - max) by_others / sum_exp is the gradient by a logit that is not the target's; by_total is that by
     * the logits' weighted sum; by_score is added at the target's score */
    const float *by_others, *by_total, *by_score;
    float *grad;         /* [n, m], rows adjacent: the gradient by the products over alpha */
    float *along_row;    /* [n], added to: sums of the gradient by the scores, for cosines times the score */
    float *along_column; /* [m]: the same */
    float *by_scale;     /* [n]: the gradient by the transform's scale, times it */
} backward_arguments;

static inline int64_t place_of(const chunk *of, int64_t i)
{
    if (!of->target) return -1;
    const int64_t t = of->target[i] - of->low;
    return t >= 0 && t < of->c ? t : -1;
}

/* The scores of a row, in place of its products. */
static void scores_of(const chunk *of, float *z, float alpha, float row, const float *column)
{
    const int64_t c = of->c;
    if (of->inverse) {
        const float *inverse = of->inverse;
#pragma omp simd
        for (int64_t j = 0; j < c; j++) z[j] *= inverse[j];
    } else if (column) {
#pragma omp simd
        for (int64_t j = 0; j < c; j++) z[j] = alpha * z[j] + column[j] + row;
    }
}

/* The cosines of the nearest centres. */
static void nearest_centers(const chunk *of, const float *products, float *z, uint8_t *index)
{
    const float *p = products, *inverse = of->inverse;
    for (int64_t j = 0; j < of->c; j++, p += of->centers, inverse += of->centers) {
        float most = p[0] * inverse[0];
        int at = 0;
        for (int k = 1; k < of->centers; k++) {
            const float u = p[k] * inverse[k];
            if (u > most || u != u) most = u, at = k;
        }
        z[j] = most;
        index[j] = (uint8_t)at;
    }
}

/* The logits of a row, in place of its scores. */
static void logits_of(const chunk *of, float *z)
{
    const int64_t c = of->c;
    if (of->transform == EXPONENTIAL) {
#pragma omp simd
        for (int64_t j = 0; j < c; j++) z[j] = exp_of(z[j]);
    } else if (of->transform == STUDENT_T) {
        const float kappa = of->constant, scale = of->scale, slope = 1 + 2 * kappa;
#pragma omp simd
        for (int64_t j = 0; j < c; j++) {
            const float d = 1 - z[j];
            z[j] = scale * (1 - slope * d / (1 + kappa * d));
        }
    }
}

/* The softmax of a row without its target. */
static void softmax_of(const chunk *of, float *z, int64_t i, int64_t t, const forward_results *to)
{
    const int64_t c = of->c;
    const float *offset = of->offset, target = t >= 0 ? z[t] : 0;
    float most = -INFINITY, sum = 0;
    if (t >= 0) z[t] = -INFINITY;
    if (to->max_other || !offset) {
#pragma omp simd reduction(max : most)
        for (int64_t j = 0; j < c; j++) most = z[j] > most ? z[j] : most;
        if (to->max_other) to->max_other[i] = most;
    }
    if (offset) {
        most = -INFINITY;
#pragma omp simd reduction(max : most)
        for (int64_t j = 0; j < c; j++) most = z[j] + offset[j] > most ? z[j] + offset[j] : most;
    }
    const float shift = most > -INFINITY ? most : 0; /* the target may be the only one */
    if (offset) {
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < c; j++) sum += exp_of(z[j] + offset[j] - shift);
    } else {
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < c; j++) sum += exp_of(z[j] - shift);
    }
    if (t >= 0) z[t] = target;
    to->max[i] = most;
    to->sum_exp[i] = sum;
    to->logsumexp[i] = most + logf(sum);
}

/* Logits in place of products, and what a softmax needs of them. */
void pycls_forward(const chunk *of, const forward_results *to)
{
#pragma omp parallel for schedule(static) num_threads(of->threads)
    for (int64_t i = 0; i < of->n; i++) {
        float *z = of->z + i * of->stride;
        const int64_t t = place_of(of, i);
        if (of->centers > 1)
            nearest_centers(of, to->products + i * of->c * of->centers, z, of->index + i * of->index_stride);
        else
            scores_of(of, z, to->alpha, to->row ? to->row[i] : 0, to->column);
        if (t >= 0 && to->score) to->score[i] = z[t];
        logits_of(of, z);
        if (to->max) softmax_of(of, z, i, t, to);
    }
}

/* A row of the gradient by the logits. */
static void logit_grads(const chunk *of, const float *z, float *g, int64_t t, float max, float factor, float by_total)
{
    const int64_t c = of->c;
    if (of->offset) {
        const float *offset = of->offset;
#pragma omp simd
        for (int64_t j = 0; j < c; j++) g[j] = factor * exp_of(z[j] + offset[j] - max);
    } else {
#pragma omp simd
        for (int64_t j = 0; j < c; j++) g[j] = factor * exp_of(z[j] - max);
    }
    if (t >= 0) g[t] = 0;
    if (of->total) {
        const float *total = of->total;
#pragma omp simd
        for (int64_t j = 0; j < c; j++) g[j] += by_total * total[j];
    }
}

/* From the gradient by the logits of a row to that by its scores; returns the sum of gradient times logit. */
static float transform_backward(const chunk *of, const float *z, float *g)
{
    const int64_t c = of->c;
    float by_scale = 0;
    if (of->transform == EXPONENTIAL) {
#pragma omp simd
        for (int64_t j = 0; j < c; j++) g[j] *= z[j];
    } else if (of->transform == STUDENT_T) {
        const float k = of->constant, per = 1 / of->scale, rest = of->scale / (1 + 2 * k);
#pragma omp simd reduction(+ : by_scale)
        for (int64_t j = 0; j < c; j++) {
            const float phi = z[j] * per, above = 1 + k * (1 + phi);
            by_scale += g[j] * z[j];
            g[j] *= rest * above * above;
        }
    }
    return by_scale;
}

/* Of cosines: the row's sum of gradient times score, the same added to the columns', and the gradient by the products. */
static float cosine_backward(const chunk *of, const float *z, float *g, float *columns)
{
    const int64_t c = of->c;
    const float *inverse = of->inverse;
    float along = 0;
    if (of->transform == STUDENT_T) {
        const float k = of->constant, per = 1 / of->scale;
#pragma omp simd reduction(+ : along)
        for (int64_t j = 0; j < c; j++) {
            const float phi = z[j] * per, v = g[j] * ((k + (1 + k) * phi) / (1 + k + k * phi));
            along += v;
            columns[j] += v;
            g[j] *= inverse[j];
        }
    } else {
#pragma omp simd reduction(+ : along)
        for (int64_t j = 0; j < c; j++) {
            const float v = g[j] * z[j];
            along += v;
            columns[j] += v;
            g[j] *= inverse[j];
        }
    }
    return along;
}

/* The same from the gradient by the nearest centres' cosines g [c] to that by all products out [m]. */
static float centers_backward(const chunk *of, int64_t i, const float *z, const float *g, float *out, float *columns)
{
    const uint8_t *index = of->index + i * of->index_stride;
    float along = 0;
    memset(out, 0, (size_t)(of->c * of->centers) * sizeof(float));
    for (int64_t j = 0; j < of->c; j++) {
        const int64_t at = j * of->centers + index[j];
        const float v = g[j] * z[j];
        along += v;
        columns[at] += v;
        out[at] = g[j] * of->inverse[at];
    }
    return along;
}

static float column_sums(int64_t c, const float *g, float *columns)
{
    float all = 0;
#pragma omp simd reduction(+ : all)
    for (int64_t j = 0; j < c; j++) {
        all += g[j];
        columns[j] += g[j];
    }
    return all;
}

/* A row of the gradient by the products; scratch [c] is for several centres. */
static void backward_row(const chunk *of, const backward_arguments *by, int64_t i, float *columns, float *scratch)
{
    const float *z = of->z + i * of->stride;
    float *out = by->grad + i * of->c * of->centers, *g = of->centers > 1 ? scratch : out;
    const int64_t t = place_of(of, i);
    logit_grads(of, z, g, t, by->max[i], by->by_others[i] / by->sum_exp[i], by->by_total ? by->by_total[i] : 0);
    const float scaled = transform_backward(of, z, g);
    if (by->by_scale) by->by_scale[i] = scaled;
    if (t >= 0 && by->by_score) g[t] += by->by_score[i];
    const float along = of->centers > 1 ? centers_backward(of, i, z, g, out, columns)
                        : of->inverse   ? cosine_backward(of, z, g, columns)
                                        : column_sums(of->c, g, columns);
    if (by->along_row) by->along_row[i] += along;
}

/* Returns whether there was memory for it. */
int32_t pycls_backward(const chunk *of, const backward_arguments *by)
{
    const int64_t m = of->c * of->centers, of_thread = of->centers > 1 ? m + of->c : m;
    float *partial = malloc((size_t)(of->threads * of_thread) * sizeof(float));
    if (!partial) return 0;
    int used = 1;
#pragma omp parallel num_threads(of->threads)
    {
        float *columns = partial + omp_get_thread_num() * of_thread;
        memset(columns, 0, (size_t)m * sizeof(float));
#pragma omp single
        used = omp_get_num_threads();
#pragma omp for schedule(static)
        for (int64_t i = 0; i < of->n; i++) backward_row(of, by, i, columns, columns + m);
        if (by->along_column) {
#pragma omp for schedule(static)
            for (int64_t j = 0; j < m; j++) {
                float total = partial[j];
                for (int64_t k = 1; k < used; k++) total += partial[k * of_thread + j];
                by->along_column[j] = total;
            }
        }
    }
    free(partial);
    return 1;
}

static inline float square_of(const float *v, int64_t d)
{
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < d; k++) sum += v[k] * v[k];
    return sum;
}

/* 1 / |v|, or 0 for a vector that counts as zero. */
static inline float inverse_of(const float *v, int64_t d, float least)
{
    const float norm = sqrtf(square_of(v, d));
    return norm > least ? 1 / norm : norm == norm ? 0 : norm;
}

/* out [n, d] = target_norm x / |x| and factor [n] = target_norm / |x|. */
void pycls_normalize(const float *x, int64_t n, int64_t d, float target_norm, float least, float *out, float *factor,
                     int32_t threads)
{
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < n; i++) {
        const float *v = x + i * d, by = target_norm * inverse_of(v, d, least);
        float *o = out + i * d;
#pragma omp simd
        for (int64_t k = 0; k < d; k++) o[k] = by * v[k];
        factor[i] = by;
    }
}

/* out [n] = 1 / |v|. */
void pycls_inverse_norms(const float *rows, int64_t n, int64_t d, float least, float *out, int32_t threads)
{
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < n; i++) out[i] = inverse_of(rows + i * d, d, least);
}

/* out [n] = constant + rate |v|^2 + added [n]. */
void pycls_squares(const float *rows, int64_t n, int64_t d, float constant, float rate, const float *added, float *out,
                   int32_t threads)
{
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < n; i++) out[i] = constant + rate * square_of(rows + i * d, d) + (added ? added[i] : 0);
}

/* out [n, d] = a_i out + b_i rows, where a is alpha (times p) and b beta times q (times r^power). */
void pycls_combine(float *out, const float *rows, int64_t n, int64_t d, float alpha, const float *p, float beta, const float *q,
                   const float *r, int32_t power, int32_t threads)
{
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < n; i++) {
        const float a = p ? alpha * p[i] : alpha, once = r ? r[i] : 1, b = beta * q[i] * (power == 2 ? once * once : once);
        const float *v = rows + i * d;
        float *o = out + i * d;
#pragma omp simd
        for (int64_t k = 0; k < d; k++) o[k] = a * o[k] + b * v[k];
    }
}

/* out [n] = |w|^2 of the targets' rows of w [k, d]; of no row (a target below 0) that of the first. */
void pycls_target_squares(const float *w, int64_t d, const int64_t *target, int64_t n, float *out, int32_t threads)
{
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < n; i++) out[i] = square_of(w + (target[i] > 0 ? target[i] : 0) * d, d);
}

/* Adds the gradient by those squares to grad [k, d]; a class may be several samples' target. */
void pycls_target_squares_grad(float *grad, const float *w, int64_t d, const int64_t *target, int64_t n, const float *by_square,
                               int32_t threads)
{
#pragma omp parallel num_threads(threads) /* each has some columns of all rows */
    {
        const int64_t all = omp_get_num_threads(), me = omp_get_thread_num(), from = d * me / all, to = d * (me + 1) / all;
        for (int64_t i = 0; i < n; i++) {
            const int64_t at = (target[i] > 0 ? target[i] : 0) * d;
            const float b = 2 * by_square[i];
#pragma omp simd
            for (int64_t k = from; k < to; k++) grad[at + k] += b * w[at + k];
        }
    }
}
