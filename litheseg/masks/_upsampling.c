/* Labels from low-resolution logits for Python: checks what comes from there, and lets upsampling.c do the work without
   the interpreter's lock. Everything that is read or written lies inside buffers whose shapes, types and tables were
   checked before.

   Written against the stable ABI of Python 3.11: one file serves all later versions. */

#include "_buffers.h"
#include "upsampling.c"

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
    if (!work) {
        PyErr_NoMemory();
        return 0;
    }
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
