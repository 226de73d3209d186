// kvctl._core.TokenTree: trees of drafted tokens over NumPy arrays.
#include "kvctl/token_tree.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "core/tree/token_tree_codec.h"
#include "kvctl/error.h"
#include "pybind/register.h"

namespace py = pybind11;

namespace kvctl {
namespace {

using Int64Array = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;
using DoubleArray = py::array_t<double, py::array::c_style | py::array::forcecast>;

std::vector<int32_t> ToInt32(const Int64Array& array, const char* name) {
  if (array.ndim() != 1) {
    Throw(ErrorKind::kValue, name, " must have one dimension, got ", array.ndim());
  }
  std::vector<int32_t> values(array.size());
  for (py::ssize_t i = 0; i < array.size(); ++i) {
    const int64_t value = array.data()[i];
    if (value < std::numeric_limits<int32_t>::min() ||
        value > std::numeric_limits<int32_t>::max()) {
      Throw(ErrorKind::kValue, name, "[", i, "] = ", value, " does not fit 32 bits");
    }
    values[i] = static_cast<int32_t>(value);
  }
  return values;
}

// A read-only view of one of the tree's arrays, which keeps the tree alive.
template <const std::vector<int32_t>& (TokenTree::*Get)() const>
py::array View(const py::object& self) {
  const std::vector<int32_t>& values = (self.cast<const TokenTree&>().*Get)();
  py::array_t<int32_t> view(static_cast<py::ssize_t>(values.size()), values.data(), self);
  py::detail::array_proxy(view.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
  return view;
}

py::array Copy(const std::vector<int32_t>& values) {
  return py::array_t<int32_t>(static_cast<py::ssize_t>(values.size()), values.data());
}

TokenTree Make(const Int64Array& tokens, const Int64Array& parents, const py::object& rows) {
  std::vector<int32_t> row_values;
  if (!rows.is_none()) {
    row_values = ToInt32(rows.cast<Int64Array>(), "rows");
    // An empty list of rows is an error; only None means the default.
    if (row_values.empty()) Throw(ErrorKind::kValue, "rows must have one entry per node");
  }
  return TokenTree(ToInt32(tokens, "tokens"), ToInt32(parents, "parents"), std::move(row_values));
}

py::tuple Prune(const TokenTree& tree, const DoubleArray& scores, int64_t n) {
  if (scores.ndim() != 1) Throw(ErrorKind::kValue, "scores must have one dimension");
  const auto clamped = static_cast<int32_t>(std::max<int64_t>(-1, std::min<int64_t>(n, 1 << 30)));
  PrunedTree pruned =
      tree.Prune(std::vector<double>(scores.data(), scores.data() + scores.size()), clamped);
  return py::make_tuple(std::move(pruned.tree), Copy(pruned.nodes));
}

// The encoded trees, one after another, and where the nodes and rows of each begin, (2, B + 1).
py::tuple EncodeBatch(const std::vector<const TokenTree*>& trees) {
  const auto batch = static_cast<py::ssize_t>(trees.size());
  py::array_t<int64_t> begins({py::ssize_t{2}, batch + 1});
  int64_t* node_begin = begins.mutable_data();
  int64_t* row_begin = node_begin + batch + 1;
  node_begin[0] = row_begin[0] = 0;
  size_t size = 0;
  for (py::ssize_t b = 0; b < batch; ++b) {
    node_begin[b + 1] = node_begin[b] + trees[b]->size();
    row_begin[b + 1] = row_begin[b] + trees[b]->num_rows();
    size += EncodedSize(*trees[b]);
  }
  py::array_t<int32_t> code(static_cast<py::ssize_t>(size));
  int32_t* out = code.mutable_data();
  for (const TokenTree* tree : trees) out = EncodeTree(*tree, out);
  return py::make_tuple(std::move(code), std::move(begins));
}

TokenTree Decode(const py::array_t<int32_t, py::array::c_style>& code) {
  return TokenTree::Decode(code.data(), static_cast<size_t>(code.size()));
}

}  // namespace

void RegisterTokenTree(py::module_& module) {
  py::class_<TokenTree>(module, "TokenTree")
      .def(py::init(&Make), py::arg("tokens"), py::arg("parents"), py::arg("rows") = py::none())
      .def_static(
          "chain",
          [](const Int64Array& tokens) { return TokenTree::Chain(ToInt32(tokens, "tokens")); },
          py::arg("tokens"))
      .def_property_readonly("tokens", &View<&TokenTree::tokens>)
      .def_property_readonly("parents", &View<&TokenTree::parents>)
      .def_property_readonly("rows", &View<&TokenTree::rows>)
      .def_property_readonly("depths", &View<&TokenTree::depths>)
      .def_property_readonly("num_rows", &TokenTree::num_rows)
      .def_property_readonly("is_chain", &TokenTree::is_chain)
      .def_static("encode_batch", &EncodeBatch, py::arg("trees"))
      .def_static("decode", &Decode, py::arg("code"))
      .def("encode", [](const TokenTree& tree) { return Copy(tree.Encode()); })
      .def("row_parents", [](const TokenTree& tree) { return Copy(tree.RowParents()); })
      .def("prune", &Prune, py::arg("scores"), py::arg("n"))
      .def("__len__", &TokenTree::size)
      .def("__str__", &TokenTree::ToString);
}

}  // namespace kvctl
