/* A LightGBM model of one output, asked about one row at a time: what its library does, without the call into it, which for one
 * row costs more than the trees.
 *
 *     trees = Trees(columns, sizes, features, thresholds, kinds, left, right, leaves)
 *     ask = trees.ask(rows, place)
 *     ask()                           the sum of all trees for that row, as it is written there now
 *
 * The arithmetic is LightGBM's own, in its order: the same numbers to the last bit (prediction.trees proves it of each model). */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#define VERSION 1 /* of what is said above; `prediction.trees` takes no other */
#define ZERO ((double)1e-35f) /* LightGBM takes whatever is not further from it for zero */
#define COLUMNS_MAX 1024
#define DEFAULT_LEFT 2
#define MISSING(kind) (((kind) >> 2) & 3)
#define MISSING_ZERO 1
#define MISSING_NAN 2

typedef struct {
    double threshold;
    int32_t left, right; /* a node, from the beginning of all; below 0: ~leaf, likewise */
    uint16_t feature;
    uint8_t kind;
} Node;

typedef struct {
    PyObject_HEAD
    Node *nodes;
    double *leaves;
    int32_t *roots; /* as `left` is */
    Py_ssize_t tree_count, columns;
    int knows_zero; /* some node takes it for a value that is not there */
} Trees;

typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    Trees *trees;
    Py_buffer rows;
    const double *row;
} Ask;

static PyTypeObject TreesType, AskType;

