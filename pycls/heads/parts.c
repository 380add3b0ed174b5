/* What some heads do beside the pass over the prototypes, each in as few passes over memory as it has: see parts_native.py.
 *
 * All numbers are float32 and all rows adjacent. NULL stands for what is not there or not wanted. What several samples add to
 * is added in their order, by any number of threads.
 */

#include <omp.h>
#include <stdlib.h>

#include "exp.h"

enum variant { L2 = 0, L1 = 1, RELATIVE = 2 };

static const float LEAST = 1e-12f; /* norm under which a vector counts as zero */

/* With fewer numbers than 2^16 each, threads take longer to wake than they save. */
static int threads_for(int threads, int64_t elements)
{
    const int64_t worth = elements >> 16;
    return worth < 1 ? 1 : worth < threads ? (int)worth : threads;
}

static int all_classes(const int64_t *labels, int64_t n, int64_t k)
{
    for (int64_t i = 0; i < n; i++)
        if (labels[i] < 0 || labels[i] >= k) return 0;
    return 1;
}

/* Half the weighted sum of |x_i - c_y|^2, and its gradient by x [n, d]. Returns 0 if a label is no class or there is no
 * memory. */
int32_t pycls_parts_pull(int64_t n, int64_t d, int64_t k, const float *x, const float *centers, const int64_t *labels,
                         const float *weights, float factor, float *gradient, float *value, int32_t threads)
{
    double *squares = all_classes(labels, n, k) ? malloc((size_t)(n + 1) * sizeof(double)) : NULL, total = 0;
    if (!squares) return 0;
#pragma omp parallel for schedule(static) num_threads(threads_for(threads, n * d))
    for (int64_t i = 0; i < n; i++) {
        const float *v = x + i * d, *c = centers + labels[i] * d, weight = factor * weights[i];
        float *o = gradient + i * d;
        double square = 0;
#pragma omp simd reduction(+ : square)
        for (int64_t j = 0; j < d; j++) {
            const float gap = v[j] - c[j];
            square += (double)gap * gap;
            o[j] = weight * gap;
        }
        squares[i] = weight * square;
    }
    for (int64_t i = 0; i < n; i++) total += squares[i];
    free(squares);
    *value = (float)(total / 2);
    return 1;
}

enum { BLOCK = 64 };

/* c += rate sum_i weight_i (x_i - c) / (1 + sum_i weight_i) over the samples of one class, a chain that starts with i. */
static void move_center(float *c, const float *x, int64_t d, int64_t i, const int64_t *next, const float *weights, float rate)
{
    float count = 1;
    for (int64_t s = i; s >= 0; s = next[s]) count += weights[s];
    for (int64_t from = 0; from < d; from += BLOCK) {
        const int64_t width = d - from < BLOCK ? d - from : BLOCK;
        float pull[BLOCK] = {0};
        for (int64_t s = i; s >= 0; s = next[s]) {
            const float *v = x + s * d + from, weight = rate * weights[s] / count;
#pragma omp simd
            for (int64_t j = 0; j < width; j++) pull[j] += weight * (v[j] - c[from + j]);
        }
#pragma omp simd
        for (int64_t j = 0; j < width; j++) c[from + j] += pull[j];
    }
}

/* Centre loss's equation 4, where all samples of a class see its old centre. Returns 0 if a label is no class or there is no
 * memory. */
