// kvctl._core: host-side objects for NumPy users. One file per class; this one only lists them.
#include <pybind11/pybind11.h>

#include "pybind/register.h"

PYBIND11_MODULE(_core, module) {
  module.doc() = "kvctl's host-side objects.";
  kvctl::RegisterErrors(module);
  kvctl::RegisterTokenTree(module);
  kvctl::RegisterNgramIndex(module);
  kvctl::RegisterMask(module);
  kvctl::RegisterBestFirst(module);
  kvctl::RegisterSuffixStore(module);
}
