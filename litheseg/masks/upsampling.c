/* Labels from low-resolution logits: the compiled form of `litheseg.masks.upsampling_arrays.fill_labels`. It is what
   litheseg's extension runs, and needs no Python: a program in C or C++ compiles this file (-O3 -ffp-contract=off) and
   calls what upsampling.h declares.

   Cell rows (the pixels between one row of samples and the next) are done one after the other. Two rows of samples are
   kept, class by class, which is the order that vector instructions like, whatever the layout of the logits. Nothing
   outlives a call, so any number of threads may be inside.

   Products and sums are rounded one by one, in the order in which NumPy does it, so that labels are the same bit by bit:
   compile with -ffp-contract=off. */

#include "upsampling.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined(_MSC_VER)
#pragma fp_contract(off)
#endif
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

#if !defined(INLINE) /* the extension has them already */
#if defined(_MSC_VER)
#define INLINE static __forceinline
#define RESTRICT __restrict
#else
#define INLINE static inline __attribute__((always_inline))
#define RESTRICT restrict
#endif
#endif

#define MAX_CLASSES 255

/* An axis of the image: `litheseg.masks.axes.Axis`, whose tables belong together. */
typedef struct {
    const float *low;
    const float *high;
    const int64_t *starts;
    ptrdiff_t samples;
    ptrdiff_t pixels;
    ptrdiff_t step;
} Axis;

typedef struct {
    const char *logits;
    ptrdiff_t strides[4];
    ptrdiff_t classes;
    uint8_t *labels; /* N x H x W, contiguous */
    Axis rows;
    Axis columns;
} Job;

/* Memory of a call. */
typedef struct {
    float *values[2];    /* K x w: an even row of samples lies in 0, an odd one in 1 */
    int32_t *winners[2]; /* w: the first largest class of each sample; K where one is not finite */
    ptrdiff_t held[2];  /* which rows they are, counted through all images */
    float *best;         /* max(w, W) */
    int32_t *chosen;     /* W: of each pixel in a row of a cell */
    ptrdiff_t *mixed;   /* w: the cells of a row that have to be interpolated */
    float corners[4][MAX_CLASSES];
    float ends[2][MAX_CLASSES];
    int32_t options[MAX_CLASSES];
    int32_t beaten[MAX_CLASSES];
} Work;

