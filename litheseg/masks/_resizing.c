/* Weighted means of columns and of rows: the compiled form of `_resize` in `resizing`, for images of 3 bytes a pixel.

   Source rows are shortened (or stretched) one after the other into a ring that is as high as the filter of the rows,
   from which each row of the result is taken as soon as it is complete; so an image passes through once, and memory
   stays at a few rows. The interpreter's lock is released, and nothing outlives a call, so any number of threads may be
   inside.

   All sums are of integers, so their order changes nothing. Everything that is read or written lies inside buffers whose
   shapes, types and tables were checked before.

   Written against the stable ABI of Python 3.11: one file serves all later versions. */

#include "_buffers.h"

#include <stdint.h>
#include <stdlib.h>

#if defined(__x86_64__) || defined(_M_X64)
#define X86 1
#include <immintrin.h>
#endif

#define MARGIN 16 /* bytes after a row that may be read, and overwritten in buffers of our own */
#define MOST_FRACTIONAL_BITS 22

/* How an axis is resized: `resizing._Triangles`. Weights stand in pairs; the second of the last pair may lie one pixel
   beyond the image, and is 0 then. */
typedef struct {
    const int32_t *starts;
    const int16_t *weights;
    Py_ssize_t pixels;
    Py_ssize_t taps;
    int precision;
} Axis;

typedef struct {
    const uint8_t *source;
    Py_ssize_t strides[3];
    Py_ssize_t height;
    Py_ssize_t width;
    int contiguous;
    uint8_t *result; /* rows.pixels x columns.pixels x 3, contiguous */
    Axis columns;    /* taps is 0 where they stay as they are; likewise */
    Axis rows;
} Job;

/* Memory of a call. */
typedef struct {
    uint8_t *packed[2]; /* source rows, where they cannot be read in place */
    uint8_t *ring;      /* `slots` rows of the result's width, each with a margin */
    Py_ssize_t line;    /* bytes from one to the next */
    Py_ssize_t slots;
    const uint8_t **lines; /* rows.taps: what a row of the result is the mean of */
} Work;

typedef void (*Mixer)(const Axis *, const uint8_t *, const uint8_t *, uint8_t *, uint8_t *);

/* Columns: two rows at a time, which may be the same. */

#if defined(X86)
INLINE int32_t two_weights(const int16_t *weights)
{
    int32_t both;
    memcpy(&both, weights, sizeof(both));
    return both;
}

INLINE __m128i four_bytes(const uint8_t *bytes)
{
    int32_t four;
    memcpy(&four, bytes, sizeof(four));
    return _mm_cvtsi32_si128(four);
}

INLINE void store_pixel(uint8_t *to, __m128i sums, __m128i precision)
{
    const __m128i words = _mm_packs_epi32(_mm_sra_epi32(sums, precision), _mm_setzero_si128());
    const int32_t four = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
    memcpy(to, &four, sizeof(four));
}

INLINE void mix_row(const Axis *axis, const uint8_t *row, uint8_t *to)
{
    const __m128i half = _mm_set1_epi32(1 << (axis->precision - 1)), precision = _mm_cvtsi32_si128(axis->precision);
    const int16_t *weights = axis->weights;
    for (Py_ssize_t x = 0; x < axis->pixels; x++, weights += axis->taps) {
        const uint8_t *from = row + 3 * (Py_ssize_t)axis->starts[x];
        __m128i sums = half;
        for (Py_ssize_t tap = 0; tap < axis->taps; tap += 2, from += 6) {
            const __m128i bytes = _mm_unpacklo_epi8(four_bytes(from), four_bytes(from + 3));
            const __m128i words = _mm_unpacklo_epi8(bytes, _mm_setzero_si128());
            sums = _mm_add_epi32(sums, _mm_madd_epi16(words, _mm_set1_epi32(two_weights(weights + tap))));
        }
        store_pixel(to + 3 * x, sums, precision);
    }
}
#else
INLINE uint8_t narrow(int32_t sum, int precision)
{
    const int32_t value = sum >> precision;
    return (uint8_t)(value > 255 ? 255 : value);
}

