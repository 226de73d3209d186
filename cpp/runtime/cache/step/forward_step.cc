// Begin and end of a step, and which layers have K and V of its tokens.
#include "runtime/cache/step/forward_step.h"

#include <algorithm>

#include "core/mask/mask_node.h"
#include "core/support/narrow.h"
#include "kvctl/error.h"
#include "runtime/support/new_parents.h"

namespace kvctl {
namespace {

/*! \brief Narrow for many: looks for one that does not fit only if there is one. */
void NarrowAll(const int64_t* values, int64_t count, const char* what,
               std::vector<int32_t>* narrowed) {
  narrowed->resize(count);
  int64_t wide = 0;
  for (int64_t i = 0; i < count; ++i) {
    (*narrowed)[i] = static_cast<int32_t>(values[i]);
    wide |= values[i] ^ (*narrowed)[i];
  }
  for (int64_t i = 0; wide != 0 && i < count; ++i) Narrow(values[i], what);
}

}  // namespace

void ForwardStep::Begin(const Shape& seq_ids, const Shape& append_lengths,
                        const tvm::ffi::Optional<Shape>& opt_parents, CopyPlan* copies) {
  if (seq_ids.size() != append_lengths.size()) {
    Throw(ErrorKind::kValue, "begin_forward names ", seq_ids.size(), " sequences and gives ",
          append_lengths.size(), " append lengths");
  }
  int64_t total = 0;
  for (int64_t length : append_lengths) total += std::max(Narrow(length, "append length"), 0);
  if (opt_parents.has_value()) {
    if (static_cast<int64_t>(opt_parents.value().size()) != total) {
      Throw(ErrorKind::kValue, "the token trees have ", opt_parents.value().size(),
            " parents and the step has ", total, " new tokens");
    }
    NarrowAll(opt_parents.value().data(), total, "token tree parent", &parents_);
  }
  table_.RequireNoForward("begin_forward");  // requests_ are those of the step in flight
  requests_.resize(seq_ids.size());
  int64_t row = 0;
  for (size_t i = 0; i < seq_ids.size(); ++i) {
    StepRequest& request = requests_[i] = {};
    request.seq_id = seq_ids[i];
    request.append_length = append_lengths[i];
    if (opt_parents.has_value()) {
      request.pending = true;
      request.parents = parents_.data() + row;
    }
    row += std::max<int64_t>(append_lengths[i], 0);
  }
  Begin(copies, true);
}

void ForwardStep::Begin(const std::vector<StepRequest>& requests, CopyPlan* copies) {
  table_.RequireNoForward("begin_forward");  // requests_ are those of the step in flight
  requests_ = requests;
  for (StepRequest& request : requests_) {
    if (request.resume) continue;
    const std::vector<int32_t>& pending = table_.Get(request.seq_id).pending.parents;
    ResolveTree(&request, static_cast<int32_t>(pending.size()),
                [&](int32_t node) { return pending[node]; });
    if (request.mask && request.mask->node().kind == MaskKind::kCausal) request.mask.reset();
    if (request.parents != nullptr && !request.AppendsPending()) {
      Throw(ErrorKind::kValue, "the tree of sequence ", request.seq_id,
            " makes its new tokens pending; pending=False is for masks without a tree");
    }
  }
  Begin(copies, false);
}

void ForwardStep::Begin(CopyPlan* copies, bool by_tvm) {
  table_.BeginForward(requests_, copies);
  try {
    SetMasks();
    all_.lowered = past_.lowered = new_.lowered = false;
    MasksOf(StepKeys::kAll);
    written_.assign(config_.num_layers, false);
    // Rows that resume have K and V in the layers that all of them ran.
    for (int64_t layer = 0; layer < LayersResumed(); ++layer) written_[layer] = true;
    in_parts_ = false;
    by_tvm_ = by_tvm;
  } catch (...) {
    table_.AbortForward(nullptr);
    throw;
  }
}

void ForwardStep::End() {
  const int64_t layer = FirstUnwrittenLayer();
  if (layer >= 0 && table_.StepCommits()) {
    Throw(ErrorKind::kRuntime, "end_forward: layer ", config_.first_layer + layer,
          " was not attended in this step, but others were, so it lacks K and V of the new "
          "tokens; attend every layer, or abort; tokens of a part of the model must be pending");
  }
  table_.EndForward(static_cast<int32_t>(layer));
}

int64_t ForwardStep::LayersResumed() const {
  int64_t layers = config_.num_layers;
  for (const StepRequest& request : requests_) {
    if (!request.resume) return 0;
    layers = std::min<int64_t>(layers, table_.Get(request.seq_id).pending.layers_written);
  }
  return layers;
}

int64_t ForwardStep::FirstUnwrittenLayer() const {
  // A model that attends in parts need not write every layer: some share the K and V of another.
  // TVM's callers may leave layers out, and know which layers they attend to later.
  const auto missing = std::find(written_.begin(), written_.end(), false);
  if (by_tvm_ || in_parts_ || missing == written_.end()) return -1;
  // A step without any attention changes only the sequence table.
  const bool none = std::find(written_.begin(), written_.end(), true) == written_.end();
  return none ? -1 : missing - written_.begin();
}

int64_t ForwardStep::num_keys() const {
  int64_t keys = 0;
  for (const SequencePlan& sequence : plan().sequences) keys += sequence.kv_len();
  return keys;
}

int32_t ForwardStep::AttendedLayer(int64_t layer_id) const {
  if (!table_.in_forward()) {
    Throw(ErrorKind::kRuntime, "attention is only possible between begin_forward and end_forward");
  }
  const int64_t layer = layer_id - config_.first_layer;
  if (layer < 0 || layer >= config_.num_layers) {
    Throw(ErrorKind::kIndex, "layer ", layer_id, " is not in the cache, which has layers ",
          config_.first_layer, " to ", config_.first_layer + config_.num_layers - 1);
  }
  return static_cast<int32_t>(layer);
}

bool ForwardStep::CacheHoldsNewTokens(int32_t layer) const {
  if (!written_[layer]) return false;
  bool decode = !config_.sliding_windows;
  for (const SequencePlan& sequence : plan().sequences) {
    if (sequence.num_pending > sequence.num_query_tokens) return true;  // a tree that grows
    decode &= sequence.num_query_tokens == 1;
  }
  for (const StepRequest& request : requests_) {
    decode &= table_.Get(request.seq_id).window.size == 0;
  }
  return decode;
}

}  // namespace kvctl
