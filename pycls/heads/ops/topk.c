/* The top-k SVMs' losses and gradients, a row of scores at a time while it is in the cache: see topk.py.
 *
 * Of each row z [c] and its label y: the k + 1 largest scores of the others; then the hard loss alpha + (z_[k] - s_y) / k where
 * that is positive, or the smooth one
 *
 *   tau log(1 + exp(alpha / tau + r - s_y / T)),   T = k tau,   r = ln sigma_k - ln sigma_{k-1} of exp(z_j / T), j not y
 *
 * The arithmetic of r is that of power_sums.py, where it is explained: the k largest numbers are divided out, and Newton's
 * identities, in double precision, give the polynomials of the rest from its power sums.
 */

#include "exp.h"

enum { MOST = 8 }; /* k at the most */

typedef struct {
    int64_t n, c;
    const float *z, *target; /* [n, c]; [n], the label's score with its margin */
    const int64_t *label;    /* [n], in [0, c) */
    double tau, alpha, apart; /* the hard loss where the k-th and the next of all scores are so far apart */
    int32_t k, smooth, threads;
    float *loss, *by_target, *by_z; /* [n], [n], [n, c]; the label's column of by_z is 0 */
} topk;

typedef struct {
    float value[MOST + 1];
    int64_t place[MOST + 1];
    int count;
} largest;

/* NaN is above all numbers, so that it is not lost. */
static inline int above(float a, float b) { return a > b || (a != a && b == b); }

/* The wanted largest of a row but of the label's, descending; of equal ones the first. */
static void find_largest(const float *z, int64_t c, int64_t label, int wanted, largest *found)
{
    found->count = 0;
    float least = -INFINITY; /* what a score must be above to count, once all places are taken */
    for (int64_t j = 0; j < c; j++) {
        if (!(above(z[j], least) || found->count < wanted) || j == label) continue;
        int at = found->count < wanted ? found->count++ : wanted - 1;
        for (; at > 0 && above(z[j], found->value[at - 1]); at--) {
            found->value[at] = found->value[at - 1];
            found->place[at] = found->place[at - 1];
        }
        found->value[at] = z[j];
        found->place[at] = j;
        if (found->count == wanted) least = found->value[wanted - 1];
    }
}

/* small [c] = exp((z - pivot) / T) of the numbers that are neither the label's nor among the k largest, 0 of those; their power
 * sums 1 to k. Sums of a block are float32. */
static void power_sums(const topk *of, const float *z, int64_t label, const largest *top, float *small, double *sums)
{
    const float pivot = top->value[of->k - 1], per = (float)(1 / (of->k * of->tau));
    const int k = of->k;
#pragma omp simd
    for (int64_t j = 0; j < of->c; j++) small[j] = exp_of((z[j] - pivot) * per);
    small[label] = 0;
    for (int l = 0; l < k; l++) small[top->place[l]] = 0, sums[l] = 0;
    for (int64_t low = 0; low < of->c; low += 512) {
        const int64_t high = low + 512 < of->c ? low + 512 : of->c;
        float p1 = 0, p2 = 0, p3 = 0, p4 = 0, p5 = 0, p6 = 0, p7 = 0, p8 = 0;
        if (k <= 5) {
#pragma omp simd reduction(+ : p1, p2, p3, p4, p5)
            for (int64_t j = low; j < high; j++) {
                const float a = small[j], square = a * a;
                p1 += a, p2 += square, p3 += square * a, p4 += square * square, p5 += square * square * a;
            }
        } else {
#pragma omp simd reduction(+ : p1, p2, p3, p4, p5, p6, p7, p8)
            for (int64_t j = low; j < high; j++) {
                const float a = small[j], square = a * a, fourth = square * square;
                p1 += a, p2 += square, p3 += square * a, p4 += fourth;
                p5 += fourth * a, p6 += fourth * square, p7 += fourth * square * a, p8 += fourth * fourth;
            }
        }
        const float of_block[MOST] = {p1, p2, p3, p4, p5, p6, p7, p8};
        for (int l = 0; l < k; l++) sums[l] += of_block[l];
    }
}

/* e [k + 2] = 1, e_1 .. e_k, 0 from power sums: i e_i = sum over j of (-1)^(j - 1) e_{i-j} p_j. */
static void polynomials(const double *sums, int k, double *e)
{
    e[0] = 1;
    e[k + 1] = 0;
    for (int i = 1; i <= k; i++) {
        double total = 0;
        for (int j = 1; j <= i; j++) total += (j % 2 ? 1 : -1) * e[i - j] * sums[j - 1];
        e[i] = total / i;
    }
}

/* The same backwards: from the derivatives by e_1 .. e_k to the coefficients with which the derivative by the logarithm of a
 * number a is the sum over j of coefficient_j a^j. */
static void pull(const double *sums, const double *e, int k, const double *by_e, double *coefficient)
{
    double total[MOST + 1]; /* by e_i, what comes through the later ones included */
    for (int i = k; i >= 1; i--) {
        total[i] = by_e[i];
        for (int m = i + 1; m <= k; m++) total[i] += total[m] / m * ((m - i) % 2 ? 1 : -1) * sums[m - i - 1];
    }
    for (int j = 1; j <= k; j++) {
        double sum = 0;
        for (int i = j; i <= k; i++) sum += total[i] / i * e[i - j];
        coefficient[j - 1] = sum * (j % 2 ? 1 : -1) * j;
    }
}

