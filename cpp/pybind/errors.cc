// kvctl::Error becomes the Python exception that its kind names.
#include <pybind11/pybind11.h>

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

}  // namespace

void RegisterErrors(pybind11::module_&) {
  pybind11::register_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const Error& error) {
      pybind11::set_error(PythonType(error.kind()), error.what());
    }
  });
}

}  // namespace kvctl
