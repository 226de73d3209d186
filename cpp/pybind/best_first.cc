// kvctl._core.best_first: python/kvctl/draft/trees/best_first.py wraps it.
#include "core/tree/best_first.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <utility>

#include "core/support/narrow.h"
#include "kvctl/error.h"
#include "pybind/register.h"

namespace py = pybind11;

namespace kvctl {
namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

template <typename Real>
py::tuple Grow(int32_t root, const Array<Real>& probs, const std::optional<Array<int32_t>>& tokens,
               int64_t budget, const std::optional<Array<double>>& costs) {
  if (probs.ndim() != 2) {
    Throw(ErrorKind::kValue, "marginals must have two dimensions (depth, candidates), got ",
          probs.ndim());
  }
  if (tokens && (tokens->ndim() != 2 || tokens->shape(0) != probs.shape(0) ||
                 tokens->shape(1) != probs.shape(1))) {
    Throw(ErrorKind::kValue, "tokens must have the shape of marginals, (", probs.shape(0), ", ",
          probs.shape(1), ")");
  }
  if (costs && (costs->ndim() != 1 || costs->size() <= budget)) {
    Throw(ErrorKind::kValue, "a budget of ", budget, " needs the costs of ", budget + 1, " rows");
  }
  const Marginals<Real> marginals{probs.data(), tokens ? tokens->data() : nullptr,
                                  Narrow(probs.shape(0), "the number of marginals"),
                                  Narrow(probs.shape(1), "the number of candidates")};
  RatedTree grown = BestFirst(root, marginals, budget, costs ? costs->data() : nullptr);
  Array<double> rates(static_cast<py::ssize_t>(grown.rates.size()), grown.rates.data());
  return py::make_tuple(std::move(grown.tree), std::move(rates));
}

}  // namespace

void RegisterBestFirst(py::module_& module) {
  const char* doc =
      "The tree (TokenTree) of the most probable paths, and the path probability of each node.";
  module.def("best_first", &Grow<float>, py::arg("root"), py::arg("probs").noconvert(),
             py::arg("tokens"), py::arg("budget"), py::arg("costs"), doc);
  module.def("best_first", &Grow<double>, py::arg("root"), py::arg("probs").noconvert(),
             py::arg("tokens"), py::arg("budget"), py::arg("costs"), doc);
}

}  // namespace kvctl