INLINE void mix_row(const Axis *axis, const uint8_t *row, uint8_t *to)
{
    const int32_t half = 1 << (axis->precision - 1);
    const int16_t *weights = axis->weights;
    for (Py_ssize_t x = 0; x < axis->pixels; x++, weights += axis->taps) {
        const uint8_t *from = row + 3 * (Py_ssize_t)axis->starts[x];
        int32_t red = half, green = half, blue = half;
        for (Py_ssize_t tap = 0; tap < axis->taps; tap++, from += 3) {
            red += weights[tap] * from[0];
            green += weights[tap] * from[1];
            blue += weights[tap] * from[2];
        }
        to[3 * x] = narrow(red, axis->precision);
        to[3 * x + 1] = narrow(green, axis->precision);
        to[3 * x + 2] = narrow(blue, axis->precision);
    }
}
#endif

static void mix_columns_baseline(const Axis *axis, const uint8_t *row, const uint8_t *other, uint8_t *to,
                                 uint8_t *to_other)
{
    mix_row(axis, row, to);
    if (other != row)
        mix_row(axis, other, to_other);
}

/* Rows: `lines` have a margin, `to` has none. */

#if defined(X86)
INLINE void mix_lines(const int16_t *weights, const uint8_t *const *lines, Py_ssize_t taps, int fractional, uint8_t *to,
                      Py_ssize_t bytes)
{
    const __m128i half = _mm_set1_epi32(1 << (fractional - 1)), precision = _mm_cvtsi32_si128(fractional);
    const __m128i zero = _mm_setzero_si128();
    for (Py_ssize_t first = 0; first < bytes; first += 16) {
        __m128i a = half, b = half, c = half, d = half;
        for (Py_ssize_t tap = 0; tap < taps; tap += 2) {
            const __m128i both = _mm_set1_epi32(two_weights(weights + tap));
            const __m128i upper = _mm_loadu_si128((const __m128i *)(const void *)(lines[tap] + first));
            const __m128i lower = _mm_loadu_si128((const __m128i *)(const void *)(lines[tap + 1] + first));
            const __m128i left = _mm_unpacklo_epi8(upper, lower), right = _mm_unpackhi_epi8(upper, lower);
            a = _mm_add_epi32(a, _mm_madd_epi16(_mm_unpacklo_epi8(left, zero), both));
            b = _mm_add_epi32(b, _mm_madd_epi16(_mm_unpackhi_epi8(left, zero), both));
            c = _mm_add_epi32(c, _mm_madd_epi16(_mm_unpacklo_epi8(right, zero), both));
            d = _mm_add_epi32(d, _mm_madd_epi16(_mm_unpackhi_epi8(right, zero), both));
        }
        a = _mm_packs_epi32(_mm_sra_epi32(a, precision), _mm_sra_epi32(b, precision));
        c = _mm_packs_epi32(_mm_sra_epi32(c, precision), _mm_sra_epi32(d, precision));
        a = _mm_packus_epi16(a, c);
        if (first + 16 <= bytes)
            _mm_storeu_si128((__m128i *)(void *)(to + first), a);
        else
            memcpy(to + first, &a, (size_t)(bytes - first));
    }
}
#else
INLINE void mix_lines(const int16_t *weights, const uint8_t *const *lines, Py_ssize_t taps, int precision, uint8_t *to,
                      Py_ssize_t bytes)
{
    for (Py_ssize_t first = 0; first < bytes; first += 16) {
        uint8_t values[16];
        int32_t sums[16];
        for (int index = 0; index < 16; index++)
            sums[index] = 1 << (precision - 1);
        for (Py_ssize_t tap = 0; tap < taps; tap++) {
            const uint8_t *line = lines[tap] + first;
            for (int index = 0; index < 16; index++)
                sums[index] += (int32_t)weights[tap] * line[index];
        }
        for (int index = 0; index < 16; index++)
            values[index] = narrow(sums[index], precision);
        memcpy(to + first, values, (size_t)(bytes - first < 16 ? bytes - first : 16));
    }
}
#endif

