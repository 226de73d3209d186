// kvctl._core.NgramIndex: prompt lookup over an incremental n-gram index.
#include "core/tree/ngram_index.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "kvctl/error.h"
#include "pybind/register.h"

namespace py = pybind11;

namespace kvctl {
namespace {

using Tokens = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;

py::array_t<int32_t> ToArray(const std::vector<int32_t>& values) {
  return py::array_t<int32_t>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::tuple ToTuple(const NgramDraft& draft) {
  return py::make_tuple(ToArray(draft.tokens), ToArray(draft.parents),
                        ToArray(draft.match_lengths));
}

void Append(NgramIndex& index, const Tokens& tokens) {
  if (tokens.ndim() != 1) {
    Throw(ErrorKind::kValue, "tokens must have one dimension, got ", tokens.ndim());
  }
  index.Append(tokens.data(), static_cast<size_t>(tokens.size()));
}

}  // namespace

void RegisterNgramIndex(py::module_& module) {
  py::class_<NgramIndex>(module, "NgramIndex",
                         R"(All n-grams of one growing text, for prompt lookup.

Appending a token and looking up a continuation take a bounded number of operations, however long
the text is. A draft is a triple of int32 arrays ``(tokens, parents, match_lengths)`` in the form of
a `TokenTree`: node 0 is the last token of the text; ``match_lengths[i]`` says how many tokens before
node i agree with the occurrence that it was copied from.)")
      .def(py::init<>())
      .def("__len__", &NgramIndex::size)
      .def_readonly_static("MAX_MATCH", &NgramIndex::kMaxMatch,
                           "Longer matches are reported as this long.")
      .def("append", &Append, py::arg("tokens"), "Add tokens (n,) int32 to the end of the text.")
      .def("truncate", &NgramIndex::Truncate, py::arg("size"),
           "Take the text back to its first `size` tokens; ValueError for another range.")
      .def(
          "longest",
          [](const NgramIndex& index) {
            const NgramIndex::Match match = index.Longest();
            return py::make_tuple(match.length, match.end);
          },
          "The longest earlier occurrence of the last tokens: its length (0: none) and the "
          "position "
          "of the token that followed it.")
      .def(
          "chain",
          [](const NgramIndex& index, int64_t max_length) {
            return ToTuple(index.Chain(max_length));
          },
          py::arg("max_length"),
          "Continue as the longest earlier occurrence did; ValueError on an empty text.")
      .def(
          "tree",
          [](const NgramIndex& index, int64_t max_nodes, int64_t max_depth) {
            return ToTuple(index.Tree(max_nodes, max_depth));
          },
          py::arg("max_nodes"), py::arg("max_depth"),
          "Merge the continuations of several occurrences, the longest match first; ValueError on "
          "an empty text.");
}

}  // namespace kvctl
