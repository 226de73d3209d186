// A step of the paged cache: begin, end, commit.
#include <algorithm>

#include "core/support/narrow.h"
#include "kvctl/error.h"
#include "runtime/cache/paged_kv_cache_impl.h"
#include "runtime/support/new_parents.h"
#include "runtime/support/tensor_view.h"

namespace kvctl {
namespace {

/*! \brief The path from the root of its tree to a node, in order. */
std::vector<int32_t> PathTo(const PendingRegion& pending, int32_t node) {
  std::vector<int32_t> path;
  for (; node >= 0; node = pending.parents[node]) path.push_back(node);
  std::reverse(path.begin(), path.end());
  return path;
}

}  // namespace

void PagedKVCacheImpl::BeginForward(const Shape& seq_ids, const Shape& append_lengths,
                                    const tvm::ffi::Optional<Shape>& opt_parents) {
  WithLock([&] {
    if (seq_ids.size() != append_lengths.size()) {
      Throw(ErrorKind::kValue, "begin_forward names ", seq_ids.size(), " sequences and gives ",
            append_lengths.size(), " append lengths");
    }
    std::vector<int32_t> parents;
    int64_t total = 0;
    for (int64_t length : append_lengths) total += std::max(Narrow(length, "append length"), 0);
    if (opt_parents.has_value()) {
      if (static_cast<int64_t>(opt_parents.value().size()) != total) {
        Throw(ErrorKind::kValue, "the token trees have ", opt_parents.value().size(),
              " parents and the step has ", total, " new tokens");
      }
      for (int64_t parent : opt_parents.value()) {
        parents.push_back(Narrow(parent, "token tree parent"));
      }
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
        request.parents = parents.data() + row;
      }
      row += std::max<int64_t>(append_lengths[i], 0);
    }
    Begin();
  });
}

void PagedKVCacheImpl::BeginForward(const std::vector<StepRequest>& requests) {
  WithLock([&] {
    table_.RequireNoForward("begin_forward");  // requests_ are those of the step in flight
    requests_ = requests;
    for (StepRequest& request : requests_) {
      const std::vector<int32_t>& pending = table_.Get(request.seq_id).pending.parents;
      ResolveTree(&request, static_cast<int32_t>(pending.size()),
                  [&](int32_t node) { return pending[node]; });
      if (request.parents != nullptr && !request.AppendsPending()) {
        Throw(ErrorKind::kValue, "the tree of sequence ", request.seq_id,
              " makes its new tokens pending; pending=False is for masks without a tree");
      }
    }
    Begin();
  });
}

void PagedKVCacheImpl::Begin() {
  moves_.clear();
  table_.BeginForward(requests_, &moves_);
  const StepPlan& plan = table_.plan();
  try {
    KeepMasks();
    FillRotation(plan.positions.data(), plan.num_query_tokens(), &step_rotation_);
    all_.lowered = past_.lowered = new_.lowered = false;
    MasksOf(Columns::kAll);
    appended_.assign(config_.num_layers, false);
    in_parts_ = false;
    BeginOnCuda();
  } catch (...) {
    table_.AbortForward(nullptr);
    throw;
  }
  ApplyCopies();
}

int64_t PagedKVCacheImpl::FirstUnwrittenLayer() const {
  // Nobody who attends in parts has to write every layer: some share the K and V of another.
  const auto missing = std::find(appended_.begin(), appended_.end(), false);
  if (in_parts_ || missing == appended_.end()) return -1;
  // Without any attention the step moves the books alone.
  const bool books_only = std::find(appended_.begin(), appended_.end(), true) == appended_.end();
  return books_only ? -1 : missing - appended_.begin();
}

void PagedKVCacheImpl::EndForward() {
  WithLock([&] {
    const int64_t layer = FirstUnwrittenLayer();
    if (layer >= 0 && table_.StepCommits()) {
      Throw(ErrorKind::kRuntime, "end_forward: layer ", config_.first_layer + layer,
            " was not attended in this step, but others were, so it lacks K and V of the new "
            "tokens; attend every layer, or abort; tokens of a part of the model must be pending");
    }
    table_.EndForward(layer < 0);
  });
}

void PagedKVCacheImpl::AbortForward() {
  WithLock([&] {
    moves_.clear();
    table_.AbortForward(&moves_);
    ApplyCopies();
  });
}

void PagedKVCacheImpl::Commit(const std::vector<int64_t>& seq_ids,
                              const std::vector<std::vector<int32_t>>& kept) {
  WithLock([&] {
    moves_.clear();
    table_.Commit(seq_ids, kept, &moves_);
    ApplyCopies();
  });
}

void PagedKVCacheImpl::CommitAcceptedTokenTreeNodes(const Shape& seq_ids,
                                                    const Shape& leaf_indices) {
  WithLock([&] {
    if (seq_ids.size() != leaf_indices.size()) {
      Throw(ErrorKind::kValue, "commit names ", seq_ids.size(), " sequences and gives ",
            leaf_indices.size(), " leaves");
    }
    std::vector<int64_t> ids(seq_ids.begin(), seq_ids.end());
    std::vector<std::vector<int32_t>> kept;
    for (size_t i = 0; i < ids.size(); ++i) {
      const PendingRegion& pending = table_.Get(ids[i]).pending;
      const int64_t leaf = leaf_indices[i];
      if (leaf < -1 || leaf >= pending.size()) {
        Throw(ErrorKind::kIndex, "leaf ", leaf, " is not in the pending region of sequence ",
              ids[i], ", which has ", pending.size(), " nodes (-1 keeps none)");
      }
      kept.push_back(PathTo(pending, static_cast<int32_t>(leaf)));
    }
    moves_.clear();
    table_.Commit(ids, kept, &moves_);
    ApplyCopies();
  });
}

void PagedKVCacheImpl::ApplyCopies() {
  if (moves_.empty()) return;
  if (cuda_ != nullptr) return cuda_->Move(moves_, CurrentStream(config_.device));
  const auto carry_out = [&](const PageShape& shape, const std::vector<Tensor>& layers) {
    for (const Tensor& pages : layers) {
      void* data = DataPointer(pages.operator->());
      for (const PageCopy& copy : moves_.pages) CopyPageCpu(shape, data, copy.source, copy.target);
      for (const SlotMove& move : moves_.slots) CopySlotCpu(shape, data, move.source, move.target);
    }
  };
  carry_out(page_shape_, pages_);
  carry_out(plain_key_shape_, plain_keys_);
}

PagedKVCacheImpl::Tensor PagedKVCacheImpl::GetQueryPositions() {
  return WithLock([&] {
    if (!table_.in_forward()) {
      Throw(ErrorKind::kRuntime,
            "query positions exist only between begin_forward and end_forward");
    }
    return step_rotation_.positions.CreateView({table_.plan().num_query_tokens()}, {kDLInt, 32, 1});
  });
}

}  // namespace kvctl