/* Both */

/* A source row whose pixels lie one after the other, with a margin behind that may be read. */
INLINE const uint8_t *packed_row(const Job *job, uint8_t *RESTRICT buffer, Py_ssize_t row)
{
    const uint8_t *from = job->source + row * job->strides[0];
    const Py_ssize_t bytes = 3 * job->width;
    if (job->contiguous && (job->height - 1 - row) * bytes >= MARGIN)
        return from;
    if (job->strides[1] == 3 && job->strides[2] == 1)
        memcpy(buffer, from, (size_t)bytes);
    else
        for (Py_ssize_t x = 0; x < job->width; x++)
            for (Py_ssize_t channel = 0; channel < 3; channel++)
                buffer[3 * x + channel] = from[x * job->strides[1] + channel * job->strides[2]];
    return buffer;
}

/* Bring a source row and the one after it into the ring, resized to the width of the result. */
INLINE void load_two(const Job *job, const Work *work, Mixer mixer, Py_ssize_t row)
{
    const Py_ssize_t other = row + 1 < job->height ? row + 1 : row;
    uint8_t *to = work->ring + row % work->slots * work->line;
    uint8_t *to_other = work->ring + other % work->slots * work->line;
    const uint8_t *from = packed_row(job, work->packed[0], row);
    const uint8_t *from_other = other == row ? from : packed_row(job, work->packed[1], other);
    if (job->columns.taps) {
        mixer(&job->columns, from, from_other, to, to_other);
        return;
    }
    memcpy(to, from, (size_t)(3 * job->width));
    memcpy(to_other, from_other, (size_t)(3 * job->width));
}

INLINE void resample(const Job *job, const Work *work, Mixer mixer)
{
    const Py_ssize_t bytes = 3 * job->columns.pixels, taps = job->rows.taps;
    Py_ssize_t loaded = 0;
    for (Py_ssize_t y = 0; y < job->rows.pixels; y++) {
        const Py_ssize_t start = taps ? job->rows.starts[y] : y;
        const Py_ssize_t end = taps && start + taps < job->height ? start + taps : taps ? job->height : y + 1;
        for (loaded = loaded < start ? start : loaded; loaded < end; loaded += 2)
            load_two(job, work, mixer, loaded);
        if (!taps) {
            memcpy(job->result + y * bytes, work->ring + y % work->slots * work->line, (size_t)bytes);
            continue;
        }
        for (Py_ssize_t tap = 0; tap < taps; tap++) {
            const Py_ssize_t row = start + tap < job->height ? start + tap : job->height - 1;
            work->lines[tap] = work->ring + row % work->slots * work->line;
        }
        mix_lines(job->rows.weights + y * taps, work->lines, taps, job->rows.precision, job->result + y * bytes, bytes);
    }
}

typedef void (*Resampler)(const Job *, const Work *);

static void resample_baseline(const Job *job, const Work *work)
{
    resample(job, work, mix_columns_baseline);
}

