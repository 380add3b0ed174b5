/* What is done with one row of a head's [n, c] arrays while it is in the cache: shared by rows.c and step.c.
 *
 * All arrays are float32. NULL stands for what is not there.
 *
 *   measure   u_ij = alpha p_ij inverse_j + row_i + column_j      p the products x . w
 *   logit     z_ij = link(u_ij)
 *   softmax   over z_ij + offset_j without the target, as the largest of them and the sum of exp(. - largest)
 */

#ifndef PYCLS_ROWS_H
#define PYCLS_ROWS_H

#include <omp.h>
#include <stdlib.h>

#include "exp.h"

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

/* Of a row without its target. */
typedef struct {
    float top, sum, rival; /* the largest logit plus offset; the sum of exp(. - top); the largest logit */
} others;

/* Logits in place of products; t is the target's place or -1. measure: where the target's u goes, or NULL. */
static void logits_of_products(const chunk *of, float *z, float alpha, float row, const float *column, int64_t t, float *measure)
{
    measures_of(of, z, alpha, row, column);
    if (t >= 0 && measure) *measure = z[t];
    logits_of(of, z);
}

static others others_of(const chunk *of, float *z, int64_t t, int with_rival)
{
    const int64_t c = of->c;
    const float *offset = of->offset, target = t >= 0 ? z[t] : 0;
    float most = -INFINITY, total = 0, rival = -INFINITY;
    if (t >= 0) z[t] = -INFINITY;
    if (with_rival || !offset) {
#pragma omp simd reduction(max : most)
        for (int64_t j = 0; j < c; j++) most = z[j] > most ? z[j] : most;
        rival = most;
    }
    if (offset) {
        most = -INFINITY;
#pragma omp simd reduction(max : most)
        for (int64_t j = 0; j < c; j++) most = z[j] + offset[j] > most ? z[j] + offset[j] : most;
    }
    const float shift = most > -INFINITY ? most : 0; /* the target may be the only one */
    if (offset) {
#pragma omp simd reduction(+ : total)
        for (int64_t j = 0; j < c; j++) total += exp_of(z[j] + offset[j] - shift);
    } else {
#pragma omp simd reduction(+ : total)
        for (int64_t j = 0; j < c; j++) total += exp_of(z[j] - shift);
    }
    if (t >= 0) z[t] = target;
    return (others){most, total, rival};
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

/* The threads' sums [used, stride] of c columns as one, each column's in the order of the threads; by all of a team. */
static void add_columns(const float *partial, int64_t c, int64_t stride, int used, float *to)
{
#pragma omp for schedule(static)
    for (int64_t j = 0; j < c; j++) {
        float total = partial[j];
        for (int64_t k = 1; k < used; k++) total += partial[k * stride + j];
        to[j] = total;
    }
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

#endif
