/* Streams passed on: events of server-sent streams go from one socket to another without Python in between.
 *
 *     stream = Stream()
 *     stream.start(source, target)     from now on, until something else comes
 *     shown, others = pass_ready(epoll_fd, 512)
 *
 * `pass_ready` asks the epoll set what is ready, without waiting. Where the source of a started stream is, one read is done; if
 * it brought what the usual read of a stream is (whole chunks of HTTP/1.1, each an event and less than USUAL_BYTES_MAX long with
 * its framing, all of them less than that or more than KEPT), it is written to the target, its events are counted, and it, or
 * its last KEPT, are among the last KEPT that are remembered. Else the stream stops, and `shown` has (source, events, data):
 *
 *     events > 0, bytes     was read and is nothing usual
 *     events > 0, None      the source has ended, as the next read says again
 *     events < 0, None      the read failed, with errno -events
 *     events = 0, bytes     what the target did not take of an event that is counted
 *
 * others: (fd, events) of whatever else is ready, to which nothing was done. What is shown was read from the sockets that had
 * these numbers then: it is to be looked at before anything is accepted or opened.
 *
 * So what is not usual is Python's to look at, and nothing is passed on behind it until the stream is started again. All of it
 * holds the GIL: no call waits, and giving it away costs more than a read. Both sockets are non-blocking; whoever closes one stops the stream first. */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>
#include <errno.h>
#include <string.h>
#include <structmember.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

#define EVENTS_MAX 1024
#define READ_BYTES 65536
#define USUAL_BYTES_MAX 4096
#define KEPT 8
#define VERSION 3 /* of what is said above; `runtime.passing` takes no other */

typedef struct {
    PyObject_HEAD
    int source, target;    /* source < 0: not started */
    Py_ssize_t passed;     /* events since they were last taken */
    Py_ssize_t reads;      /* that brought them, of which the last are kept */
    double at;             /* seconds of CLOCK_MONOTONIC of the last one, 0: none since it was last taken */
    PyObject *last[KEPT];  /* the next one overwrites [reads % KEPT] */
} Stream;

static Stream **started;   /* by source; borrowed: a stream that ends stops itself */
static int room;
static char buffer[READ_BYTES];

static void stop(Stream *self) {
    if (self->source >= 0) started[self->source] = NULL;
    self->source = self->target = -1;
}

static void forget(Stream *self) {
    for (int i = 0; i < KEPT; i++) Py_CLEAR(self->last[i]);
    self->passed = self->reads = 0;
}

static PyObject *stream_new(PyTypeObject *type, PyObject *arguments, PyObject *names) {
    Stream *self = (Stream *)type->tp_alloc(type, 0);
    if (self) self->source = self->target = -1;
    return (PyObject *)self;
}

