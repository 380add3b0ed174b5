/* The elementwise work of a head on a processor, row by row while a row is in the cache: see gram_native.py.
 *
 * A chunk of c classes and n samples. p [n, c] are the products x . w; all arrays are float32, [n, c] with rows `stride`
 * apart, or [n], or [c]. NULL stands for what is not there.
 *
 *   measure   u_ij = alpha p_ij inverse_j + row_i + column_j
 *   logit     z_ij = link(u_ij)
 *   softmax   over z_ij + offset_j without the target, as the largest of them and the sum of exp(. - largest)
 *
 * Threads are OpenMP's, of the runtime that torch has loaded. Each takes adjacent rows, and the order of every sum depends
 * on their number alone: two runs give the same bits.
 */

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum link { IDENTITY = 0, EXPONENTIAL = 1, STUDENT_T = 2 };

typedef struct {
    int64_t n, c, stride, low;
    const int64_t *target; /* [n]; the place of a target in this chunk is target - low, if that is in [0, c) */
    const float *offset;   /* [c] */
    const float *inverse;  /* [c], 1 / |w|, for cosines */
    const float *total;    /* [c], weights of the sum of the logits */
    float scale, kappa;    /* of the link */
    int32_t link, threads;
} chunk;

/* e^x to about one unit in the last place (Cody and Waite's reduction, degree 6); 0 below the normal numbers. */
static inline float exp_of(float x)
{
    const float shift = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer, which then is in the low bits */
    float k = x * 1.44269504088896341f + shift;
    int32_t bits;
    memcpy(&bits, &k, 4);
    k -= shift;
    float r = x - k * 0.693359375f + k * 2.12194440e-4f;
    float e = 1.9875691500e-4f;
    e = e * r + 1.3981999507e-3f;
    e = e * r + 8.3334519073e-3f;
    e = e * r + 4.1665795894e-2f;
    e = e * r + 1.6666665459e-1f;
    e = e * r + 5.0000001201e-1f;
    e = e * r * r + r + 1.0f;
    int32_t result;
    memcpy(&result, &e, 4);
    result += bits << 23;
    float value;
    memcpy(&value, &result, 4);
    value = x < -87.3f ? 0.0f : value;
    value = x > 88.7f ? INFINITY : value;
    return x == x ? value : x;
}

static inline int64_t place_of(const chunk *of, int64_t i)
{
    if (!of->target) return -1;
    int64_t t = of->target[i] - of->low;
    return t >= 0 && t < of->c ? t : -1;
}

/* The measures of a row, in place of its products. */
static void measures_of(const chunk *of, float *z, float alpha, float row, const float *column)
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

/* The logits of a row, in place of its measures. */
static void logits_of(const chunk *of, float *z)
{
    const int64_t c = of->c;
    if (of->link == EXPONENTIAL) {
#pragma omp simd
        for (int64_t j = 0; j < c; j++) z[j] = exp_of(z[j]);
    } else if (of->link == STUDENT_T) {
        const float kappa = of->kappa, scale = of->scale, slope = 1 + 2 * kappa;
#pragma omp simd
        for (int64_t j = 0; j < c; j++) {
            float d = 1 - z[j];
            z[j] = scale * (1 - slope * d / (1 + kappa * d));
        }
    }
}

/* z: products in, logits out. measure [n]: u of the target, where it is in this chunk (else untouched). top, sum and
 * log_sum [n], if they are wanted. rival [n]: the largest logit, without offset, that is not the target's. */
