/* The exponential function in a form that a compiler makes vector instructions of. */

#ifndef PYCLS_EXP_H
#define PYCLS_EXP_H

#include <math.h>
#include <stdint.h>
#include <string.h>

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

#endif
