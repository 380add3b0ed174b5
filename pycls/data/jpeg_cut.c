/* A square cut out of a JPEG, resized: no more is decoded than the cut needs.
 *
 * libjpeg-turbo leaves out blocks left and right of the cut (jpeg_crop_scanline), the colour conversion and inverse DCT of
 * the lines above it (jpeg_skip_scanlines), and everything below. A cut much larger than what is wanted is decoded at a half,
 * a quarter or an eighth (scaled inverse DCT). The rest is bilinear resizing with antialiasing, in Pillow's definition: a
 * triangle filter whose support grows with the scale, weights that sum to 1.
 *
 * Compiled and called by pycls/data/native.py. Thread-safe; holds no state.
 */
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <jpeglib.h>
#include <jerror.h>

enum { DONE, NOT_HERE, DAMAGED, NO_MEMORY }; /* NOT_HERE: something that this file leaves to Pillow */

#define CHROMA_MARGIN 2 /* columns beside the cut that smooth chroma upsampling looks at */

struct errors {
    struct jpeg_error_mgr base;
    jmp_buf leave;
    char text[JMSG_LENGTH_MAX];
};

static void fail(j_common_ptr info) {
    struct errors *errors = (struct errors *)info->err;
    info->err->format_message(info, errors->text);
    longjmp(errors->leave, 1);
}

static void note(j_common_ptr info, int level) { /* the end of the data before the end of the image is a failure */
    if (level < 0 && info->err->msg_code == JWRN_JPEG_EOF) fail(info);
}

static void open_jpeg(struct jpeg_decompress_struct *jpeg, const uint8_t *data, size_t size) {
    jpeg_create_decompress(jpeg);
    jpeg_mem_src(jpeg, data, size);
    jpeg_save_markers(jpeg, JPEG_APP0 + 1, 0xFFFF);
    jpeg_read_header(jpeg, TRUE);
}

static uint32_t word(const uint8_t *p, int bytes, int little) {
    uint32_t value = 0;
    for (int i = 0; i < bytes; i++) value = value << 8 | p[little ? bytes - 1 - i : i];
    return value;
}

/* The EXIF orientation, 1..8; 1 where there is none, 0 where it cannot be told. */
static int orientation(const struct jpeg_decompress_struct *jpeg) {
    for (jpeg_saved_marker_ptr m = jpeg->marker_list; m; m = m->next) {
        if (m->data_length < 14 || memcmp(m->data, "Exif\0\0", 6)) continue;
        const uint8_t *tiff = m->data + 6;
        uint32_t size = m->data_length - 6;
        int little = tiff[0] == 'I';
        uint32_t at = word(tiff + 4, 4, little);
        if (at > size - 2 || size < 2) return 0;
        uint32_t entries = word(tiff + at, 2, little);
        for (uint32_t i = 0; i < entries; i++) {
            uint64_t place = (uint64_t)at + 2 + 12 * (uint64_t)i;
            if (place + 12 > size) return 0;
            if (word(tiff + place, 2, little) == 0x0112) {
                uint32_t value = word(tiff + place + 8, 2, little);
                return value >= 1 && value <= 8 ? (int)value : 1;
            }
        }
    }
    return 1;
}

static int is_ours(const struct jpeg_decompress_struct *jpeg) {
    return jpeg->data_precision == 8 && (jpeg->jpeg_color_space == JCS_YCbCr || jpeg->jpeg_color_space == JCS_GRAYSCALE) &&
           orientation(jpeg) == 1;
}

/* shape: width and height. message: at least 200 bytes. */
int pycls_jpeg_shape(const uint8_t *data, size_t size, int32_t shape[2], char *message) {
    struct jpeg_decompress_struct jpeg;
    struct errors errors;
    if (size < 4 || data[size - 2] != 0xFF || data[size - 1] != 0xD9) return NOT_HERE; /* cut off, or something follows */
    jpeg.err = jpeg_std_error(&errors.base);
    errors.base.error_exit = fail;
    errors.base.emit_message = note;
    if (setjmp(errors.leave)) {
        strcpy(message, errors.text);
        jpeg_destroy_decompress(&jpeg);
        return DAMAGED;
    }
    open_jpeg(&jpeg, data, size);
    int ours = is_ours(&jpeg);
    shape[0] = (int32_t)jpeg.image_width;
    shape[1] = (int32_t)jpeg.image_height;
    jpeg_destroy_decompress(&jpeg);
    return ours ? DONE : NOT_HERE;
}