#if defined(X86) && defined(__GNUC__)
/* Twice as wide as the baseline: one row in the lower half of the registers, the other in the upper half. */
__attribute__((target("avx2"))) static void mix_columns_avx2(const Axis *axis, const uint8_t *row, const uint8_t *other,
                                                             uint8_t *to, uint8_t *to_other)
{
    /* Of pixels 0 and 1 (2 and 3): red, red, green, green, blue, blue, as 16 bits each. */
    const __m256i first = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
    const __m256i second = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));
    const __m256i half = _mm256_set1_epi32(1 << (axis->precision - 1));
    const __m128i precision = _mm_cvtsi32_si128(axis->precision);
    const int16_t *weights = axis->weights;
    for (Py_ssize_t x = 0; x < axis->pixels; x++, weights += axis->taps) {
        Py_ssize_t offset = 3 * (Py_ssize_t)axis->starts[x], tap = 0;
        __m256i sums = half;
        for (; tap + 4 <= axis->taps; tap += 4, offset += 12) {
            const __m256i bytes = _mm256_inserti128_si256(
                _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)(row + offset))),
                _mm_loadu_si128((const __m128i *)(const void *)(other + offset)), 1);
            const __m256i low = _mm256_madd_epi16(_mm256_shuffle_epi8(bytes, first),
                                                  _mm256_set1_epi32(two_weights(weights + tap)));
            const __m256i high = _mm256_madd_epi16(_mm256_shuffle_epi8(bytes, second),
                                                   _mm256_set1_epi32(two_weights(weights + tap + 2)));
            sums = _mm256_add_epi32(sums, _mm256_add_epi32(low, high));
        }
        if (tap < axis->taps) {
            const __m256i bytes = _mm256_inserti128_si256(
                _mm256_castsi128_si256(_mm_loadl_epi64((const __m128i *)(const void *)(row + offset))),
                _mm_loadl_epi64((const __m128i *)(const void *)(other + offset)), 1);
            sums = _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_shuffle_epi8(bytes, first),
                                                            _mm256_set1_epi32(two_weights(weights + tap))));
        }
        store_pixel(to + 3 * x, _mm256_castsi256_si128(sums), precision);
        store_pixel(to_other + 3 * x, _mm256_extracti128_si256(sums, 1), precision);
    }
}

__attribute__((target("avx2"))) static void resample_avx2(const Job *job, const Work *work)
{
    resample(job, work, mix_columns_avx2);
}

static Resampler best_resampler(void)
{
    return __builtin_cpu_supports("avx2") ? resample_avx2 : resample_baseline;
}
#else
static Resampler best_resampler(void)
{
    return resample_baseline;
}
#endif

/* What comes from Python */

/* Check the tables of an axis of `old` pixels, or set an error and return 0. */
static int read_axis(Axis *axis, const Py_buffer *starts, const Py_buffer *weights, int precision, Py_ssize_t old,
                     const char *name)
{
    const Py_ssize_t taps = weights->shape[1];
    const int32_t *values = (const int32_t *)starts->buf;
    int good = starts->shape[0] == axis->pixels && weights->shape[0] == axis->pixels && taps > 0 && taps % 2 == 0 &&
               taps - 1 <= old && precision > 0 && precision <= MOST_FRACTIONAL_BITS;
    for (Py_ssize_t index = 0; good && index < axis->pixels; index++)
        good = values[index] >= (index ? values[index - 1] : 0) && values[index] <= old + 1 - taps;
    if (!good) {
        PyErr_Format(PyExc_ValueError, "%s: tables that do not turn %zd pixels into %zd", name, old, axis->pixels);
        return 0;
    }
    *axis = (Axis){values, (const int16_t *)weights->buf, axis->pixels, taps, precision};
    return 1;
}

/* `tables` is None, or (starts, weights, precision), whose buffers are taken into `views`. Returns 0 with an error set
   if something is off. */
static int take_axis(Axis *axis, PyObject *tables, Py_buffer *views, Py_ssize_t old, const char *name)
{
    const Wanted wanted[2] = {{name, 1, "il", sizeof(int32_t), READ}, {name, 2, "h", sizeof(int16_t), READ}};
    PyObject *arrays[2];
    int precision;
    if (tables == Py_None) {
        if (axis->pixels == old)
            return 1;
        PyErr_Format(PyExc_ValueError, "%s: no tables to turn %zd pixels into %zd", name, old, axis->pixels);
        return 0;
    }
    if (!PyTuple_Check(tables)) {
        PyErr_Format(PyExc_TypeError, "%s: give None or (starts, weights, precision)", name);
        return 0;
    }
    if (!PyArg_ParseTuple(tables, "OOi", &arrays[0], &arrays[1], &precision) || !take_all(arrays, views, wanted, 2))
        return 0;
    if (read_axis(axis, &views[0], &views[1], precision, old, name))
        return 1;
    release_all(views, 2);
    return 0;
}