static void trees_dealloc(Trees *self) {
    PyMem_Free(self->nodes);
    PyMem_Free(self->leaves);
    PyMem_Free(self->roots);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* The numbers of a sequence. NULL with an exception set. */
static double *numbers(PyObject *sequence, Py_ssize_t wanted) {
    PyObject *fast = PySequence_Fast(sequence, "not a sequence of numbers");
    if (!fast) return NULL;
    double *found = NULL;
    if (PySequence_Fast_GET_SIZE(fast) != wanted)
        PyErr_Format(PyExc_ValueError, "%zd numbers where %zd belong", PySequence_Fast_GET_SIZE(fast), wanted);
    else if (!(found = PyMem_Malloc((wanted + 1) * sizeof *found)))
        PyErr_NoMemory();
    for (Py_ssize_t i = 0; found && i < wanted; i++) {
        found[i] = PyFloat_AsDouble(PySequence_Fast_GET_ITEM(fast, i));
        if (found[i] == -1 && PyErr_Occurred()) {
            PyMem_Free(found);
            found = NULL;
        }
    }
    Py_DECREF(fast);
    return found;
}

/* A child of a tree of `nodes` nodes as it is said within it, from the beginning of all. It comes behind its parent, so no walk
 * goes round. */
static int child(double said, Py_ssize_t at, Py_ssize_t nodes, Py_ssize_t first_node, Py_ssize_t first_leaf, int32_t *found) {
    if (said != floor(said) || said >= nodes || said < -(double)(nodes + 1) || (said >= 0 && said <= at)) return -1;
    *found = said >= 0 ? (int32_t)(first_node + said) : (int32_t)((Py_ssize_t)said - first_leaf);
    return 0;
}

static int fill(Trees *self, const double *sizes, double **lists) {
    Py_ssize_t node = 0, leaf = 0;
    for (Py_ssize_t tree = 0; tree < self->tree_count; tree++) {
        Py_ssize_t count = (Py_ssize_t)sizes[tree] - 1, first = node;
        self->roots[tree] = (int32_t)(count ? node : -1 - leaf);
        for (Py_ssize_t at = 0; at < count; at++, node++) {
            Node *here = &self->nodes[node];
            double feature = lists[0][node], kind = lists[2][node];
            if (feature != floor(feature) || feature < 0 || feature >= self->columns) return -1;
            if (kind != floor(kind) || kind < 0 || kind > 11 || (int)kind & 1) return -1; /* 1: of categories */
            here->feature = (uint16_t)feature;
            here->kind = (uint8_t)kind;
            here->threshold = lists[1][node];
            self->knows_zero |= MISSING(here->kind) == MISSING_ZERO;
            if (child(lists[3][node], at, count, first, leaf, &here->left)) return -1;
            if (child(lists[4][node], at, count, first, leaf, &here->right)) return -1;
        }
        leaf += count + 1;
    }
    return 0;
}

static PyObject *trees_new(PyTypeObject *type, PyObject *arguments, PyObject *names) {
    PyObject *sizes_given, *given[6];
    Py_ssize_t columns;
    if (!PyArg_ParseTuple(arguments, "nOOOOOOO", &columns, &sizes_given, &given[0], &given[1], &given[2], &given[3], &given[4], &given[5]))
        return NULL;
    Py_ssize_t trees = PySequence_Size(sizes_given), nodes = 0;
    if (trees < 0) return NULL;
    if (columns < 1 || columns > COLUMNS_MAX) return PyErr_Format(PyExc_ValueError, "%zd columns", columns);
    double *sizes = numbers(sizes_given, trees), *lists[6] = {NULL};
    Trees *self = NULL;
    int failed = !sizes;
    for (Py_ssize_t i = 0; !failed && i < trees; i++) {
        if (sizes[i] != floor(sizes[i]) || sizes[i] < 1 || sizes[i] > 1e6 || (nodes += (Py_ssize_t)sizes[i] - 1) > 1e8) {
            PyErr_SetString(PyExc_ValueError, "a tree has one leaf or more");
            failed = 1;
        }
    }
    for (int i = 0; !failed && i < 6; i++) failed = !(lists[i] = numbers(given[i], i < 5 ? nodes : nodes + trees));
    if (!failed && (self = (Trees *)type->tp_alloc(type, 0))) {
        self->tree_count = trees;
        self->columns = columns;
        self->nodes = PyMem_Malloc((nodes + 1) * sizeof *self->nodes);
        self->roots = PyMem_Malloc((trees + 1) * sizeof *self->roots);
        self->leaves = lists[5];
        lists[5] = NULL;
        if (!self->nodes || !self->roots) PyErr_NoMemory();
        else if (fill(self, sizes, lists)) PyErr_SetString(PyExc_ValueError, "not trees of numbers");
        if (PyErr_Occurred()) Py_CLEAR(self);
    }
    for (int i = 0; i < 6; i++) PyMem_Free(lists[i]);
    PyMem_Free(sizes);
    return (PyObject *)self;
}

/* All there, or each node takes what is not there for zero: then nothing but the threshold decides. */
static double sum_plain(const Trees *self, const double *row) {
    const Node *nodes = self->nodes;
    double total = 0;
    for (Py_ssize_t tree = 0; tree < self->tree_count; tree++) {
        int32_t at = self->roots[tree];
        while (at >= 0) {
            const Node *here = &nodes[at];
            at = row[here->feature] <= here->threshold ? here->left : here->right;
        }
        total += self->leaves[~at];
    }
    return total;
}

static double sum_missing(const Trees *self, const double *row) {
    const Node *nodes = self->nodes;
    double total = 0;
    for (Py_ssize_t tree = 0; tree < self->tree_count; tree++) {
        int32_t at = self->roots[tree];
        while (at >= 0) {
            const Node *here = &nodes[at];
            double value = row[here->feature];
            int missing = MISSING(here->kind);
            if (isnan(value) && missing != MISSING_NAN) value = 0;
            if ((missing == MISSING_ZERO && value == 0) || (missing == MISSING_NAN && isnan(value)))
                at = here->kind & DEFAULT_LEFT ? here->left : here->right;
            else
                at = value <= here->threshold ? here->left : here->right;
        }
        total += self->leaves[~at];
    }
    return total;
}

static double sum(const Trees *self, const double *given) {
    double row[COLUMNS_MAX];
    int missing = self->knows_zero;
    for (Py_ssize_t i = 0; i < self->columns; i++) {
        row[i] = fabs(given[i]) <= ZERO ? 0 : given[i];
        missing |= isnan(given[i]);
    }
    return missing ? sum_missing(self, row) : sum_plain(self, row);
}

static PyObject *ask_call(PyObject *self, PyObject *const *arguments, size_t flags, PyObject *names) {
    if (PyVectorcall_NARGS(flags) || names) return PyErr_Format(PyExc_TypeError, "nothing is to be said but by the row");
    return PyFloat_FromDouble(sum(((Ask *)self)->trees, ((Ask *)self)->row));
}

static PyObject *trees_ask(Trees *self, PyObject *arguments) {
    PyObject *rows;
    Py_ssize_t place;
    if (!PyArg_ParseTuple(arguments, "On", &rows, &place)) return NULL;
    Ask *ask = PyObject_New(Ask, &AskType);
    if (!ask) return NULL;
    ask->trees = NULL;
    ask->call = ask_call;
    if (PyObject_GetBuffer(rows, &ask->rows, PyBUF_WRITABLE)) {
        ask->rows.obj = NULL;
        Py_DECREF(ask);
        return NULL;
    }
    Py_ssize_t width = self->columns * (Py_ssize_t)sizeof(double);
    if (place < 0 || place >= ask->rows.len / width || (uintptr_t)ask->rows.buf % sizeof(double)) {
        Py_DECREF(ask);
        return PyErr_Format(PyExc_ValueError, "no row %zd", place);
    }
    Py_INCREF(self);
    ask->trees = self;
    ask->row = (const double *)((const char *)ask->rows.buf + place * width);
    return (PyObject *)ask;
}

static void ask_dealloc(Ask *self) {
    if (self->rows.obj) PyBuffer_Release(&self->rows);
    Py_XDECREF(self->trees);
    PyObject_Free(self);
}

static PyMethodDef trees_methods[] = {
    {"ask", (PyCFunction)trees_ask, METH_VARARGS, "ask(rows, place): what answers for that row of float64 when called. ValueError."},
    {NULL},
};

static PyTypeObject TreesType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "prediction._trees.Trees",
    .tp_basicsize = sizeof(Trees),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = trees_new,
    .tp_dealloc = (destructor)trees_dealloc,
    .tp_methods = trees_methods,
};

static PyTypeObject AskType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "prediction._trees.Ask",
    .tp_basicsize = sizeof(Ask),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL,
    .tp_call = PyVectorcall_Call,
    .tp_vectorcall_offset = offsetof(Ask, call),
    .tp_dealloc = (destructor)ask_dealloc,
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "prediction._trees", .m_size = -1, .m_doc = "Trees of LightGBM, one row at a time.",
};

PyMODINIT_FUNC PyInit__trees(void) {
    if (PyType_Ready(&TreesType) < 0 || PyType_Ready(&AskType) < 0) return NULL;
    PyObject *module = PyModule_Create(&definition);
    if (!module) return NULL;
    Py_INCREF(&TreesType);
    if (PyModule_AddObject(module, "Trees", (PyObject *)&TreesType) < 0 || PyModule_AddIntConstant(module, "VERSION", VERSION) < 0) {
        Py_DECREF(&TreesType);
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
