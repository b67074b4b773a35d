/* Labels from low-resolution logits: the compiled form of `upsampling_arrays.fill_labels`, for `upsampling`.

   Cell rows (the pixels between one row of samples and the next) are done one after the other. Two rows of samples are
   kept, class by class, which is the order that vector instructions like, whatever the layout of the logits. The
   interpreter's lock is released, and nothing outlives a call, so any number of threads may be inside.

   Products and sums are rounded one by one, in the order in which NumPy does it, so that labels are the same bit by bit:
   compile with -ffp-contract=off. Everything that is read or written lies inside buffers whose shapes, types and tables
   were checked before.

   Written against the stable ABI of Python 3.11: one file serves all later versions. */

#include "_buffers.h"

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#if defined(_MSC_VER)
#pragma fp_contract(off)
#endif
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

#define MAX_CLASSES 255

/* An axis of the image: `axes.Axis`, whose tables have been checked. */
typedef struct {
    const float *low;
    const float *high;
    const int64_t *starts;
    Py_ssize_t samples;
    Py_ssize_t pixels;
    Py_ssize_t step;
} Axis;

typedef struct {
    const char *logits;
    Py_ssize_t strides[4];
    Py_ssize_t classes;
    uint8_t *labels; /* N x H x W, contiguous */
    Axis rows;
    Axis columns;
} Job;

/* Memory of a call. */
typedef struct {
    float *values[2];    /* K x w: an even row of samples lies in 0, an odd one in 1 */
    int32_t *winners[2]; /* w: the first largest class of each sample; K where one is not finite */
    Py_ssize_t held[2];  /* which rows they are, counted through all images */
    float *best;         /* max(w, W) */
    int32_t *chosen;     /* W: of each pixel in a row of a cell */
    Py_ssize_t *mixed;   /* w: the cells of a row that have to be interpolated */
    float corners[4][MAX_CLASSES];
    float ends[2][MAX_CLASSES];
    int32_t options[MAX_CLASSES];
    int32_t beaten[MAX_CLASSES];
} Work;

INLINE void load_row(const Job *job, Py_ssize_t image, Py_ssize_t row, float *RESTRICT values, float *RESTRICT best,
                     int32_t *RESTRICT winners)
{
    const Py_ssize_t width = job->columns.samples, step = job->strides[3];
    const int32_t classes = (int32_t)job->classes;
    const char *from = job->logits + image * job->strides[0] + row * job->strides[2];
    for (int32_t label = 0; label < classes; label++, from += job->strides[1]) {
        if (step == (Py_ssize_t)sizeof(float))
            memcpy(values + label * width, from, (size_t)width * sizeof(float));
        else
            for (Py_ssize_t x = 0; x < width; x++)
                memcpy(values + label * width + x, from + x * step, sizeof(float));
    }
    memcpy(best, values, (size_t)width * sizeof(float));
    memset(winners, 0, (size_t)width * sizeof(int32_t));
    for (int32_t label = 1; label < classes; label++) {
        const float *RESTRICT value = values + label * width;
        for (Py_ssize_t x = 0; x < width; x++) {
            const int better = value[x] > best[x];
            best[x] = better ? value[x] : best[x];
            winners[x] = better ? label : winners[x];
        }
    }
    for (int32_t label = 0; label < classes; label++) {
        const float *RESTRICT value = values + label * width;
        for (Py_ssize_t x = 0; x < width; x++)
            winners[x] = fabsf(value[x]) <= FLT_MAX ? winners[x] : classes;
    }
}

/* Whether `value` takes the place of `best`. "Not smaller or equal" rather than "larger": not a number is the largest,
   and the first one of them. */
INLINE int wins(float value, float best)
{
    return !(value <= best) & (best == best);
}

/* Rows and columns are both copied: the largest class of each sample. */
INLINE void copy_row(const Job *job, const Work *work, int slot, uint8_t *RESTRICT labels)
{
    const Py_ssize_t width = job->columns.samples;
    for (Py_ssize_t x = 0; x < width; x++) {
        const float *value = work->values[slot] + x;
        int32_t winner = work->winners[slot][x];
        if (winner == job->classes) {
            winner = 0;
            for (int32_t label = 1; label < job->classes; label++)
                if (wins(value[label * width], value[winner * width]))
                    winner = label;
        }
        labels[x] = (uint8_t)winner;
    }
}

