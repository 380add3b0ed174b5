/* Copies many arrays past the caches, and checks them for values that are not finite: see copying.py.
 *
 * An ordinary copy reads the memory it is going to write, and drives out of the caches what the training is working with. Here
 * whole cache lines are written at once, past the caches.
 */

#include <omp.h>
#include <stdint.h>
#include <string.h>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

enum { LINE = 64 };

typedef struct {
    const char *from;
    char *to;
    int64_t bytes;
    int32_t check, bad; /* whether to check for values that are not finite, in float32 numbers; whether it was found */
} piece;

/* Whether one of the float32 numbers is an infinity or NaN: all bits of the exponent are set. */
static int has_nonfinite(const char *from, int64_t bytes)
{
    int32_t found = 0;
    for (int64_t k = 0; k + 4 <= bytes; k += 4) {
        int32_t bits;
        memcpy(&bits, from + k, 4);
        found |= (bits & 0x7fffffff) > 0x7f7fffff;
    }
    return found;
}

#ifdef __SSE2__
/* Whole lines, to an address that is one's start. */
static int copy_lines(const char *from, char *to, int64_t bytes, int check)
{
    const __m128i size = _mm_set1_epi32(0x7fffffff), most = _mm_set1_epi32(0x7f7fffff);
    __m128i found = _mm_setzero_si128();
    for (int64_t k = 0; k < bytes; k += LINE) {
        __m128i v[4];
        for (int j = 0; j < 4; j++) v[j] = _mm_loadu_si128((const __m128i *)(from + k) + j);
        for (int j = 0; j < 4; j++) _mm_stream_si128((__m128i *)(to + k) + j, v[j]);
        if (check)
            for (int j = 0; j < 4; j++) found = _mm_or_si128(found, _mm_cmpgt_epi32(_mm_and_si128(v[j], size), most));
    }
    _mm_sfence();
    return _mm_movemask_epi8(found) != 0;
}
#else
static int copy_lines(const char *from, char *to, int64_t bytes, int check)
{
    memcpy(to, from, (size_t)bytes);
    return check && has_nonfinite(from, bytes);
}
#endif

static int copy(const char *from, char *to, int64_t bytes, int check)
{
    const int64_t lines = (uintptr_t)to % LINE ? 0 : bytes / LINE * LINE;
    int found = lines ? (check ? copy_lines(from, to, lines, 1) : copy_lines(from, to, lines, 0)) : 0;
    memcpy(to + lines, from + lines, (size_t)(bytes - lines));
    return found | (check && has_nonfinite(from + lines, bytes - lines));
}

static int64_t within(int64_t place, int64_t bytes)
{
    return place <= 0 ? 0 : place >= bytes ? bytes : place / LINE * LINE;
}

/* Each thread has as many bytes as the next. */
void pycls_copy(piece *pieces, int64_t count, int32_t threads)
{
    int64_t all = 0;
    for (int64_t i = 0; i < count; i++) all += pieces[i].bytes, pieces[i].bad = 0;
#pragma omp parallel num_threads(threads)
    {
        const int64_t me = omp_get_thread_num(), of = omp_get_num_threads(), low = all / of * me;
        const int64_t high = me + 1 == of ? all : all / of * (me + 1);
        int64_t start = 0;
        for (int64_t i = 0; i < count && start < high; start += pieces[i].bytes, i++) {
            piece *p = pieces + i;
            const int64_t from = within(low - start, p->bytes), to = within(high - start, p->bytes);
            if (from < to && copy(p->from + from, p->to + from, to - from, p->check)) {
#pragma omp atomic write
                p->bad = 1;
            }
        }
    }
}