int32_t pycls_parts_move(int64_t n, int64_t d, int64_t k, const float *x, float *centers, const int64_t *labels,
                         const float *weights, float rate, int32_t threads)
{
    /* next [n]: the class's next sample or -1, and for all but its first -1 in `first`; last [k], of the batch's classes */
    int64_t *work = all_classes(labels, n, k) ? malloc((size_t)(2 * n + k + 1) * sizeof(int64_t)) : NULL;
    if (!work) return 0;
    int64_t *next = work, *first = work + n, *last = first + n, classes = 0;
    for (int64_t i = 0; i < n; i++) next[i] = last[labels[i]] = -1;
    for (int64_t i = 0; i < n; i++) {
        const int64_t y = labels[i];
        if (!(weights[i] != 0)) continue;
        if (last[y] < 0)
            first[classes++] = i;
        else
            next[last[y]] = i;
        last[y] = i;
    }
#pragma omp parallel for schedule(static) num_threads(threads_for(threads, n * d))
    for (int64_t j = 0; j < classes; j++)
        move_center(centers + labels[first[j]] * d, x, d, first[j], next, weights, rate);
    free(work);
    return 1;
}

/* |x| [n], at least LEAST; returns the mean of those with a weight. */
double pycls_parts_norms(int64_t n, int64_t d, const float *x, const float *weights, float *norms, int32_t threads)
{
#pragma omp parallel for schedule(static) num_threads(threads_for(threads, n * d))
    for (int64_t i = 0; i < n; i++) {
        const float *v = x + i * d;
        double square = 0;
#pragma omp simd reduction(+ : square)
        for (int64_t j = 0; j < d; j++) square += (double)v[j] * v[j];
        const float norm = (float)sqrt(square);
        norms[i] = norm < LEAST ? LEAST : norm;
    }
    double total = 0, count = 0;
    for (int64_t i = 0; i < n; i++)
        if (weights[i] > 0) total += norms[i], count += 1;
    return total / (count > 0 ? count : 1);
}

/* The ring loss of norms with this mean. In their place comes what x is to be multiplied with for the gradient by it; returns
 * the gradient by the radius. */
double pycls_parts_ring(int64_t n, float *norms, const float *weights, double mean, double radius, double weight,
                        int32_t variant, float *value)
{
    const double least = LEAST * (double)LEAST, scale = variant == RELATIVE ? weight / (mean > least ? mean : least) : weight;
    double total = 0, by_radius = 0, count = 0;
    for (int64_t i = 0; i < n; i++) {
        const double gap = norms[i] - radius, share = scale * weights[i], size = fabs(gap);
        const int linear = variant == L1 && size >= 1;
        total += share * (linear ? size - 0.5 : gap * gap / 2);
        by_radius -= share * (linear ? (gap > 0 ? 1 : -1) : gap);
        count += weights[i] > 0;
    }
    const double by_mean = variant == RELATIVE && mean >= least ? -total / mean / (count > 0 ? count : 1) : 0;
    for (int64_t i = 0; i < n; i++) {
        const double gap = norms[i] - radius, share = scale * weights[i];
        const double slope = variant == L1 && fabs(gap) >= 1 ? (gap > 0 ? 1 : -1) : gap;
        norms[i] = (float)((share * slope + (weights[i] > 0 ? by_mean : 0)) / norms[i]);
    }
    *value = (float)total;
    return by_radius;
}

/* out = factor_i by rows_i */
void pycls_parts_scale(int64_t n, int64_t d, const float *rows, const float *factor, float by, float *out, int32_t threads)
{
#pragma omp parallel for schedule(static) num_threads(threads_for(threads, n * d))
    for (int64_t i = 0; i < n; i++) {
        const float *v = rows + i * d, f = by * factor[i];
        float *o = out + i * d;
#pragma omp simd
        for (int64_t j = 0; j < d; j++) o[j] = f * v[j];
    }
}

/* Gradients of rows f_j w_j and numbers f_j b_j from those by them. */
void pycls_parts_scale_back(int64_t k, int64_t d, const float *w, const float *b, const float *f, const float *by_rows,
                            const float *by_numbers, float *by_w, float *by_b, float *by_f, int32_t threads)
{
#pragma omp parallel for schedule(static) num_threads(threads_for(threads, k * d))
    for (int64_t i = 0; i < k; i++) {
        const float *v = w + i * d, *g = by_rows + i * d, factor = f[i];
        if (by_f) {
            float along = 0;
#pragma omp simd reduction(+ : along)
            for (int64_t j = 0; j < d; j++) along += g[j] * v[j];
            by_f[i] = along + by_numbers[i] * b[i];
        }
        if (by_w) {
            float *o = by_w + i * d;
#pragma omp simd
            for (int64_t j = 0; j < d; j++) o[j] = factor * g[j];
        }
        if (by_b) by_b[i] = factor * by_numbers[i];
    }
}