/* Fill a cell row with the winners of the upper left corners; list the cells that need more, and return how many. */
INLINE Py_ssize_t fill_row(const Job *job, const int32_t *RESTRICT above, const int32_t *RESTRICT below,
                           uint8_t *RESTRICT labels, Py_ssize_t height, Py_ssize_t *RESTRICT mixed)
{
    const int64_t *starts = job->columns.starts;
    const Py_ssize_t width = job->columns.samples, step = job->columns.step;
    Py_ssize_t count = 0;
    for (Py_ssize_t x = 0; x < width; x++) {
        if (starts[x] == starts[x + 1])
            continue;
        const Py_ssize_t after = x + step < width ? x + step : width - 1;
        const int32_t winner = above[x];
        memset(labels + starts[x], winner, (size_t)(starts[x + 1] - starts[x]));
        mixed[count] = x;
        count += (winner == job->classes) | (above[after] != winner) | (below[x] != winner) | (below[after] != winner);
    }
    for (Py_ssize_t y = 1; y < height; y++)
        memcpy(labels + y * job->columns.pixels, labels, (size_t)job->columns.pixels);
    return count;
}

/* List the classes that may win in a cell, ascending; return how many.

   A class stays out if another is larger at all four corners (or as large, and comes first): inside, both are the same
   averages of their corners. Only the winners of the corners can beat another so. */
INLINE int32_t list_options(Work *work, int32_t classes, const int32_t *four)
{
    int32_t *RESTRICT beaten = work->beaten;
    const float *RESTRICT one = work->corners[0], *RESTRICT two = work->corners[1];
    const float *RESTRICT three = work->corners[2], *RESTRICT fourth = work->corners[3];
    memset(beaten, 0, (size_t)classes * sizeof(int32_t));
    for (int index = 0; index < 4; index++) {
        const int32_t winner = four[index];
        int again = 0;
        for (int other = 0; other < index; other++)
            again |= four[other] == winner;
        if (again)
            continue;
        const float a = one[winner], b = two[winner], c = three[winner], d = fourth[winner];
        for (int32_t label = 0; label < classes; label++) {
            const int larger = (a > one[label]) & (b > two[label]) & (c > three[label]) & (d > fourth[label]);
            const int equal = (a >= one[label]) & (b >= two[label]) & (c >= three[label]) & (d >= fourth[label]);
            beaten[label] |= larger | (equal & (winner < label));
        }
    }
    int32_t count = 0;
    for (int32_t label = 0; label < classes; label++) {
        work->options[count] = label;
        count += 1 - beaten[label];
    }
    return count;
}

/* Label the pixels of a cell with the largest of the classes that may win. */
INLINE void fill_cell(const Job *job, Work *work, int32_t count, uint8_t *RESTRICT labels, Py_ssize_t top,
                      Py_ssize_t bottom, Py_ssize_t start, Py_ssize_t end)
{
    const Py_ssize_t width = end - start;
    const float *RESTRICT left = job->columns.low + start, *RESTRICT right = job->columns.high + start;
    const int32_t *RESTRICT options = work->options;
    float *RESTRICT best = work->best;
    int32_t *RESTRICT chosen = work->chosen;
    for (Py_ssize_t y = top; y < bottom; y++) {
        const float low = job->rows.low[y], high = job->rows.high[y];
        uint8_t *RESTRICT line = labels + y * job->columns.pixels + start;
        for (int32_t index = 0; index < count; index++) {
            const int32_t label = options[index];
            work->ends[0][index] = work->corners[0][label] * low + work->corners[2][label] * high;
            work->ends[1][index] = work->corners[1][label] * low + work->corners[3][label] * high;
        }
        for (Py_ssize_t x = 0; x < width; x++) {
            best[x] = work->ends[0][0] * left[x] + work->ends[1][0] * right[x];
            chosen[x] = options[0];
        }
        for (int32_t index = 1; index < count; index++) {
            const float a = work->ends[0][index], b = work->ends[1][index];
            const int32_t label = options[index];
            for (Py_ssize_t x = 0; x < width; x++) {
                const float value = a * left[x] + b * right[x];
                const int better = wins(value, best[x]);
                best[x] = better ? value : best[x];
                chosen[x] = better ? label : chosen[x];
            }
        }
        for (Py_ssize_t x = 0; x < width; x++)
            line[x] = (uint8_t)chosen[x];
    }
}