static void stream_dealloc(Stream *self) {
    stop(self);
    forget(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *stream_start(Stream *self, PyObject *arguments) {
    int source, target;
    if (!PyArg_ParseTuple(arguments, "ii", &source, &target)) return NULL;
    if (source < 0 || target < 0) return PyErr_Format(PyExc_ValueError, "not open: %d, %d", source, target);
    if (source < room && started[source] && started[source] != self)
        return PyErr_Format(PyExc_ValueError, "%d is the source of another stream", source);
    if (source >= room) {
        int wanted = 2 * source + 64;
        Stream **more = PyMem_Realloc(started, wanted * sizeof *started);
        if (!more) return PyErr_NoMemory();
        memset(more + room, 0, (wanted - room) * sizeof *more);
        started = more;
        room = wanted;
    }
    stop(self);
    self->source = source;
    self->target = target;
    started[source] = self;
    Py_RETURN_NONE;
}

static PyObject *stream_stop(Stream *self, PyObject *nothing) {
    stop(self);
    Py_RETURN_NONE;
}

static PyObject *stream_take(Stream *self, PyObject *nothing) {
    Py_ssize_t kept = self->reads < KEPT ? self->reads : KEPT, first = self->reads - kept;
    PyObject *last = PyList_New(kept);
    if (!last) return NULL;
    for (Py_ssize_t i = 0; i < kept; i++) {
        PyObject *event = self->last[(first + i) % KEPT];
        Py_INCREF(event);
        PyList_SET_ITEM(last, i, event);
    }
    PyObject *found = Py_BuildValue("nN", self->passed, last);
    if (found) forget(self);
    return found;
}

static PyObject *stream_take_at(Stream *self, PyObject *nothing) {
    double at = self->at;
    self->at = 0;
    return PyFloat_FromDouble(at);
}

static PyObject *stream_is_started(Stream *self, void *nothing) {
    return PyBool_FromLong(self->source >= 0);
}

static PyMethodDef stream_methods[] = {
    {"start", (PyCFunction)stream_start, METH_VARARGS, "start(source, target): file descriptors. ValueError."},
    {"stop", (PyCFunction)stream_stop, METH_NOARGS, "Nothing is passed on any more; what was stays counted."},
    {"take", (PyCFunction)stream_take, METH_NOARGS, "How many events were passed on since this was last asked, and the last reads of them."},
    {"take_at", (PyCFunction)stream_take_at, METH_NOARGS, "When the last one was, seconds; 0.0: none since this was last asked."},
    {NULL},
};

static PyMemberDef stream_members[] = {
    {"passed", T_PYSSIZET, offsetof(Stream, passed), READONLY, "events since `take`"},
    {NULL},
};

static PyGetSetDef stream_properties[] = {
    {"is_started", (getter)stream_is_started, NULL, NULL, NULL},
    {NULL},
};

static PyTypeObject StreamType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "runtime._passing.Stream",
    .tp_basicsize = sizeof(Stream),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = stream_new,
    .tp_dealloc = (destructor)stream_dealloc,
    .tp_methods = stream_methods,
    .tp_members = stream_members,
    .tp_getset = stream_properties,
};

/* How many bytes of `data` are a chunk that ends with an empty line: a size line in lower-case hex without leading zeros, as
 * long a payload as it says, CRLF. 0: what comes first is none, or is not all there. */
static ssize_t event_size(const char *data, ssize_t size) {
    ssize_t said = 0;
    int digits = 0;
    for (; digits < 3 && digits < size; digits++) {
        char c = data[digits];
        if (c >= '0' && c <= '9') said = 16 * said + (c - '0');
        else if (c >= 'a' && c <= 'f') said = 16 * said + (c - 'a' + 10);
        else break;
    }
    ssize_t whole = digits + 2 + said + 2;
    if (!digits || data[0] == '0' || said < 2 || whole > size || whole >= USUAL_BYTES_MAX) return 0;
    if (data[digits] != '\r' || data[digits + 1] != '\n' || memcmp(data + whole - 4, "\n\n\r\n", 4)) return 0;
    return whole;
}

/* The events that all of `data` is; 0: it is something else, or more than is to be remembered. last: where the last KEPT begin. */
static Py_ssize_t count_events(const char *data, ssize_t size, ssize_t *last) {
    ssize_t starts[KEPT], at = 0;
    Py_ssize_t count = 0;
    while (at < size) {
        ssize_t whole = event_size(data + at, size - at);
        if (!whole) return 0;
        starts[count++ % KEPT] = at;
        at += whole;
    }
    if (size >= USUAL_BYTES_MAX && count <= KEPT) return 0;
    *last = count > KEPT ? starts[count % KEPT] : 0;
    return count;
}

static int add(PyObject *list, PyObject *item) {
    int failed = !item || PyList_Append(list, item);
    Py_XDECREF(item);
    return failed;
}

static int show(PyObject *shown, int source, long events, PyObject *data) {
    return add(shown, Py_BuildValue("ilO", source, events, data ? data : Py_None));
}

/* One read of a started stream. 0, or -1 with an exception set. */
static int pass_one(Stream *stream, unsigned events, double *now, PyObject *shown) {
    int source = stream->source, target = stream->target;
    ssize_t got = recv(source, buffer, sizeof buffer, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    if (got < 0) {
        long failure = errno;
        stop(stream);
        return show(shown, source, -failure, NULL);
    }
    if (!got) { /* the end, which the next read says again */
        stop(stream);
        return show(shown, source, events, NULL);
    }
    int failed = 0;
    ssize_t last = 0;
    Py_ssize_t count = count_events(buffer, got, &last);
    PyObject *data = PyBytes_FromStringAndSize(buffer + last, got - last);
    if (!data) return -1;
    if (!count) {
        stop(stream);
        failed = show(shown, source, events, data);
        Py_DECREF(data);
        return failed;
    }
    if (!*now) {
        struct timespec at;
        clock_gettime(CLOCK_MONOTONIC, &at);
        *now = at.tv_sec + at.tv_nsec / 1e9;
    }
    stream->at = *now;
    if (last) { /* as much by itself as is to be remembered */
        for (int i = 0; i < KEPT; i++) Py_CLEAR(stream->last[i]);
        stream->reads = 0;
    }
    PyObject **place = &stream->last[stream->reads % KEPT];
    stream->reads++;
    stream->passed += count;
    Py_XSETREF(*place, data);
    ssize_t sent = send(target, buffer, got, MSG_NOSIGNAL);
    if (sent != got) { /* whatever is wrong with the target shows again when Python writes to it */
        if (sent < 0) sent = 0;
        PyObject *rest = PyBytes_FromStringAndSize(buffer + sent, got - sent);
        stop(stream);
        failed = !rest || show(shown, source, 0, rest);
        Py_XDECREF(rest);
    }
    return failed;
}

static PyObject *pass_ready(PyObject *module, PyObject *arguments) {
    static struct epoll_event ready[EVENTS_MAX];
    int set, most;
    if (!PyArg_ParseTuple(arguments, "ii", &set, &most)) return NULL;
    if (most < 1 || most > EVENTS_MAX) return PyErr_Format(PyExc_ValueError, "1 to %d events, not %d", EVENTS_MAX, most);
    int found = epoll_wait(set, ready, most, 0);
    if (found < 0 && errno != EINTR) return PyErr_SetFromErrno(PyExc_OSError);
    PyObject *shown = PyList_New(0), *others = PyList_New(0);
    int failed = !shown || !others;
    double now = 0;
    for (int i = 0; i < found && !failed; i++) {
        int fd = ready[i].data.fd;
        unsigned events = ready[i].events;
        Stream *stream = fd < room ? started[fd] : NULL;
        if (stream && events == EPOLLIN) failed = pass_one(stream, events, &now, shown);
        else failed = add(others, Py_BuildValue("iI", fd, events));
    }
    PyObject *both = failed ? NULL : PyTuple_Pack(2, shown, others);
    Py_XDECREF(shown);
    Py_XDECREF(others);
    return both;
}

static int descriptor(PyObject *number) {
    int fd = PyLong_AsLong(number);
    if (fd < 0 && !PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "no file descriptor");
    return fd;
}

static PyObject *receive(PyObject *module, PyObject *number) {
    int fd = descriptor(number);
    if (fd < 0) return NULL;
    ssize_t got = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (got >= 0) return PyBytes_FromStringAndSize(buffer, got);
    if (errno == EAGAIN || errno == EINTR) Py_RETURN_NONE;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *send_some(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
    if (count != 2) return PyErr_Format(PyExc_TypeError, "send takes 2 arguments, not %zd", count);
    int fd = descriptor(arguments[0]);
    Py_buffer data;
    if (fd < 0 || PyObject_GetBuffer(arguments[1], &data, PyBUF_SIMPLE)) return NULL;
    ssize_t sent = send(fd, data.buf, data.len, MSG_DONTWAIT | MSG_NOSIGNAL);
    PyBuffer_Release(&data);
    if (sent >= 0) return PyLong_FromSsize_t(sent);
    if (errno == EAGAIN || errno == EINTR) return PyLong_FromLong(0);
    return PyErr_SetFromErrno(PyExc_OSError);
}

static PyMethodDef functions[] = {
    {"receive", receive, METH_O, "receive(fd): one read, of 64 KB at most; b'': the end; None: nothing there. OSError."},
    {"send", (PyCFunction)(void (*)(void))send_some, METH_FASTCALL, "send(fd, data): how many bytes were taken. OSError."},
    {"pass_ready", pass_ready, METH_VARARGS, "pass_ready(epoll_fd, most): what is ready and was not passed on: shown, others. OSError, ValueError."},
    {NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "runtime._passing", .m_size = -1, .m_methods = functions,
    .m_doc = "Events of streams, from one socket to another.",
};

PyMODINIT_FUNC PyInit__passing(void) {
    if (PyType_Ready(&StreamType) < 0) return NULL;
    PyObject *module = PyModule_Create(&definition);
    if (!module) return NULL;
    Py_INCREF(&StreamType);
    if (PyModule_AddObject(module, "Stream", (PyObject *)&StreamType) < 0 ||
        PyModule_AddIntConstant(module, "VERSION", VERSION) < 0 ||
        PyModule_AddIntConstant(module, "KEPT", KEPT) < 0 ||
        PyModule_AddIntConstant(module, "USUAL_BYTES_MAX", USUAL_BYTES_MAX) < 0) {
        Py_DECREF(&StreamType);
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