void pycls_rows_forward(const chunk *of, float *products, float alpha, const float *row, const float *column, float *measure,
                        float *top, float *sum, float *log_sum, float *rival)
{
    const int64_t c = of->c;
#pragma omp parallel for schedule(static) num_threads(of->threads)
    for (int64_t i = 0; i < of->n; i++) {
        float *z = products + i * of->stride;
        const int64_t t = place_of(of, i);
        measures_of(of, z, alpha, row ? row[i] : 0, column);
        if (t >= 0 && measure) measure[i] = z[t];
        logits_of(of, z);
        if (!top) continue;
        float target = 0;
        if (t >= 0) {
            target = z[t];
            z[t] = -INFINITY;
        }
        float most = -INFINITY, total = 0;
        if (rival || !of->offset) {
#pragma omp simd reduction(max : most)
            for (int64_t j = 0; j < c; j++) most = z[j] > most ? z[j] : most;
            if (rival) rival[i] = most;
        }
        if (of->offset) {
            const float *offset = of->offset;
            most = -INFINITY;
#pragma omp simd reduction(max : most)
            for (int64_t j = 0; j < c; j++) most = z[j] + offset[j] > most ? z[j] + offset[j] : most;
        }
        const float shift = most > -INFINITY ? most : 0; /* the target may be the only one */
        if (of->offset) {
            const float *offset = of->offset;
#pragma omp simd reduction(+ : total)
            for (int64_t j = 0; j < c; j++) total += exp_of(z[j] + offset[j] - shift);
        } else {
#pragma omp simd reduction(+ : total)
            for (int64_t j = 0; j < c; j++) total += exp_of(z[j] - shift);
        }
        top[i] = most;
        sum[i] = total;
        log_sum[i] = most + logf(total);
        if (t >= 0) z[t] = target;
    }
}

/* A row of the gradient by the logits; by_total is that by their sum weighted by `total`. */
static void softmax_of(const chunk *of, const float *z, float *g, int64_t t, float top, float factor, float by_total)
{
    const int64_t c = of->c;
    if (of->offset) {
        const float *offset = of->offset;
#pragma omp simd
        for (int64_t j = 0; j < c; j++) g[j] = factor * exp_of(z[j] + offset[j] - top);
    } else {
#pragma omp simd
        for (int64_t j = 0; j < c; j++) g[j] = factor * exp_of(z[j] - top);
    }
    if (t >= 0) g[t] = 0;
    if (of->total) {
        const float *total = of->total;
#pragma omp simd
        for (int64_t j = 0; j < c; j++) g[j] += by_total * total[j];
    }
}

/* From the gradient by the logits of a row to that by its measures; returns the sum of gradient times logit. */
static float through_link(const chunk *of, const float *z, float *g)
{
    const int64_t c = of->c;
    float by_scale = 0;
    if (of->link == EXPONENTIAL) {
#pragma omp simd
        for (int64_t j = 0; j < c; j++) g[j] *= z[j];
    } else if (of->link == STUDENT_T) {
        const float k = of->kappa, per = 1 / of->scale, rest = of->scale / (1 + 2 * k);
#pragma omp simd reduction(+ : by_scale)
        for (int64_t j = 0; j < c; j++) {
            float phi = z[j] * per, above = 1 + k * (1 + phi);
            by_scale += g[j] * z[j];
            g[j] *= rest * above * above;
        }
    }
    return by_scale;
}

/* Of cosines: the row's sum of gradient times measure, the same added to the columns', and the gradient by the products. */
static float along_cosines(const chunk *of, const float *z, float *g, float *columns)
{
    const int64_t c = of->c;
    const float *inverse = of->inverse;
    float along = 0;
    if (of->link == STUDENT_T) {
        const float k = of->kappa, per = 1 / of->scale;
#pragma omp simd reduction(+ : along)
        for (int64_t j = 0; j < c; j++) {
            float phi = z[j] * per, v = g[j] * ((k + (1 + k) * phi) / (1 + k + k * phi));
            along += v;
            columns[j] += v;
            g[j] *= inverse[j];
        }
    } else {
#pragma omp simd reduction(+ : along)
        for (int64_t j = 0; j < c; j++) {
            float v = g[j] * z[j];
            along += v;
            columns[j] += v;
            g[j] *= inverse[j];
        }
    }
    return along;
}

static float sums(int64_t c, const float *g, float *columns)
{
    float all = 0;
#pragma omp simd reduction(+ : all)
    for (int64_t j = 0; j < c; j++) {
        all += g[j];
        columns[j] += g[j];
    }
    return all;
}

