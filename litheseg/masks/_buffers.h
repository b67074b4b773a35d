/* What both extensions do with the arrays that Python hands over. */

#ifndef LITHESEG_BUFFERS_H
#define LITHESEG_BUFFERS_H

#include <Python.h>

#include <string.h>

/* Take a buffer of the kind that is asked for, or set an error and return 0. */
static int take(PyObject *object, Py_buffer *view, const char *name, int dimensions, const char *formats,
                Py_ssize_t itemsize, int flags)
{
    if (PyObject_GetBuffer(object, view, flags | PyBUF_FORMAT) < 0)
        return 0;
    const char *format = view->format ? view->format : "B";
    if (view->ndim == dimensions && view->itemsize == itemsize && format[0] && !format[1] && strchr(formats, format[0]))
        return 1;
    PyErr_Format(PyExc_ValueError, "%s: %d dimensions of type '%s'; give %d of one of '%s', native", name, view->ndim,
                 format, dimensions, formats);
    PyBuffer_Release(view);
    return 0;
}

#endif
