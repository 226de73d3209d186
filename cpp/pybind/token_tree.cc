// kvctl._core.TokenTree: trees of drafted tokens over NumPy arrays.
#include "kvctl/token_tree.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

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
    // An empty list of rows is a mistake; only None stands for the default.
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

// The nodes of all trees, (4, N): token, parent, row, and a row for the caller to fill in; and
// where nodes and rows of each tree begin, (2, B + 1).
py::tuple Pack(const std::vector<const TokenTree*>& trees) {
  const auto batch = static_cast<py::ssize_t>(trees.size());
  py::array_t<int64_t> ptrs({py::ssize_t{2}, batch + 1});
  int64_t* node_ptr = ptrs.mutable_data();
  int64_t* row_ptr = node_ptr + batch + 1;
  node_ptr[0] = row_ptr[0] = 0;
  for (py::ssize_t b = 0; b < batch; ++b) {
    node_ptr[b + 1] = node_ptr[b] + trees[b]->size();
    row_ptr[b + 1] = row_ptr[b] + trees[b]->num_rows();
  }
  py::array_t<int32_t> nodes({py::ssize_t{4}, static_cast<py::ssize_t>(node_ptr[batch])});
  int32_t* out = nodes.mutable_data();
  for (const auto get : {&TokenTree::tokens, &TokenTree::parents, &TokenTree::rows}) {
    for (const TokenTree* tree : trees) {
      const std::vector<int32_t>& values = (tree->*get)();
      out = std::copy(values.begin(), values.end(), out);
    }
  }
  return py::make_tuple(std::move(nodes), std::move(ptrs));
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
      .def_static("pack", &Pack, py::arg("trees"))
      .def("row_parents", [](const TokenTree& tree) { return Copy(tree.RowParents()); })
      .def("prune", &Prune, py::arg("scores"), py::arg("n"))
      .def("__len__", &TokenTree::size)
      .def("__str__", &TokenTree::ToString);
}

}  // namespace kvctl
