/* The elementwise work of a head on a processor, row by row while a row is in the cache: see gram_native.py.
 *
 * A chunk of c classes and n samples. p [n, c] are the products x . w; all arrays are float32, [n, c] with rows `stride`
 * apart, or [n], or [c]. NULL stands for what is not there.
 *
 * Threads are OpenMP's, of the runtime that torch has loaded. Each takes adjacent rows, and the order of every sum depends
 * on their number alone: two runs give the same bits.
 */

#include "rows.h"

/* z: products in, logits out. measure [n]: u of the target, where it is in this chunk (else untouched). top, sum and
 * log_sum [n], if they are wanted. rival [n]: the largest logit, without offset, that is not the target's. */
void pycls_rows_forward(const chunk *of, float *products, float alpha, const float *row, const float *column, float *measure,
                        float *top, float *sum, float *log_sum, float *rival)
{
#pragma omp parallel for schedule(static) num_threads(of->threads)
    for (int64_t i = 0; i < of->n; i++) {
        float *z = products + i * of->stride;
        const int64_t t = place_of(of, i);
        logits_of_products(of, z, alpha, row ? row[i] : 0, column, t, measure ? measure + i : NULL);
        if (!top) continue;
        const others found = others_of(of, z, t, rival != NULL);
        if (rival) rival[i] = found.rival;
        top[i] = found.top;
        sum[i] = found.sum;
        log_sum[i] = found.top + logf(found.sum);
    }
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
        if (along_column) add_columns(partial, c, c, used, along_column);
    }
    free(partial);
    return 1;
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