struct taps { /* output sample i is sum over k < count[i] of weights[i * most + k] * input[first[i] + k] */
    int most;
    int *first, *count;
    float *weights;
};

/* An axis: the part [low, high) of the input becomes n samples; only input samples in [from, to) are looked at. */
static int make_taps(struct taps *t, double low, double high, int from, int to, int n) {
    double scale = (high - low) / n, support = scale > 1 ? scale : 1;
    t->most = (int)(2 * support) + 3;
    t->first = malloc(sizeof(int) * (size_t)n);
    t->count = malloc(sizeof(int) * (size_t)n);
    t->weights = calloc((size_t)n * (size_t)t->most, sizeof(float));
    if (!t->first || !t->count || !t->weights) return 0;
    for (int i = 0; i < n; i++) {
        double centre = low + (i + 0.5) * scale, sum = 0;
        int first = (int)(centre - support + 0.5), end = (int)(centre + support + 0.5);
        if (centre - support + 0.5 < 0 || first < from) first = from;
        if (end > to) end = to;
        if (first >= end) first = end - 1; /* a box at the border that rounding has moved outside */
        float *weights = t->weights + (size_t)i * (size_t)t->most;
        for (int k = 0; k < end - first; k++) {
            double distance = (first + k - centre + 0.5) / support;
            double weight = 1 - (distance < 0 ? -distance : distance);
            weights[k] = (float)(weight > 0 ? weight : 0);
            sum += weights[k];
        }
        if (sum == 0) weights[0] = 1, sum = 1;
        for (int k = 0; k < end - first; k++) weights[k] = (float)(weights[k] / sum);
        t->first[i] = first;
        t->count[i] = end - first;
    }
    return 1;
}

static void free_taps(struct taps *t) {
    free(t->first);
    free(t->count);
    free(t->weights);
}

typedef float pixel __attribute__((vector_size(16))); /* red, green, blue and what follows them */

/* Lines of RGB, the first of them line y0 and its first column x0 of the image -> out, size x size RGB. */
static void resize(const uint8_t *lines, size_t stride, int x0, int y0, int width, const struct taps *columns,
                   const struct taps *rows, int size, int flip, float *row, uint8_t *out) {
    for (int y = 0; y < size; y++) {
        const float *weights = rows->weights + (size_t)y * (size_t)rows->most;
        const uint8_t *line = lines + (size_t)(rows->first[y] - y0) * stride;
        for (int i = 0; i < 3 * width; i++) row[i] = weights[0] * line[i];
        for (int k = 1; k < rows->count[y]; k++) {
            line += stride;
            for (int i = 0; i < 3 * width; i++) row[i] += weights[k] * line[i];
        }
        uint8_t *target = out + (size_t)y * (size_t)size * 3;
        for (int x = 0; x < size; x++) {
            const float *w = columns->weights + (size_t)x * (size_t)columns->most;
            const float *source = row + 3 * (columns->first[x] - x0);
            pixel sum = {0.5f, 0.5f, 0.5f, 0};
            for (int k = 0; k < columns->count[x]; k++, source += 3) {
                pixel here;
                memcpy(&here, source, sizeof here);
                sum += w[k] * here;
            }
            uint8_t *to = target + 3 * (flip ? size - 1 - x : x);
            for (int c = 0; c < 3; c++) to[c] = (uint8_t)sum[c];
        }
    }
}

struct work { /* what is to be given back, whichever way the work ends */
    struct jpeg_decompress_struct jpeg;
    struct errors errors;
    struct taps columns, rows;
    uint8_t *lines;
    float *row;
};

