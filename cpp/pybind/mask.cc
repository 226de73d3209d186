// kvctl._core.Mask: the value type of kvctl/mask.h over NumPy arrays. python/kvctl/mask.py wraps
// it.
#include "kvctl/mask.h"

#include <pybind11/numpy.h>
#include <pybind11/operators.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <utility>
#include <vector>

#include "core/mask/mask_node.h"
#include "core/mask/mask_plan.h"
#include "kvctl/error.h"
#include "pybind/register.h"

namespace kvctl {
namespace {

namespace py = pybind11;
using Bits = py::array_t<bool, py::array::c_style | py::array::forcecast>;
using Ints = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;

std::vector<int32_t> ToVector(const Ints& ints) {
  return std::vector<int32_t>(ints.data(), ints.data() + ints.size());
}

const uint8_t* Bytes(const Bits& bits) { return reinterpret_cast<const uint8_t*>(bits.data()); }

int32_t Extent(const Bits& bits, int axis) {
  if (bits.ndim() != 2) {
    Throw(ErrorKind::kValue, "a boolean mask needs two axes (new tokens, keys), got ", bits.ndim());
  }
  if (bits.shape(axis) > INT32_MAX) Throw(ErrorKind::kValue, "the boolean mask is too large");
  return static_cast<int32_t>(bits.shape(axis));
}

Mask Dense(const Bits& bits) {
  const int32_t queries = Extent(bits, 0), keys = Extent(bits, 1);
  if (queries != keys) {
    Throw(ErrorKind::kValue, "a dense mask is square (new tokens by new tokens), got ", queries,
          " x ", keys, "; Mask.full takes one over past and new");
  }
  return Mask::Dense(Bytes(bits), queries);
}

Mask Full(const Bits& bits) { return Mask::Full(Bytes(bits), Extent(bits, 0), Extent(bits, 1)); }

Mask Ranges(const std::vector<std::vector<std::pair<int32_t, int32_t>>>& queries) {
  std::vector<std::vector<KeyRange>> lists(queries.size());
  for (size_t query = 0; query < queries.size(); ++query) {
    for (const auto& [begin, end] : queries[query]) lists[query].push_back({begin, end});
  }
  return Mask::Ranges(lists);
}

Ints Encode(const Mask& mask) {
  const std::vector<int32_t> code = mask.Encode();
  return Ints(static_cast<py::ssize_t>(code.size()), code.data());
}

py::object TreeParents(const Mask& mask) {
  const std::vector<int32_t>* parents = mask.tree_parents();
  if (parents == nullptr) return py::none();
  return Ints(static_cast<py::ssize_t>(parents->size()), parents->data());
}

/*! \brief The mask that a layer or head has: `mask` itself unless it chooses by `kind`.
 *  \throws kValue if it does and `index` (-1: not given) is not one of its layers or heads. */
const Mask& Chosen(const Mask& mask, MaskKind kind, int32_t index) {
  const MaskNode& node = mask.node();
  if (node.kind != kind) return mask;
  const char* name = kind == MaskKind::kPerLayer ? "layer" : "head";
  if (index == -1) {
    Throw(ErrorKind::kValue, "a mask per ", name, " is not one matrix: name the ", name, " (", name,
          "=), or draw the masks that it chooses from");
  }
  if (index < 0 || index >= static_cast<int32_t>(node.ints.size())) {
    Throw(ErrorKind::kValue, name, " must be below ", node.ints.size(), ", got ", index);
  }
  return node.children[node.ints[index]];
}

using Indices = std::vector<int32_t>;

/*! \brief The layers or heads that share a mask, grouped in the order in which they come; one empty
 *  group for a mask that does not choose by `kind`. */
std::vector<Indices> Groups(const Mask& mask, MaskKind kind) {
  const MaskNode& node = mask.node();
  if (node.kind != kind) return {{}};
  std::vector<Indices> groups;
  std::vector<int32_t> group_of(node.children.size(), -1);
  for (size_t i = 0; i < node.ints.size(); ++i) {
    int32_t& group = group_of[node.ints[i]];
    if (group < 0) {
      group = static_cast<int32_t>(groups.size());
      groups.emplace_back();
    }
    groups[group].push_back(static_cast<int32_t>(i));
  }
  return groups;
}

/*! \brief The (layers, heads) of each mask that is chosen; empty: all of them. */
std::vector<std::pair<Indices, Indices>> Parts(const Mask& mask) {
  std::vector<std::pair<Indices, Indices>> parts;
  for (const Indices& layers : Groups(mask, MaskKind::kPerLayer)) {
    const Mask& of_layer = Chosen(mask, MaskKind::kPerLayer, layers.empty() ? 0 : layers[0]);
    for (Indices& heads : Groups(of_layer, MaskKind::kPerHead)) {
      parts.emplace_back(layers, std::move(heads));
    }
  }
  return parts;
}

/*! \brief The boolean (num_new, kv_len) array that attention would see in one layer and head:
 * lowered, then expanded. */
py::array_t<bool> Materialize(const Mask& mask, int32_t num_new, int32_t kv_len,
                              int32_t num_pending, int32_t layer, int32_t head) {
  const Mask& of_layer = Chosen(mask, MaskKind::kPerLayer, layer);
  const Mask& chosen = Chosen(of_layer, MaskKind::kPerHead, head);
  if (num_new < 1 || num_pending < num_new || kv_len < num_pending) {
    Throw(ErrorKind::kValue, "a picture needs 1 <= new tokens <= pending tokens <= keys, got ",
          num_new, ", ", num_pending, " and ", kv_len);
  }
  SequencePlan sequence{};
  sequence.num_query_tokens = num_new;
  sequence.num_pending = num_pending;
  sequence.num_committed = kv_len - num_pending;
  sequence.next_position = sequence.num_committed;
  std::vector<int32_t> depths;
  const std::vector<int32_t>* parents = mask.tree_parents();
  if (parents != nullptr && static_cast<int32_t>(parents->size()) == num_pending) {
    for (int32_t parent : *parents) {
      if (parent >= static_cast<int32_t>(depths.size())) {
        Throw(
            ErrorKind::kValue, "parent of tree node ", depths.size(), " is ", parent,
            ": a picture needs the parents of the entire pending region, each before its children");
      }
      depths.push_back(parent < 0 ? 0 : depths[parent] + 1);
    }
    sequence.parents = parents->data();
    sequence.depths = depths.data();
  }
  if (parents != nullptr && sequence.parents == nullptr) {
    Throw(ErrorKind::kValue, "the mask's tree has ", parents->size(), " nodes and the picture ",
          num_pending, " pending tokens");
  }
  MaskPlan plan;
  LowerMask(&chosen, sequence, &plan);
  py::array_t<bool> out({num_new, kv_len});
  auto view = out.mutable_unchecked<2>();
  for (int32_t query = 0; query < num_new; ++query) {
    for (int32_t key = 0; key < kv_len; ++key) {
      view(query, key) = plan.Visible(query, key);
    }
  }
  return out;
}

}  // namespace

void RegisterMask(py::module_& module) {
  py::class_<Mask>(module, "Mask")
      .def_static("causal", &Mask::Causal)
      .def_static("tree", [](const Ints& parents) { return Mask::Tree(ToVector(parents)); })
      .def_static("dense", Dense)
      .def_static("full", Full)
      .def_static("window", &Mask::Window)
      .def_static("prefix_lm", &Mask::PrefixLM)
      .def_static("documents", [](const Ints& ids) { return Mask::Documents(ToVector(ids)); })
      .def_static("ranges", Ranges)
      .def_static("per_layer", &Mask::PerLayer)
      .def_static("per_head", &Mask::PerHead)
      .def(py::self & py::self)
      .def(py::self | py::self)
      .def(~py::self)
      .def("tree_parents", TreeParents)
      .def("__str__", &Mask::ToString)
      .def("encode", Encode)
      .def_static("decode",
                  [](const Ints& code) {
                    return Mask::Decode(code.data(), static_cast<size_t>(code.size()));
                  })
      .def("parts", Parts)
      .def("materialize", Materialize, py::arg("num_new"), py::arg("num_columns"),
           py::arg("num_pending"), py::arg("layer") = -1, py::arg("head") = -1);
}

}  // namespace kvctl
