/* From a target's measure and the log-sum-exp of the other classes' logits to the loss of a sample and its slopes: the margin and
 * the cross entropy of step.c.
 *
 *   v  = the cosine or squared distance behind the measure u
 *   f  = the margin of v
 *   u' = the measure that has f behind it,  z' = link(u')
 *   l  = log(1 + exp(others - z' - offset))
 *
 * The numbers come as float32; all that is done with them here is done in double precision.
 */

#ifndef PYCLS_TAIL_H
#define PYCLS_TAIL_H

#include <float.h>
#include <math.h>
#include <stdint.h>

enum domain { NO_DOMAIN = 0, OVER_LENGTH = 1, OVER_FEATURE = 2, OVER_BOTH = 3, DISTANCE_OF = 4 };
enum margin { NO_MARGIN = 0, LESS_COSINE = 1, MORE_ANGLE = 2, COMBINED = 3, MULTI_ANGLE = 4, MORE_DISTANCE = 5 };

typedef struct {
    const double *margins;      /* [K], of LESS_COSINE, or NULL */
    double a, b, c;             /* of the margin */
    double grown;               /* how much of the margin there is: 1 but while it warms up */
    double length;              /* u / cos of OVER_LENGTH */
    double constant, rate;      /* u = constant - rate (distance + log-determinant) */
    double scale, kappa;        /* of the link */
    int32_t link, domain, margin;
} tail;

/* What is known of a sample and its target. */
typedef struct {
    int64_t target;
    double measure, others, offset;
    double feature_square, prototype_square, determinant; /* |x|^2, |w_y|^2, log|Lambda_y| */
    double share;                                         /* of the sample in the mean */
} sample;

typedef struct {
    double loss;                               /* share times it */
    double by_others, by_measure;
    double by_feature;                         /* by x, to be multiplied with x */
    double by_square, by_determinant;          /* by |w_y|^2 and log|Lambda_y| */
    double by_length, by_scale;
} slopes;

typedef struct {
    double value, slope;
} curve;

static const double PI = 3.14159265358979323846, LEAST_NORM = 1e-12; /* TINY of form.py is its square */

/* cos(theta + m), continued past pi - m (or, if easy, left alone from a right angle on). */
static curve more_angle(double v, double m, int easy)
{
    if (easy ? v <= 0 : v < cos(PI - m)) return (curve){easy ? v : v - m * sin(m), 1};
    const double square = 1 - v * v, sine = square > 0 ? sqrt(square) : 0, least = 2 * sqrt(FLT_EPSILON);
    return (curve){v * cos(m) - sine * sin(m), v / (sine > least ? sine : least) * sin(m) + cos(m)};
}

/* cos(m1 theta + m2) - m3, continued. */
static curve combined(double v, double m1, double m2, double m3)
{
    if (m1 == 1) {
        curve turned = more_angle(v, m2, 0);
        turned.value -= m3;
        return turned;
    }
    const double square = 1 - v * v;
    const int inner = square > 4 * FLT_EPSILON;
    const double reached = m1 * (inner ? acos(v) : v > 0 ? 0 : PI) + m2, turns = floor(reached / PI);
    const double sign = fmod(turns, 2) == 0 ? 1 : -1;
    return (curve){sign * cos(reached) - 2 * turns - m3, inner ? sign * sin(reached) * m1 / sqrt(square) : 0};
}

/* (-1)^k cos(m theta) - 2 k, blended with the cosine. */
static curve multi_angle(double v, int m, double blend)
{
    double value = v, slope = 1;
    const double square = v * v;
    if (m == 2) value = 2 * square - 1, slope = 4 * v;
    if (m == 3) value = (4 * square - 3) * v, slope = 12 * square - 3;
    if (m == 4) value = 8 * square * (square - 1) + 1, slope = (32 * square - 16) * v;
    if (m > 1) {
        double k = floor(acos(v > 1 ? 1 : v < -1 ? -1 : v) * m / PI);
        k = k > m - 1 ? m - 1 : k;
        const double sign = fmod(k, 2) == 0 ? 1 : -1;
        value = sign * value - 2 * k;
        slope *= sign;
    }
    return (curve){value + blend * (v - value), slope + blend * (1 - slope)};
}

static curve margin_of(const tail *of, double v, int64_t target)
{
    curve found = {v, 1};
    switch (of->margin) {
    case LESS_COSINE: found.value = v - (of->margins ? of->margins[target] : of->a); break;
    case MORE_ANGLE: found = more_angle(v, of->a, of->b != 0); break;
    case COMBINED: found = combined(v, of->a, of->b, of->c); break;
    case MULTI_ANGLE: found = multi_angle(v, (int)of->a, of->b); break;
    case MORE_DISTANCE: found = (curve){(1 + of->a) * v, 1 + of->a}; break;
    }
    return (curve){v + of->grown * (found.value - v), 1 + of->grown * (found.slope - 1)};
}

static curve link_of(const tail *of, double u)
{
    if (of->link == EXPONENTIAL) return (curve){exp(u), exp(u)};
    if (of->link == STUDENT_T) {
        const double k = of->kappa, d = 1 - u, below = 1 + k * d, most = 1 + 2 * k;
        return (curve){of->scale * (1 - most * d / below), of->scale * most / (below * below)};
    }
    return (curve){u, 1};
}

static slopes tail_of(const tail *of, const sample *at)
{
    slopes found = {0};
    if (at->target < 0) return found;
    const double u = at->measure;
    const int distance = of->domain == DISTANCE_OF, angular = of->domain == OVER_FEATURE || of->domain == OVER_BOTH;
    double norm = 1, other = 1, radius = of->length, v = u, moved = u;
    curve margin = {u, 1};
    if (of->margin != NO_MARGIN) {
        if (angular) {
            norm = fmax(sqrt(at->feature_square), LEAST_NORM);
            other = of->domain == OVER_BOTH ? fmax(sqrt(at->prototype_square), LEAST_NORM) : 1;
            radius = norm * other;
        }
        v = distance ? (of->constant - u) / of->rate - at->determinant : u / radius;
        margin = margin_of(of, v, at->target);
        moved = distance ? of->constant - of->rate * (margin.value + at->determinant) : radius * margin.value;
    }
    const curve logit = link_of(of, moved);
    const double gap = at->others - logit.value - at->offset;
    const double wrong = gap > 0 ? 1 / (1 + exp(-gap)) : exp(gap) / (1 + exp(gap));
    const double by_logit = -at->share * wrong, by_moved = by_logit * logit.slope;
    found.loss = at->share * (gap > 0 ? gap + log1p(exp(-gap)) : log1p(exp(gap)));
    found.by_others = at->share * wrong;
    found.by_measure = by_moved * margin.slope;
    if (of->link == STUDENT_T) found.by_scale = by_logit * logit.value / of->scale;
    if (of->margin == NO_MARGIN) return found;
    const double by_radius = by_moved * (margin.value - margin.slope * v);
    if (of->domain == OVER_LENGTH) found.by_length = by_radius;
    if (angular) found.by_feature = by_radius * other / norm;
    if (of->domain == OVER_BOTH && other > LEAST_NORM) found.by_square = by_radius * norm / (2 * other);
    if (distance) found.by_determinant = by_moved * of->rate * (margin.slope - 1);
    return found;
}

#endif