/* Means m and log variances v [k, d] -> rows [-e^-v / 2, e^-v m] [k, 2 d], -(e^-v m^2 + v) / 2 and v summed [k]. */
void pycls_parts_gaussian(int64_t k, int64_t d, const float *mean, const float *log_variance, float *rows, float *constant,
                          float *determinant, int32_t threads)
{
#pragma omp parallel for schedule(static) num_threads(threads_for(threads, k * d))
    for (int64_t i = 0; i < k; i++) {
        const float *m = mean + i * d, *v = log_variance + i * d;
        float *half = rows + 2 * i * d, *pulled = half + d, squares = 0, all = 0;
#pragma omp simd reduction(+ : squares, all)
        for (int64_t j = 0; j < d; j++) {
            const float precision = exp_of(-v[j]), p = precision * m[j];
            half[j] = -0.5f * precision;
            pulled[j] = p;
            squares += p * m[j];
            all += v[j];
        }
        constant[i] = -0.5f * (squares + all);
        determinant[i] = all;
    }
}

/* Gradients by m and v from those by all three. */
void pycls_parts_gaussian_back(int64_t k, int64_t d, const float *mean, const float *rows, const float *by_rows,
                               const float *by_constant, const float *by_determinant, float *by_mean, float *by_variance,
                               int32_t threads)
{
#pragma omp parallel for schedule(static) num_threads(threads_for(threads, k * d))
    for (int64_t i = 0; i < k; i++) {
        const float *m = mean + i * d, *half = rows + 2 * i * d, *by_half = by_rows + 2 * i * d, *by_pulled = by_half + d;
        const float c = by_constant[i], rest = (by_determinant ? by_determinant[i] : 0) - 0.5f * c;
        float *to_mean = by_mean ? by_mean + i * d : NULL, *to_variance = by_variance ? by_variance + i * d : NULL;
        if (to_mean) {
#pragma omp simd
            for (int64_t j = 0; j < d; j++) to_mean[j] = -2 * half[j] * (by_pulled[j] - c * m[j]);
        }
        if (to_variance) {
#pragma omp simd
            for (int64_t j = 0; j < d; j++)
                to_variance[j] = -2 * half[j] * (0.5f * by_half[j] - m[j] * (by_pulled[j] - 0.5f * c * m[j])) + rest;
        }
    }
}

/* [x^2, x] [n, 2 d] */
void pycls_parts_squares(int64_t n, int64_t d, const float *x, float *out, int32_t threads)
{
#pragma omp parallel for schedule(static) num_threads(threads_for(threads, n * d))
    for (int64_t i = 0; i < n; i++) {
        const float *v = x + i * d;
        float *o = out + 2 * i * d;
#pragma omp simd
        for (int64_t j = 0; j < d; j++) o[j] = v[j] * v[j];
        memcpy(o + d, v, (size_t)d * sizeof(float));
    }
}

void pycls_parts_squares_back(int64_t n, int64_t d, const float *x, const float *by_out, float *by_x, int32_t threads)
{
#pragma omp parallel for schedule(static) num_threads(threads_for(threads, n * d))
    for (int64_t i = 0; i < n; i++) {
        const float *v = x + i * d, *g = by_out + 2 * i * d;
        float *o = by_x + i * d;
#pragma omp simd
        for (int64_t j = 0; j < d; j++) o[j] = 2 * v[j] * g[j] + g[d + j];
    }
}
