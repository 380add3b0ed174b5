/* A square crop of a JPEG, resized: no more is decoded than the crop needs.
 *
 * libjpeg-turbo leaves out blocks left and right of the crop (jpeg_crop_scanline), the colour conversion and inverse DCT of
 * the lines above it (jpeg_skip_scanlines), and everything below. The rest is bilinear resizing with antialiasing, in Pillow's
 * definition: a triangle filter whose support grows with the scale, weights that sum to 1. The scaled inverse DCT is not used:
 * it keeps other frequencies, up to ten grey levels on average, and saves little, for most of the time is Huffman decoding.
 *
 * Only kinds of files for which libjpeg-turbo does all this exactly are decoded here; all others, and every file
 * that it warns of, is left to Pillow.
 *
 * Compiled and called by pycls/data/images/jpeg_decoder.py. Thread-safe; holds no state.
 */
#define _GNU_SOURCE /* memmem */
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <jpeglib.h>

enum { DONE, UNSUPPORTED }; /* UNSUPPORTED: Pillow decodes it */

#define CHROMA_MARGIN 2 /* columns beside the crop that smooth chroma upsampling looks at */

struct errors {
    struct jpeg_error_mgr base;
    jmp_buf leave;
};

static void leave(j_common_ptr info) { longjmp(((struct errors *)info->err)->leave, 1); }

static void note(j_common_ptr info, int level) { /* versions of libjpeg differ in what they make of damage */
    if (level < 0) leave(info);
}

