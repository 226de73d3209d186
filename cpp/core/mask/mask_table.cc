// The masks of a step by layer and KV head. Each distinct mask is lowered once.
#include <string>

#include "core/mask/mask_node.h"
#include "core/mask/mask_plan.h"
#include "kvctl/error.h"

namespace kvctl {
namespace {

/*!
 * \brief Numbers the distinct tuples (choice_0[i], choice_1[i], ...): the class of each index i.
 * \param firsts Receives the first index of each class.
 */
void Classify(const std::vector<const MaskNode*>& nodes, int32_t count, const char* what,
              std::vector<int32_t>* classes, std::vector<int32_t>* firsts) {
  classes->clear();
  firsts->assign(1, 0);
  if (nodes.empty()) return;
  for (const MaskNode* node : nodes) {
    if (static_cast<int32_t>(node->ints.size()) != count) {
      Throw(ErrorKind::kValue, "the mask chooses for ", node->ints.size(), " ", what,
            ", but the cache has ", count);
    }
  }
  firsts->clear();
  for (int32_t i = 0; i < count; ++i) {
    size_t found = 0;
    const auto differs = [&](int32_t first) {
      for (const MaskNode* node : nodes) {
        if (node->ints[i] != node->ints[first]) return true;
      }
      return false;
    };
    while (found < firsts->size() && differs((*firsts)[found])) ++found;
    if (found == firsts->size()) firsts->push_back(i);
    classes->push_back(static_cast<int32_t>(found));
  }
}

const Mask* Resolve(const Mask* mask, MaskKind kind, int32_t index) {
  if (mask == nullptr || mask->node().kind != kind) return mask;
  return &mask->node().children[mask->node().ints[index]];
}

}  // namespace

void MaskTable::Lower(const Mask* const* masks, const StepPlan& step, int32_t num_layers,
                      int32_t num_kv_heads) {
  num_sequences_ = static_cast<int32_t>(step.sequences.size());
  num_head_classes_ = 1;
  std::vector<const MaskNode*> by_layer, by_head;
  for (int32_t s = 0; masks != nullptr && s < num_sequences_; ++s) {
    if (masks[s] == nullptr) continue;
    const MaskNode& node = masks[s]->node();
    if (node.kind == MaskKind::kPerLayer) {
      by_layer.push_back(&node);
      for (const Mask& child : node.children) {
        if (child.node().kind == MaskKind::kPerHead) by_head.push_back(&child.node());
      }
    } else if (node.kind == MaskKind::kPerHead) {
      by_head.push_back(&node);
    }
  }
  std::vector<int32_t> layers, heads;
  Classify(by_layer, num_layers, "layers", &layer_classes_, &layers);
  Classify(by_head, num_kv_heads, "KV heads", &head_classes_, &heads);
  num_head_classes_ = static_cast<int32_t>(heads.size());

  const size_t needed = layers.size() * num_sequences_ * heads.size();
  if (plans_.size() < needed) plans_.resize(needed);
  MaskPlan* plan = plans_.data();
  for (int32_t layer : layers) {
    for (int32_t s = 0; s < num_sequences_; ++s) {
      const Mask* of_layer =
          Resolve(masks == nullptr ? nullptr : masks[s], MaskKind::kPerLayer, layer);
      for (int32_t head : heads) {
        try {
          LowerMask(Resolve(of_layer, MaskKind::kPerHead, head), step.sequences[s], plan++);
        } catch (const Error& error) {
          Throw(error.kind(), "mask of sequence ", s, " of the batch: ", error.what());
        }
      }
    }
  }
}

LayerMasks MaskTable::layer(int32_t layer) const {
  LayerMasks masks;
  const int32_t layer_class = layer_classes_.empty() ? 0 : layer_classes_[layer];
  masks.plans = plans_.data() + int64_t(layer_class) * num_sequences_ * num_head_classes_;
  masks.num_head_classes = num_head_classes_;
  masks.head_classes = head_classes_.empty() ? nullptr : head_classes_.data();
  return masks;
}

}  // namespace kvctl