INLINE void fill_cells(const Job *job, Work *work, int up, int down, uint8_t *labels, Py_ssize_t row, Py_ssize_t count)
{
    const Py_ssize_t width = job->columns.samples;
    const int32_t classes = (int32_t)job->classes;
    const int64_t *starts = job->columns.starts;
    for (Py_ssize_t entry = 0; entry < count; entry++) {
        const Py_ssize_t x = work->mixed[entry];
        const Py_ssize_t right = x + job->columns.step < width ? x + job->columns.step : width - 1;
        const float *above = work->values[up], *below = work->values[down];
        for (int32_t label = 0; label < classes; label++) {
            work->corners[0][label] = above[label * width + x];
            work->corners[1][label] = above[label * width + right];
            work->corners[2][label] = below[label * width + x];
            work->corners[3][label] = below[label * width + right];
        }
        const int32_t four[4] = {work->winners[up][x], work->winners[up][right], work->winners[down][x],
                                 work->winners[down][right]};
        int32_t options = classes;
        if (four[0] == classes || four[1] == classes || four[2] == classes || four[3] == classes)
            for (int32_t label = 0; label < classes; label++)
                work->options[label] = label;
        else
            options = list_options(work, classes, four);
        fill_cell(job, work, options, labels, job->rows.starts[row], job->rows.starts[row + 1], starts[x], starts[x + 1]);
    }
}

INLINE void fill(const Job *job, Work *work, Py_ssize_t first, Py_ssize_t last)
{
    const Py_ssize_t height = job->rows.samples, line = job->columns.pixels;
    for (Py_ssize_t cell_row = first; cell_row < last; cell_row++) {
        const Py_ssize_t image = cell_row / height, row = cell_row % height;
        const Py_ssize_t top = job->rows.starts[row], bottom = job->rows.starts[row + 1];
        uint8_t *labels = job->labels + image * job->rows.pixels * line;
        if (top == bottom)
            continue;
        const Py_ssize_t after = row + job->rows.step < height ? row + job->rows.step : height - 1;
        const Py_ssize_t both[2] = {row, after};
        for (int index = 0; index < 2; index++) {
            const int slot = both[index] & 1;
            if (work->held[slot] != image * height + both[index]) {
                load_row(job, image, both[index], work->values[slot], work->best, work->winners[slot]);
                work->held[slot] = image * height + both[index];
            }
        }
        const int up = row & 1, down = after & 1;
        if (!job->rows.step && !job->columns.step) {
            copy_row(job, work, up, labels + top * line);
            continue;
        }
        const Py_ssize_t count =
            fill_row(job, work->winners[up], work->winners[down], labels + top * line, bottom - top, work->mixed);
        fill_cells(job, work, up, down, labels, row, count);
    }
}

/* The same code twice: every x86 processor has 4 lanes, most have 8. */

typedef void (*Filler)(const Job *, Work *, Py_ssize_t, Py_ssize_t);

static void fill_baseline(const Job *job, Work *work, Py_ssize_t first, Py_ssize_t last)
{
    fill(job, work, first, last);
}

#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("avx2"))) static void fill_avx2(const Job *job, Work *work, Py_ssize_t first, Py_ssize_t last)
{
    fill(job, work, first, last);
}

static Filler best_filler(void)
{
    return __builtin_cpu_supports("avx2") ? fill_avx2 : fill_baseline;
}
#else
static Filler best_filler(void)
{
    return fill_baseline;
}
#endif

/* What comes from Python */

/* Check that the tables of an axis belong together, or set an error and return 0. */
static int read_axis(Axis *axis, const Py_buffer *views, const char *name, Py_ssize_t samples, Py_ssize_t pixels,
                     int step)
{
    const int64_t *starts = (const int64_t *)views[2].buf;
    int good = views[0].shape[0] == pixels && views[1].shape[0] == pixels && views[2].shape[0] == samples + 1 &&
               starts[0] == 0 && starts[samples] == pixels && (step == 1 || (step == 0 && samples == pixels));
    for (Py_ssize_t sample = 0; good && sample < samples; sample++)
        good = starts[sample] <= starts[sample + 1] && (step || starts[sample] == sample);
    if (!good) {
        PyErr_Format(PyExc_ValueError, "%s: tables that do not belong to %zd samples and %zd pixels", name, samples,
                     pixels);
        return 0;
    }
    *axis = (Axis){(const float *)views[0].buf, (const float *)views[1].buf, starts, samples, pixels, step};
    return 1;
}