/* grad [n, c] (its rows adjacent): the gradient by the products over alpha. top, sum and by_others [n]: exp(z + offset - top)
 * by_others / sum is the gradient by a logit that is not the target's; by_total [n] is that by their weighted sum. by_measure
 * [n] is added at the target's measure. along_row [n], to which is added, and along_column [c]: sums of the gradient by the
 * measures, for cosines times the measure. by_scale [n]: gradient by the link's scale, times it. Returns whether there was
 * memory for it. */
int32_t pycls_rows_backward(const chunk *of, const float *logits, const float *top, const float *sum, const float *by_others,
                            const float *by_total, const float *by_measure, float *grad, float *along_row,
                            float *along_column, float *by_scale)
{
    const int64_t c = of->c;
    float *partial = malloc((size_t)(of->threads * c) * sizeof(float));
    if (!partial) return 0;
    int used = 1;
#pragma omp parallel num_threads(of->threads)
    {
        const int me = omp_get_thread_num(), all = omp_get_num_threads();
        float *columns = partial + me * c;
        memset(columns, 0, (size_t)c * sizeof(float));
#pragma omp single
        used = all;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < of->n; i++) {
            const float *z = logits + i * of->stride;
            float *g = grad + i * c;
            const int64_t t = place_of(of, i);
            softmax_of(of, z, g, t, top[i], by_others[i] / sum[i], by_total ? by_total[i] : 0);
            const float scaled = through_link(of, z, g);
            if (by_scale) by_scale[i] = scaled;
            if (t >= 0 && by_measure) g[t] += by_measure[i];
            const float along = of->inverse ? along_cosines(of, z, g, columns) : sums(c, g, columns);
            if (along_row) along_row[i] += along;
        }
        if (along_column) {
#pragma omp for schedule(static)
            for (int64_t j = 0; j < c; j++) {
                float total = partial[j];
                for (int64_t k = 1; k < used; k++) total += partial[k * c + j];
                along_column[j] = total;
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

/* out [n, d] = length x / |x| and factor [n] = length / |x|. */
void pycls_rows_stretch(const float *x, int64_t n, int64_t d, float length, float least, float *out, float *factor,
                        int32_t threads)
{
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < n; i++) {
        const float *v = x + i * d, by = length * inverse_of(v, d, least);
        float *o = out + i * d;
#pragma omp simd
        for (int64_t k = 0; k < d; k++) o[k] = by * v[k];
        factor[i] = by;
    }
}

/* out [n] = 1 / |v|. */
void pycls_rows_inverse(const float *rows, int64_t n, int64_t d, float least, float *out, int32_t threads)
{
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < n; i++) out[i] = inverse_of(rows + i * d, d, least);
}

/* out [n] = constant + rate |v|^2 + added [n]. */
void pycls_rows_squares(const float *rows, int64_t n, int64_t d, float constant, float rate, const float *added, float *out,
                        int32_t threads)
{
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < n; i++) out[i] = constant + rate * square_of(rows + i * d, d) + (added ? added[i] : 0);
}

/* out [n, d] = a_i out + b_i rows, where a is alpha (times p) and b beta times q (times r^power). */
void pycls_rows_combine(float *out, const float *rows, int64_t n, int64_t d, float alpha, const float *p, float beta,
                        const float *q, const float *r, int32_t power, int32_t threads)
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
void pycls_rows_of_targets(const float *w, int64_t d, const int64_t *target, int64_t n, float *out, int32_t threads)
{
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < n; i++) out[i] = square_of(w + (target[i] > 0 ? target[i] : 0) * d, d);
}

/* Adds the gradient by those squares to grad [k, d]; a class may be several samples' target. */
void pycls_rows_to_targets(float *grad, const float *w, int64_t d, const int64_t *target, int64_t n, const float *by_square)
{
    for (int64_t i = 0; i < n; i++) {
        const int64_t at = (target[i] > 0 ? target[i] : 0) * d;
        const float b = 2 * by_square[i];
        float *g = grad + at;
        const float *v = w + at;
#pragma omp simd
        for (int64_t k = 0; k < d; k++) g[k] += b * v[k];
    }
}