static void make_errors(struct jpeg_decompress_struct *jpeg, struct errors *errors) {
    jpeg->err = jpeg_std_error(&errors->base);
    errors->base.error_exit = leave;
    errors->base.emit_message = note;
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

enum { UPRIGHT, NO_ORIENTATION, MAYBE_ROTATED };

/* The orientation in an EXIF segment; MAYBE_ROTATED is also for one that is damaged or unusual. */
static int exif_orientation(const uint8_t *tiff, uint32_t size) {
    if (size < 10 || (memcmp(tiff, "II*\0", 4) && memcmp(tiff, "MM\0*", 4))) return MAYBE_ROTATED;
    int little = tiff[0] == 'I', orientation = NO_ORIENTATION;
    uint32_t at = word(tiff + 4, 4, little);
    if (at > size - 2) return MAYBE_ROTATED;
    uint32_t entries = word(tiff + at, 2, little);
    for (uint32_t i = 0; i < entries; i++) {
        uint64_t place = (uint64_t)at + 2 + 12 * (uint64_t)i;
        if (place + 12 > size) return MAYBE_ROTATED;
        if (word(tiff + place, 2, little) != 0x0112) continue;
        uint32_t type = word(tiff + place + 2, 2, little), count = word(tiff + place + 4, 4, little);
        uint32_t value = word(tiff + place + 8, 2, little);
        if (type != 3 || count != 1 || (value >= 2 && value <= 8)) return MAYBE_ROTATED;
        orientation = UPRIGHT;
    }
    return orientation;
}

/* Whether the image is surely stored upright. Where EXIF has no orientation, XMP may have one. */
static int is_upright(const struct jpeg_decompress_struct *jpeg) {
    int orientation = NO_ORIENTATION, exifs = 0, xmp = 0;
    for (jpeg_saved_marker_ptr m = jpeg->marker_list; m; m = m->next) {
        if (m->data_length >= 6 && !memcmp(m->data, "Exif\0\0", 6)) {
            orientation = exif_orientation(m->data + 6, m->data_length - 6);
            exifs++;
        } else if (memmem(m->data, m->data_length, "tiff:Orientation", 16)) {
            xmp = 1;
        }
    }
    return exifs <= 1 && orientation != MAYBE_ROTATED && (orientation == UPRIGHT || !xmp);
}

/* Huffman-coded baseline or progressive, and neither lossless nor arithmetic-coded, which some libjpegs read as well. */
static int is_usual_frame(const uint8_t *data, size_t size) {
    for (size_t at = 2; at + 4 <= size && data[at] == 0xFF; at += 2 + (size_t)word(data + at + 2, 2, 0)) {
        int marker = data[at + 1];
        if (marker < 0xC0 || (marker >= 0xD0 && marker <= 0xD9) || marker == 0xFF) return 0; /* no length follows */
        if (marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC)
            return marker == 0xC0 || marker == 0xC2;
    }
    return 0;
}

/* Grey, 4:4:4, 4:2:2 and 4:2:0. For others the versions of libjpeg-turbo have different pixels, also where they crop. */
static int has_usual_factors(const struct jpeg_decompress_struct *jpeg) {
    const jpeg_component_info *c = jpeg->comp_info;
    for (int i = 1; i < jpeg->num_components; i++)
        if (c[i].h_samp_factor != 1 || c[i].v_samp_factor != 1) return 0;
    if (jpeg->jpeg_color_space == JCS_GRAYSCALE)
        return jpeg->num_components == 1 && c->h_samp_factor == 1 && c->v_samp_factor == 1;
    return jpeg->jpeg_color_space == JCS_YCbCr && jpeg->num_components == 3 && c->h_samp_factor <= 2 &&
           c->v_samp_factor <= c->h_samp_factor;
}

static int is_supported(struct jpeg_decompress_struct *jpeg, const uint8_t *data, size_t size) {
    return is_usual_frame(data, size) && jpeg->data_precision == 8 && has_usual_factors(jpeg) &&
           (jpeg->progressive_mode || !jpeg_has_multiple_scans(jpeg)) && is_upright(jpeg);
}

/* Whether all scans of a progressive image are there: what is missing is smoothed over, by each version in its own way. */
static int is_complete(const struct jpeg_decompress_struct *jpeg) {
    if (!jpeg->progressive_mode) return 1;
    for (int i = 0; i < jpeg->num_components; i++)
        for (int k = 0; k < DCTSIZE2; k++)
            if (jpeg->coef_bits[i][k] != 0) return 0;
    return 1;
}

/* shape: width and height. */
int pycls_jpeg_shape(const uint8_t *data, size_t size, int32_t shape[2]) {
    struct jpeg_decompress_struct jpeg;
    struct errors errors;
    if (size < 4 || data[size - 2] != 0xFF || data[size - 1] != 0xD9) return UNSUPPORTED; /* cut off, or something follows */
    memset(&jpeg, 0, sizeof jpeg);
    make_errors(&jpeg, &errors);
    if (setjmp(errors.leave)) {
        jpeg_destroy_decompress(&jpeg);
        return UNSUPPORTED;
    }
    open_jpeg(&jpeg, data, size);
    int supported = is_supported(&jpeg, data, size);
    shape[0] = (int32_t)jpeg.image_width;
    shape[1] = (int32_t)jpeg.image_height;
    jpeg_destroy_decompress(&jpeg);
    return supported ? DONE : UNSUPPORTED;
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
                  int flip, uint8_t *out) {
    struct jpeg_decompress_struct *jpeg = &w->jpeg;
    if (setjmp(w->errors.leave)) return UNSUPPORTED;
    open_jpeg(jpeg, data, bytes);
    jpeg->out_color_space = JCS_RGB;
    jpeg_start_decompress(jpeg);
    if (!is_complete(jpeg)) return UNSUPPORTED;
    if (!make_taps(&w->columns, box[0], box[2], clip[0], clip[2], size) ||
        !make_taps(&w->rows, box[1], box[3], clip[1], clip[3], size))
        return UNSUPPORTED;
    int first_x = w->columns.first[0], end_x = w->columns.first[size - 1] + w->columns.count[size - 1];
    int first_y = w->rows.first[0], end_y = w->rows.first[size - 1] + w->rows.count[size - 1];
    JDIMENSION x0 = (JDIMENSION)(first_x > CHROMA_MARGIN ? first_x - CHROMA_MARGIN : 0);
    JDIMENSION x1 = (JDIMENSION)end_x + CHROMA_MARGIN, width = (x1 < jpeg->output_width ? x1 : jpeg->output_width) - x0;
    if (width < jpeg->output_width) jpeg_crop_scanline(jpeg, &x0, &width);
    size_t stride = (size_t)width * 3;
    w->lines = malloc(stride * (size_t)(end_y - first_y));
    w->row = malloc((stride + 4) * sizeof(float));
    if (!w->lines || !w->row) return UNSUPPORTED;
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
 * same way, within the image. Only of files that have a shape. */
int pycls_jpeg_crop(const uint8_t *data, size_t bytes, const double box[4], const int32_t clip[4], int32_t size, int32_t flip,
                   uint8_t *out) {
    struct work work;
    memset(&work, 0, sizeof work);
    make_errors(&work.jpeg, &work.errors);
    int ended = decode(&work, data, bytes, box, clip, size, flip, out);
    free(work.lines);
    free(work.row);
    free_taps(&work.columns);
    free_taps(&work.rows);
    jpeg_destroy_decompress(&work.jpeg);
    return ended;
}