INLINE void load_row(const Job *job, ptrdiff_t image, ptrdiff_t row, float *RESTRICT values, float *RESTRICT best,
                     int32_t *RESTRICT winners)
{
    const ptrdiff_t width = job->columns.samples, step = job->strides[3];
    const int32_t classes = (int32_t)job->classes;
    const char *from = job->logits + image * job->strides[0] + row * job->strides[2];
    for (int32_t label = 0; label < classes; label++, from += job->strides[1]) {
        if (step == (ptrdiff_t)sizeof(float))
            memcpy(values + label * width, from, (size_t)width * sizeof(float));
        else
            for (ptrdiff_t x = 0; x < width; x++)
                memcpy(values + label * width + x, from + x * step, sizeof(float));
    }
    memcpy(best, values, (size_t)width * sizeof(float));
    memset(winners, 0, (size_t)width * sizeof(int32_t));
    for (int32_t label = 1; label < classes; label++) {
        const float *RESTRICT value = values + label * width;
        for (ptrdiff_t x = 0; x < width; x++) {
            const int better = value[x] > best[x];
            best[x] = better ? value[x] : best[x];
            winners[x] = better ? label : winners[x];
        }
    }
    for (int32_t label = 0; label < classes; label++) {
        const float *RESTRICT value = values + label * width;
        for (ptrdiff_t x = 0; x < width; x++)
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
    const ptrdiff_t width = job->columns.samples;
    for (ptrdiff_t x = 0; x < width; x++) {
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
INLINE ptrdiff_t fill_row(const Job *job, const int32_t *RESTRICT above, const int32_t *RESTRICT below,
                           uint8_t *RESTRICT labels, ptrdiff_t height, ptrdiff_t *RESTRICT mixed)
{
    const int64_t *starts = job->columns.starts;
    const ptrdiff_t width = job->columns.samples, step = job->columns.step;
    ptrdiff_t count = 0;
    for (ptrdiff_t x = 0; x < width; x++) {
        if (starts[x] == starts[x + 1])
            continue;
        const ptrdiff_t after = x + step < width ? x + step : width - 1;
        const int32_t winner = above[x];
        memset(labels + starts[x], winner, (size_t)(starts[x + 1] - starts[x]));
        mixed[count] = x;
        count += (winner == job->classes) | (above[after] != winner) | (below[x] != winner) | (below[after] != winner);
    }
    for (ptrdiff_t y = 1; y < height; y++)
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
INLINE void fill_cell(const Job *job, Work *work, int32_t count, uint8_t *RESTRICT labels, ptrdiff_t top,
                      ptrdiff_t bottom, ptrdiff_t start, ptrdiff_t end)
{
    const ptrdiff_t width = end - start;
    const float *RESTRICT left = job->columns.low + start, *RESTRICT right = job->columns.high + start;
    const int32_t *RESTRICT options = work->options;
    float *RESTRICT best = work->best;
    int32_t *RESTRICT chosen = work->chosen;
    for (ptrdiff_t y = top; y < bottom; y++) {
        const float low = job->rows.low[y], high = job->rows.high[y];
        uint8_t *RESTRICT line = labels + y * job->columns.pixels + start;
        for (int32_t index = 0; index < count; index++) {
            const int32_t label = options[index];
            work->ends[0][index] = work->corners[0][label] * low + work->corners[2][label] * high;
            work->ends[1][index] = work->corners[1][label] * low + work->corners[3][label] * high;
        }
        for (ptrdiff_t x = 0; x < width; x++) {
            best[x] = work->ends[0][0] * left[x] + work->ends[1][0] * right[x];
            chosen[x] = options[0];
        }
        for (int32_t index = 1; index < count; index++) {
            const float a = work->ends[0][index], b = work->ends[1][index];
            const int32_t label = options[index];
            for (ptrdiff_t x = 0; x < width; x++) {
                const float value = a * left[x] + b * right[x];
                const int better = wins(value, best[x]);
                best[x] = better ? value : best[x];
                chosen[x] = better ? label : chosen[x];
            }
        }
        for (ptrdiff_t x = 0; x < width; x++)
            line[x] = (uint8_t)chosen[x];
    }
}

INLINE void fill_cells(const Job *job, Work *work, int up, int down, uint8_t *labels, ptrdiff_t row, ptrdiff_t count)
{
    const ptrdiff_t width = job->columns.samples;
    const int32_t classes = (int32_t)job->classes;
    const int64_t *starts = job->columns.starts;
    for (ptrdiff_t entry = 0; entry < count; entry++) {
        const ptrdiff_t x = work->mixed[entry];
        const ptrdiff_t right = x + job->columns.step < width ? x + job->columns.step : width - 1;
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

INLINE void fill(const Job *job, Work *work, ptrdiff_t first, ptrdiff_t last)
{
    const ptrdiff_t height = job->rows.samples, line = job->columns.pixels;
    for (ptrdiff_t cell_row = first; cell_row < last; cell_row++) {
        const ptrdiff_t image = cell_row / height, row = cell_row % height;
        const ptrdiff_t top = job->rows.starts[row], bottom = job->rows.starts[row + 1];
        uint8_t *labels = job->labels + image * job->rows.pixels * line;
        if (top == bottom)
            continue;
        const ptrdiff_t after = row + job->rows.step < height ? row + job->rows.step : height - 1;
        const ptrdiff_t both[2] = {row, after};
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
        const ptrdiff_t count =
            fill_row(job, work->winners[up], work->winners[down], labels + top * line, bottom - top, work->mixed);
        fill_cells(job, work, up, down, labels, row, count);
    }
}

/* The same code twice: every x86 processor has 4 lanes, most have 8. */

typedef void (*Filler)(const Job *, Work *, ptrdiff_t, ptrdiff_t);

static void fill_baseline(const Job *job, Work *work, ptrdiff_t first, ptrdiff_t last)
{
    fill(job, work, first, last);
}

#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("avx2"))) static void fill_avx2(const Job *job, Work *work, ptrdiff_t first, ptrdiff_t last)
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

/* Memory for a call in one piece, to be freed; NULL if there is none. */
static Work *make_work(const Job *job)
{
    const ptrdiff_t width = job->columns.samples, pixels = job->columns.pixels;
    const ptrdiff_t longest = width > pixels ? width : pixels;
    const ptrdiff_t fixed = (ptrdiff_t)sizeof(Work), each = (ptrdiff_t)(sizeof(float) * (2 * (size_t)job->classes + 4));
    if (longest > (PTRDIFF_MAX - fixed) / (each + (ptrdiff_t)sizeof(ptrdiff_t)))
        return NULL;
    Work *work = malloc((size_t)(fixed + longest * (each + (ptrdiff_t)sizeof(ptrdiff_t))));
    if (!work)
        return NULL;
    work->mixed = (ptrdiff_t *)(work + 1);
    work->values[0] = (float *)(work->mixed + longest);
    work->values[1] = work->values[0] + job->classes * width;
    work->best = work->values[1] + job->classes * width;
    work->winners[0] = (int32_t *)(work->best + longest);
    work->winners[1] = work->winners[0] + longest;
    work->chosen = work->winners[1] + longest;
    work->held[0] = work->held[1] = -1;
    return work;
}

/* Fill the tables of an axis as `litheseg.masks.axes.axis_of` does. */
static Axis axis_of(float *low, float *high, int64_t *starts, ptrdiff_t samples, ptrdiff_t pixels)
{
    ptrdiff_t begun = 0;
    for (ptrdiff_t pixel = 0; pixel < pixels; pixel++) {
        const int64_t place = (2 * (int64_t)pixel + 1) * samples - pixels, position = place > 0 ? place : 0;
        const int64_t cell = position / (2 * (int64_t)pixels), lower = cell < samples ? cell : samples - 1;
        high[pixel] = (float)((double)position / (double)(2 * (int64_t)pixels) - (double)lower);
        low[pixel] = 1.0f - high[pixel];
        while (begun <= lower)
            starts[begun++] = pixel;
    }
    while (begun <= samples)
        starts[begun++] = pixels;
    const Axis axis = {low, high, starts, samples, pixels, samples != pixels};
    return axis;
}

int litheseg_upsample_labels(const float *logits, int classes, int height, int width, size_t class_stride,
                             uint8_t *labels, int rows, int columns)
{
    if (classes < 1 || classes > MAX_CLASSES || height < 1 || width < 1 || rows < 1 || columns < 1)
        return -1;
    const size_t longest = (size_t)rows + (size_t)columns, cells = (size_t)height + (size_t)width + 2;
    int64_t *starts = malloc(cells * sizeof(int64_t) + 2 * longest * sizeof(float));
    if (!starts)
        return -1;
    float *weights = (float *)(starts + cells);
    Job job = {(const char *)logits, {0}, classes, labels, {0}, {0}};
    job.strides[1] = (ptrdiff_t)(class_stride * sizeof(float));
    job.strides[2] = (ptrdiff_t)((size_t)width * sizeof(float));
    job.strides[3] = (ptrdiff_t)sizeof(float);
    job.rows = axis_of(weights, weights + rows, starts, height, rows);
    weights += 2 * (size_t)rows;
    job.columns = axis_of(weights, weights + columns, starts + height + 1, width, columns);
    Work *work = make_work(&job);
    if (work)
        best_filler()(&job, work, 0, height);
    free(work);
    free(starts);
    return work ? 0 : -1;
}