/* Memory for a call in one piece, to be freed; NULL with an error set if there is none. */
static Work *make_work(const Job *job)
{
    const Py_ssize_t width = job->columns.samples, pixels = job->columns.pixels;
    const Py_ssize_t longest = width > pixels ? width : pixels;
    const Py_ssize_t fixed = (Py_ssize_t)sizeof(Work), each = (Py_ssize_t)(sizeof(float) * (2 * (size_t)job->classes + 4));
    if (longest > (PY_SSIZE_T_MAX - fixed) / (each + (Py_ssize_t)sizeof(Py_ssize_t))) {
        PyErr_NoMemory();
        return NULL;
    }
    Work *work = malloc((size_t)(fixed + longest * (each + (Py_ssize_t)sizeof(Py_ssize_t))));
    if (!work) {
        PyErr_NoMemory();
        return NULL;
    }
    work->mixed = (Py_ssize_t *)(work + 1);
    work->values[0] = (float *)(work->mixed + longest);
    work->values[1] = work->values[0] + job->classes * width;
    work->best = work->values[1] + job->classes * width;
    work->winners[0] = (int32_t *)(work->best + longest);
    work->winners[1] = work->winners[0] + longest;
    work->chosen = work->winners[1] + longest;
    work->held[0] = work->held[1] = -1;
    return work;
}

/* Check everything, then do the work without the interpreter's lock. Returns 0 with an error set if something is off. */
static int run(const Py_buffer *logits, const Py_buffer *labels, const Py_buffer *tables, int down, int across,
               Py_ssize_t first, Py_ssize_t last)
{
    const Py_ssize_t *shape = logits->shape;
    Job job = {(const char *)logits->buf, {0}, shape[1], (uint8_t *)labels->buf, {0}, {0}};
    memcpy(job.strides, logits->strides, sizeof(job.strides));
    if (shape[1] < 1 || shape[1] > MAX_CLASSES || shape[2] < 1 || shape[3] < 1 || labels->shape[0] != shape[0]) {
        PyErr_Format(PyExc_ValueError, "logits: %zd x %zd x %zd x %zd for %zd images of labels", shape[0], shape[1],
                     shape[2], shape[3], labels->shape[0]);
        return 0;
    }
    if (!read_axis(&job.rows, tables, "rows", shape[2], labels->shape[1], down) ||
        !read_axis(&job.columns, tables + 3, "columns", shape[3], labels->shape[2], across))
        return 0;
    if (first < 0 || first > last || (last && (last - 1) / shape[2] >= shape[0])) {
        PyErr_Format(PyExc_ValueError, "cell rows %zd to %zd of %zd x %zd", first, last, shape[0], shape[2]);
        return 0;
    }
    Work *work = make_work(&job);
    if (!work)
        return 0;
    Py_BEGIN_ALLOW_THREADS
    best_filler()(&job, work, first, last);
    Py_END_ALLOW_THREADS
    free(work);
    return 1;
}

static PyObject *fill_labels(PyObject *self, PyObject *args)
{
    (void)self;
    static const Wanted wanted[8] = {
        {"logits", 4, "f", 4, READ_ANY},     {"labels", 3, "B", 1, WRITE},     {"rows.low", 1, "f", 4, READ},
        {"rows.high", 1, "f", 4, READ},      {"rows.starts", 1, "lq", 8, READ}, {"columns.low", 1, "f", 4, READ},
        {"columns.high", 1, "f", 4, READ},   {"columns.starts", 1, "lq", 8, READ},
    };
    PyObject *arrays[8], *ignored;
    Py_buffer views[8];
    int down, across;
    Py_ssize_t first, last;
    if (!PyArg_ParseTuple(args, "OO(OOOOi)(OOOOi)nn", &arrays[0], &arrays[1], &ignored, &arrays[2], &arrays[3],
                          &arrays[4], &down, &ignored, &arrays[5], &arrays[6], &arrays[7], &across, &first, &last) ||
        !take_all(arrays, views, wanted, 8))
        return NULL;
    const int good = run(&views[0], &views[1], views + 2, down, across, first, last);
    release_all(views, 8);
    if (!good)
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(fill_labels_doc, "fill_labels(logits, labels, rows, columns, first, last)\n--\n\n"
                              "Label the pixels of some cell rows, as `upsampling_arrays.fill_labels` does.\n\n"
                              "Raises:\n    ValueError, BufferError, TypeError: buffers that do not fit together.\n");

DEFINE_MODULE(_upsampling, fill_labels, fill_labels_doc)