/* r less pivot / T, the coefficients of the rest, and of the k largest the derivative by the logarithm of each quotient. */
static double log_ratio(const topk *of, const largest *top, const double *sums, double *rest, double *by_quotient)
{
    const int k = of->k;
    double q[MOST], quotient_sums[MOST] = {0}, e[MOST + 2], d[MOST + 2], by_e[MOST + 1], by_d[MOST + 1];
    for (int l = 0; l < k; l++) {
        q[l] = exp(((double)top->value[k - 1] - top->value[l]) / (k * of->tau));
        double power = 1;
        for (int j = 0; j < k; j++) quotient_sums[j] += power *= q[l];
    }
    polynomials(sums, k, e);
    polynomials(quotient_sums, k, d);
    double whole = 0, below = 0;
    for (int i = 0; i <= k; i++) whole += e[i] * d[i], below += e[i] * d[i + 1];
    for (int i = 1; i <= k; i++) {
        by_e[i] = d[i] / whole - d[i + 1] / below;
        by_d[i] = e[i] / whole - e[i - 1] / below;
    }
    double coefficient[MOST];
    pull(sums, e, k, by_e, rest);
    pull(quotient_sums, d, k, by_d, coefficient);
    for (int l = 0; l < k; l++) {
        double power = 1;
        by_quotient[l] = 0;
        for (int j = 0; j < k; j++) by_quotient[l] += coefficient[j] * (power *= q[l]);
    }
    return log(whole / below);
}

static void smooth_row(const topk *of, int64_t i, const largest *top)
{
    const float *z = of->z + i * of->c;
    float *g = of->by_z + i * of->c;
    const int k = of->k;
    const double temperature = k * of->tau, pivot = top->value[k - 1];
    double sums[MOST], rest[MOST], by_quotient[MOST];
    power_sums(of, z, of->label[i], top, g, sums);
    const double ratio = log_ratio(of, top, sums, rest, by_quotient) + pivot / temperature;
    const double gap = of->alpha / of->tau + ratio - of->target[i] / temperature;
    const double wrong = gap > 0 ? 1 / (1 + exp(-gap)) : exp(gap) / (1 + exp(gap)), by_log = of->tau * wrong / temperature;
    of->loss[i] = (float)(of->tau * (gap > 0 ? gap + log1p(exp(-gap)) : log1p(exp(gap))));
    of->by_target[i] = (float)-by_log;
    float by[MOST] = {0};
    for (int j = 0; j < k; j++) by[j] = (float)(rest[j] * by_log);
    const float b0 = by[0], b1 = by[1], b2 = by[2], b3 = by[3], b4 = by[4], b5 = by[5], b6 = by[6], b7 = by[7];
    if (k <= 5) {
#pragma omp simd
        for (int64_t j = 0; j < of->c; j++) {
            const float a = g[j];
            g[j] = a * (b0 + a * (b1 + a * (b2 + a * (b3 + a * b4))));
        }
    } else {
#pragma omp simd
        for (int64_t j = 0; j < of->c; j++) {
            const float a = g[j];
            g[j] = a * (b0 + a * (b1 + a * (b2 + a * (b3 + a * (b4 + a * (b5 + a * (b6 + a * b7)))))));
        }
    }
    for (int l = 0; l < k; l++) g[top->place[l]] = (float)(-by_quotient[l] * by_log);
}

static void hard_row(const topk *of, int64_t i, const largest *top)
{
    float *g = of->by_z + i * of->c;
    const int k = of->k;
    const double loss = of->alpha + ((double)top->value[k - 1] - of->target[i]) / k;
    const int active = !(loss < 0); /* what is not finite stays so */
    memset(g, 0, (size_t)of->c * sizeof(float));
    of->loss[i] = active ? (float)loss : 0;
    of->by_target[i] = active ? -1.0f / k : 0;
    if (active) g[top->place[k - 1]] = 1.0f / k;
}

/* Whether the k-th and the next of all scores are so far apart that smoothing changes nothing. The target is among them where it
 * is between the others. */
static int is_apart(const topk *of, double score, const largest *top)
{
    const int k = of->k;
    const double kth = top->value[k - 1], before = k > 1 ? top->value[k - 2] : INFINITY;
    const double next = top->count > k ? top->value[k] : -INFINITY;
    const double upper = score < kth ? kth : score > before ? before : score;
    const double lower = score < next ? next : score > kth ? kth : score;
    return upper - lower >= of->apart;
}

void pycls_topk(const topk *of)
{
#pragma omp parallel for schedule(static) num_threads(of->threads)
    for (int64_t i = 0; i < of->n; i++) {
        largest top;
        find_largest(of->z + i * of->c, of->c, of->label[i], of->k + 1 < of->c ? of->k + 1 : (int)of->c - 1, &top);
        if (!of->smooth || (of->apart > 0 && is_apart(of, of->target[i], &top)))
            hard_row(of, i, &top);
        else
            smooth_row(of, i, &top);
    }
}
