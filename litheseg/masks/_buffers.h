/* What both extensions share: how arrays of Python become buffers, and how a module of one function is made. */

#ifndef LITHESEG_BUFFERS_H
#define LITHESEG_BUFFERS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string.h>

#if defined(_MSC_VER)
#define INLINE static __forceinline
#define RESTRICT __restrict
#else
#define INLINE static inline __attribute__((always_inline))
#define RESTRICT restrict
#endif

#define READ_ANY PyBUF_STRIDES
#define READ PyBUF_C_CONTIGUOUS
#define WRITE (PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)

/* What an array must be: one of `formats`, in native byte order. */
typedef struct {
    const char *name;
    int dimensions;
    const char *formats;
    Py_ssize_t itemsize;
    int flags; /* READ_ANY, READ or WRITE */
} Wanted;

static void release_all(Py_buffer *views, int count)
{
    while (count)
        PyBuffer_Release(&views[--count]);
}

/* Take the buffers of all arrays, or set an error, take none and return 0. */
static int take_all(PyObject *const *arrays, Py_buffer *views, const Wanted *wanted, int count)
{
    for (int taken = 0; taken < count; taken++) {
        const Wanted *want = &wanted[taken];
        Py_buffer *view = &views[taken];
        if (PyObject_GetBuffer(arrays[taken], view, want->flags | PyBUF_FORMAT) < 0) {
            release_all(views, taken);
            return 0;
        }
        const char *format = view->format ? view->format : "B";
        if (view->ndim != want->dimensions || view->itemsize != want->itemsize || !format[0] || format[1] ||
            !strchr(want->formats, format[0])) {
            PyErr_Format(PyExc_ValueError, "%s: %d dimensions of type '%s'; give %d of one of '%s', native", want->name,
                         view->ndim, format, want->dimensions, want->formats);
            release_all(views, taken + 1);
            return 0;
        }
    }
    return 1;
}

/* The Python module of an extension: `function` is a C function as METH_VARARGS wants it. */
#ifdef Py_GIL_DISABLED
#define MODULE_SLOTS {Py_mod_gil, Py_MOD_GIL_NOT_USED}, {0, NULL}
#else
#define MODULE_SLOTS {0, NULL}
#endif
#define DEFINE_MODULE(module, function, documentation)                                                                  \
    static PyMethodDef methods[] = {{#function, function, METH_VARARGS, documentation}, {NULL, NULL, 0, NULL}};         \
    static PyModuleDef_Slot slots[] = {MODULE_SLOTS};                                                                   \
    static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, #module, "The compiled part of `litheseg.masks`.",   \
                                            0, methods, slots, NULL, NULL, NULL};                                       \
    PyMODINIT_FUNC PyInit_##module(void)                                                                                \
    {                                                                                                                   \
        return PyModuleDef_Init(&definition);                                                                           \
    }

#endif
