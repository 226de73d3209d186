// kvctl._core.SuffixStore: python/kvctl/draft/suffix/store.py wraps it.
#include "core/suffix/suffix_store.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "pybind/register.h"

namespace py = pybind11;

namespace kvctl {
namespace {

// The wrapper checks dtype and dimensions.
using Tokens = py::array_t<int32_t, py::array::c_style>;

TokenSpan Span(const Tokens& tokens) { return {tokens.data(), static_cast<size_t>(tokens.size())}; }

template <typename T>
py::array_t<T> ToArray(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

void Add(SuffixStore& store, const std::vector<Tokens>& texts) {
  std::vector<TokenSpan> spans;
  for (const Tokens& text : texts) spans.push_back(Span(text));
  const py::gil_scoped_release release;
  store.Add(spans);
}

// Lookups keep the interpreter's lock: giving it away and waiting for it takes longer than they do.
py::tuple Tree(const SuffixStore& store, const Tokens& context, int64_t max_nodes,
               int64_t max_depth) {
  const SuffixDraft draft = store.Tree(Span(context), max_nodes, max_depth);
  return py::make_tuple(ToArray(draft.tokens), ToArray(draft.parents), ToArray(draft.shares),
                        draft.match_length);
}

}  // namespace

void RegisterSuffixStore(py::module_& module) {
  py::class_<SuffixStore>(module, "SuffixStore")
      .def(py::init<int64_t>(), py::arg("capacity"))
      .def_readonly_static("MAX_MATCH", &SuffixStore::kMaxMatch)
      .def_property_readonly("capacity", &SuffixStore::capacity)
      .def_property_readonly("num_tokens", &SuffixStore::num_tokens)
      .def_property_readonly("num_texts", &SuffixStore::num_texts)
      .def_property_readonly("nbytes", &SuffixStore::bytes)
      .def("add", &Add, py::arg("texts"))
      .def(
          "longest",
          [](const SuffixStore& store, const Tokens& context) {
            return store.Longest(Span(context));
          },
          py::arg("context"))
      .def("tree", &Tree, py::arg("context"), py::arg("max_nodes"), py::arg("max_depth"))
      .def("save", &SuffixStore::Save, py::arg("path"), py::call_guard<py::gil_scoped_release>())
      .def_static("load", &SuffixStore::Load, py::arg("path"), py::arg("capacity"),
                  py::call_guard<py::gil_scoped_release>());
}

}  // namespace kvctl
