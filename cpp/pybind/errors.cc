// kvctl::Error becomes the Python exception that its kind names.
#include <Python.h>
#include <frameobject.h>
#include <pybind11/pybind11.h>

#include <string>

#include "kvctl/error.h"
#include "pybind/register.h"

namespace kvctl {
namespace {

PyObject* PythonType(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kValue:
      return PyExc_ValueError;
    case ErrorKind::kIndex:
      return PyExc_IndexError;
    case ErrorKind::kKey:
      return PyExc_KeyError;
    case ErrorKind::kType:
      return PyExc_TypeError;
    case ErrorKind::kFileNotFound:
      return PyExc_FileNotFoundError;
    case ErrorKind::kNotImplemented:
      return PyExc_NotImplementedError;
    default:
      return PyExc_RuntimeError;
  }
}

/*! \brief A Python frame that stands for a line of C++; nullptr if it cannot be made. */
PyFrameObject* NewFrame(const SourceLocation& where) {
  const pybind11::error_scope scope;  // PyFrame_New fails while an error is set
  const std::string file = where.ShortFile();
  PyCodeObject* code = PyCode_NewEmpty(file.c_str(), where.function, where.line);
  if (code == nullptr) return nullptr;
  const pybind11::dict globals;
  PyFrameObject* frame = PyFrame_New(PyThreadState_Get(), code, globals.ptr(), nullptr);
  Py_DECREF(code);
  return frame;
}

/*! \brief Adds the line of C++ that threw to the traceback of the Python error that is set. */
void AddToTraceback(const SourceLocation& where) {
  PyFrameObject* frame = NewFrame(where);
  if (frame == nullptr) return;
  PyTraceBack_Here(frame);
  Py_DECREF(frame);
}

}  // namespace

void RegisterErrors(pybind11::module_&) {
  pybind11::register_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const Error& error) {
      pybind11::set_error(PythonType(error.kind()), error.what());
      AddToTraceback(error.where());
    }
  });
}

}  // namespace kvctl