/* Memory for a call in one piece, to be freed; NULL with an error set if there is none. */
static Work *make_work(const Job *job)
{
    const Py_ssize_t line = 3 * job->columns.pixels + MARGIN, packed = 3 * job->width + MARGIN;
    const Py_ssize_t slots = job->rows.taps + 2; /* rows come in twos: one may be there too early */
    const Py_ssize_t each = line + (Py_ssize_t)sizeof(const uint8_t *);
    Work *work = NULL;
    if (packed <= PY_SSIZE_T_MAX / 4 && each <= PY_SSIZE_T_MAX / 4 / slots)
        work = malloc(sizeof(Work) + (size_t)(2 * packed + slots * each));
    if (!work) {
        PyErr_NoMemory();
        return NULL;
    }
    work->line = line;
    work->slots = slots;
    work->lines = (const uint8_t **)(work + 1);
    work->ring = (uint8_t *)(work->lines + slots);
    work->packed[0] = work->ring + slots * line;
    work->packed[1] = work->packed[0] + packed;
    return work;
}

static int run(const Py_buffer *image, const Py_buffer *result, PyObject *columns, PyObject *rows)
{
    Job job = {(const uint8_t *)image->buf, {0}, image->shape[0], image->shape[1], 0, (uint8_t *)result->buf, {0}, {0}};
    Py_buffer views[4];
    memcpy(job.strides, image->strides, sizeof(job.strides));
    job.contiguous = PyBuffer_IsContiguous(image, 'C');
    job.columns.pixels = result->shape[1];
    job.rows.pixels = result->shape[0];
    if (image->shape[2] != 3 || result->shape[2] != 3 || job.height < 1 || job.width < 1 || job.rows.pixels < 1 ||
        job.columns.pixels < 1 || job.width > PY_SSIZE_T_MAX / 16) {
        PyErr_Format(PyExc_ValueError, "an image of %zd x %zd x %zd for a result of %zd x %zd x %zd", image->shape[0],
                     image->shape[1], image->shape[2], result->shape[0], result->shape[1], result->shape[2]);
        return 0;
    }
    if (!take_axis(&job.columns, columns, views, job.width, "columns"))
        return 0;
    int good = take_axis(&job.rows, rows, views + 2, job.height, "rows");
    if (good) {
        Work *work = make_work(&job);
        good = work != NULL;
        if (good) {
            Py_BEGIN_ALLOW_THREADS
            best_resampler()(&job, work);
            Py_END_ALLOW_THREADS
        }
        free(work);
        if (job.rows.taps)
            release_all(views + 2, 2);
    }
    if (job.columns.taps)
        release_all(views, 2);
    return good;
}

static PyObject *resize(PyObject *self, PyObject *args)
{
    (void)self;
    static const Wanted wanted[2] = {{"image", 3, "B", 1, READ_ANY}, {"result", 3, "B", 1, WRITE}};
    PyObject *arrays[2], *columns, *rows;
    Py_buffer views[2];
    if (!PyArg_ParseTuple(args, "OOOO", &arrays[0], &arrays[1], &columns, &rows) || !take_all(arrays, views, wanted, 2))
        return NULL;
    const int good = run(&views[0], &views[1], columns, rows);
    release_all(views, 2);
    if (!good)
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(resize_doc, "resize(image, result, columns, rows)\n--\n\n"
                         "Fill `result` (uint8 h w 3) with an image (uint8 H W 3); each axis is None or `_Triangles`.\n\n"
                         "Raises:\n    ValueError, BufferError, TypeError: buffers that do not fit together.\n");

DEFINE_MODULE(_resizing, resize, resize_doc)