static int decode(struct work *w, const uint8_t *data, size_t bytes, const double box[4], const int32_t clip[4], int size,
                  int flip, double finest, uint8_t *out) {
    struct jpeg_decompress_struct *jpeg = &w->jpeg;
    if (setjmp(w->errors.leave)) return DAMAGED;
    open_jpeg(jpeg, data, bytes);
    double least = box[2] - box[0] < box[3] - box[1] ? box[2] - box[0] : box[3] - box[1];
    jpeg->scale_num = jpeg->scale_denom = 1;
    while (jpeg->scale_denom < 8 && least >= 2.0 * jpeg->scale_denom * finest * size) jpeg->scale_denom *= 2;
    jpeg->out_color_space = JCS_RGB;
    jpeg_start_decompress(jpeg);

    double f = 1.0 / jpeg->scale_denom; /* a last column or line may stand for less than a whole one */
    int right = (int)(clip[2] * f + 0.5), bottom = (int)(clip[3] * f + 0.5);
    if (right > (int)jpeg->output_width || clip[2] == (int)jpeg->image_width) right = (int)jpeg->output_width;
    if (bottom > (int)jpeg->output_height || clip[3] == (int)jpeg->image_height) bottom = (int)jpeg->output_height;
    if (!make_taps(&w->columns, box[0] * f, box[2] * f, (int)(clip[0] * f + 0.5), right, size) ||
        !make_taps(&w->rows, box[1] * f, box[3] * f, (int)(clip[1] * f + 0.5), bottom, size))
        return NO_MEMORY;
    int first_x = w->columns.first[0], end_x = w->columns.first[size - 1] + w->columns.count[size - 1];
    int first_y = w->rows.first[0], end_y = w->rows.first[size - 1] + w->rows.count[size - 1];
    JDIMENSION x0 = (JDIMENSION)(first_x > CHROMA_MARGIN ? first_x - CHROMA_MARGIN : 0);
    JDIMENSION x1 = (JDIMENSION)end_x + CHROMA_MARGIN, width = (x1 < jpeg->output_width ? x1 : jpeg->output_width) - x0;
    if (width < jpeg->output_width) jpeg_crop_scanline(jpeg, &x0, &width);
    size_t stride = (size_t)width * 3;
    w->lines = malloc(stride * (size_t)(end_y - first_y));
    w->row = malloc((stride + 4) * sizeof(float));
    if (!w->lines || !w->row) return NO_MEMORY;
    if (first_y > 0) jpeg_skip_scanlines(jpeg, (JDIMENSION)first_y);
    for (int y = 0; y < end_y - first_y;) {
        JSAMPROW line = w->lines + stride * (size_t)y;
        y += (int)jpeg_read_scanlines(jpeg, &line, 1);
    }
    memset(w->row + stride, 0, 4 * sizeof(float));
    resize(w->lines, stride, (int)x0, first_y, (int)width, &w->columns, &w->rows, size, flip, w->row, out);
    return DONE;
}

/* box: left, top, right, bottom of what becomes size x size pixels, in pixels of the image. clip: what may be looked at, the
 * same way. finest: the image is decoded at a smaller scale if the box has then at least finest * size pixels a side. */
int pycls_jpeg_cut(const uint8_t *data, size_t bytes, const double box[4], const int32_t clip[4], int32_t size, int32_t flip,
                   double finest, uint8_t *out, char *message) {
    struct work work;
    memset(&work, 0, sizeof work);
    work.jpeg.err = jpeg_std_error(&work.errors.base);
    work.errors.base.error_exit = fail;
    work.errors.base.emit_message = note;
    int ended = decode(&work, data, bytes, box, clip, size, flip, finest, out);
    if (ended != DONE) strcpy(message, ended == NO_MEMORY ? "out of memory" : work.errors.text);
    free(work.lines);
    free(work.row);
    free_taps(&work.columns);
    free_taps(&work.rows);
    jpeg_destroy_decompress(&work.jpeg);
    return ended;
}
