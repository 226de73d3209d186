// A step of the paged cache, and K and V that leave it or come to it.
#include "kvctl/error.h"
#include "runtime/cache/paged_kv_cache_impl.h"
#include "runtime/cache/transfer/transfer_metadata.h"

namespace kvctl {
namespace {

using tvm::ffi::Shape;
using tvm::runtime::Tensor;

/*! \brief The path from the root of its tree to a node, in order. */
void PathTo(const PendingRegion& pending, int32_t node, std::vector<int32_t>* path) {
  path->resize(node < 0 ? 0 : pending.depths[node] + 1);
  for (auto end = path->rbegin(); node >= 0; node = pending.parents[node]) *end++ = node;
}

/*! \brief The paths to the leaves that TVM's commit names, one for each sequence; -1 keeps none. */
void PathsTo(const SequenceTable& table, const std::vector<int64_t>& seq_ids,
             const Shape& leaf_indices, std::vector<std::vector<int32_t>>* paths) {
  if (seq_ids.size() != leaf_indices.size()) {
    Throw(ErrorKind::kValue, "commit names ", seq_ids.size(), " sequences and gives ",
          leaf_indices.size(), " leaves");
  }
  paths->resize(seq_ids.size());
  for (size_t i = 0; i < seq_ids.size(); ++i) {
    const PendingRegion& pending = table.Get(seq_ids[i]).pending;
    const int64_t leaf = leaf_indices[i];
    if (leaf < -1 || leaf >= pending.size()) {
      Throw(ErrorKind::kIndex, "leaf ", leaf, " is not in the pending region of sequence ",
            seq_ids[i], ", which has ", pending.size(), " nodes (-1 keeps none)");
    }
    PathTo(pending, static_cast<int32_t>(leaf), &(*paths)[i]);
  }
}

}  // namespace

template <typename F>
void PagedKVCacheImpl::Change(F&& change) {
  copies_.clear();
  change(&copies_);
  backend_->ApplyCopies(copies_);
}

template <typename L, typename F>
void PagedKVCacheImpl::BeginStep(L&& lengths, F&& begin) {
  std::optional<StepLengths> of_step;
  if (partner_.MayHavePartner()) {
    of_step = lengths();
    for (int64_t id : of_step->seq_ids) {  // -1 tokens for a sequence that does not exist
      of_step->before.push_back(table_.Contains(id) ? table_.Get(id).kv_len() : -1);
    }
    if (!table_.in_forward()) partner_.Check(*of_step);
  }
  Change([&](CopyPlan* copies) {
    begin(copies);
    try {
      backend_->BeginStep(&step_);
    } catch (...) {
      table_.AbortForward(nullptr);
      throw;
    }
  });
  if (of_step.has_value()) partner_.Begin(std::move(*of_step));
}

void PagedKVCacheImpl::BeginForward(const Shape& seq_ids, const Shape& append_lengths,
                                    const tvm::ffi::Optional<Shape>& parents) {
  WithLock([&] {
    BeginStep(
        [&] {
          return StepLengths{
              {seq_ids.begin(), seq_ids.end()}, {append_lengths.begin(), append_lengths.end()}, {}};
        },
        [&](CopyPlan* copies) { step_.Begin(seq_ids, append_lengths, parents, copies); });
  });
}

void PagedKVCacheImpl::BeginForward(const std::vector<StepRequest>& requests) {
  WithLock([&] {
    BeginStep(
        [&] {
          StepLengths lengths;
          for (const StepRequest& request : requests) {
            lengths.seq_ids.push_back(request.seq_id);
            lengths.appended.push_back(request.resume ? 0 : request.append_length);
          }
          return lengths;
        },
        [&](CopyPlan* copies) { step_.Begin(requests, copies); });
  });
}

void PagedKVCacheImpl::EndForward() {
  WithLock(
      [&] {
        step_.End();
        partner_.End();
      },
      WhenBusy::kWait);
}

void PagedKVCacheImpl::AbortForward() {
  WithLock(
      [&] {
        Change([&](CopyPlan* copies) { table_.AbortForward(copies); });
        partner_.End();
      },
      WhenBusy::kWait);
}

void PagedKVCacheImpl::Commit(const std::vector<int64_t>& seq_ids,
                              const std::vector<std::vector<int32_t>>& kept) {
  WithLock([&] { Change([&](CopyPlan* copies) { table_.Commit(seq_ids, kept, copies); }); });
}

void PagedKVCacheImpl::CommitAnyNodes(const std::vector<int64_t>& seq_ids,
                                      const std::vector<std::vector<int32_t>>& kept) {
  WithLock([&] {
    Change([&](CopyPlan* copies) { table_.Commit(seq_ids, kept, copies, KeptNodes::kAny); });
  });
}

void PagedKVCacheImpl::CommitAcceptedTokenTreeNodes(const Shape& seq_ids,
                                                    const Shape& leaf_indices) {
  WithLock([&] {
    const std::vector<int64_t> ids(seq_ids.begin(), seq_ids.end());
    PathsTo(table_, ids, leaf_indices, &paths_);
    Change([&](CopyPlan* copies) { table_.Commit(ids, paths_, copies); });
  });
}

Tensor PagedKVCacheImpl::GetQueryPositions() {
  return WithLock([&] {
    if (!table_.in_forward()) {
      Throw(ErrorKind::kRuntime,
            "query positions exist only between begin_forward and end_forward");
    }
    return rotator_.step_positions().CreateView({step_.plan().num_query_tokens()}, {kDLInt, 32, 1});
  });
}

void PagedKVCacheImpl::AttentionWithFusedQKV(int64_t layer_id, Tensor qkv,
                                             tvm::ffi::Optional<Tensor> mask, Tensor out,
                                             double sm_scale) {
  Guard([&] {
    if (mask.has_value()) {
      Throw(ErrorKind::kNotImplemented,
            "kvctl takes masks at begin_forward, not in the attention call");
    }
  });
  Attention(layer_id, qkv, out, sm_scale, {});
}

void PagedKVCacheImpl::Attention(int64_t layer_id, const Tensor& qkv, const Tensor& out,
                                 double sm_scale, const AttentionOptions& options) {
  WithLock([&] { backend_->Attend(&step_, {layer_id, qkv, out, sm_scale, options}); });
}

bool PagedKVCacheImpl::AttentionInPlace(int64_t layer_id, const Tensor& q, const Tensor& k,
                                        const Tensor& v, const Tensor& out, double sm_scale,
                                        const AttentionOptions& options) {
  return WithLock(
      [&] { return backend_->AttendInPlace(&step_, {layer_id, q, k, v, out, sm_scale, options}); });
}

void PagedKVCacheImpl::SelfAttention(int64_t layer_id, Tensor q, Tensor k, Tensor v, Tensor out,
                                     Tensor lse, double sm_scale) {
  WithLock([&] {
    backend_->AttendPart(&step_, {PartKind::kSelf, layer_id, q, k, v, out, lse, sm_scale});
  });
}

void PagedKVCacheImpl::CrossAttention(int64_t layer_id, Tensor q, Tensor out, Tensor lse,
                                      double sm_scale) {
  WithLock([&] {
    backend_->AttendPart(
        &step_, {PartKind::kCross, layer_id, q, std::nullopt, std::nullopt, out, lse, sm_scale});
  });
}

void PagedKVCacheImpl::AttentionWithSharedKV(int64_t source_layer_id, Tensor q, Tensor k, Tensor v,
                                             Tensor out, double sm_scale) {
  WithLock([&] {
    backend_->AttendPart(
        &step_, {PartKind::kSharedKV, source_layer_id, q, k, v, out, std::nullopt, sm_scale});
  });
}

tvm::ffi::Array<Tensor> PagedKVCacheImpl::MergeAttnOutputInplace(Tensor out, Tensor lse,
                                                                 Tensor other_out,
                                                                 Tensor other_lse) {
  WithLock([&] { backend_->Merge({out, lse, other_out, other_lse}); });
  return {out, lse};
}

void PagedKVCacheImpl::SetPageSelector(tvm::ffi::Optional<tvm::ffi::Function> select) {
  WithLock([&] {
    if (select.has_value()) backend_->Require(CacheFeature::kPageSelector);
    hooks_.SetPageSelector(std::move(select));
  });
}

void PagedKVCacheImpl::SetObserver(tvm::ffi::Optional<tvm::ffi::Function> observer,
                                   const ObserverOptions& options) {
  WithLock([&] {
    if (observer.has_value()) backend_->Require(CacheFeature::kAttentionSums);
    hooks_.SetObserver(std::move(observer), options);
  });
}

SavedSequence PagedKVCacheImpl::SaveSequence(int64_t seq_id) const {
  return WithLock([&] { return transfer_.Save(seq_id); });
}

void PagedKVCacheImpl::LoadSequence(int64_t seq_id, const SavedSequence& saved) {
  WithLock([&] { transfer_.Load(seq_id, saved); });
}

PagedKVCacheImpl::String PagedKVCacheImpl::GetCheckpointMetadata(int64_t seq_id) const {
  return WithLock([&] { return String(transfer_.Metadata(seq_id)); });
}

PagedKVCacheImpl::String PagedKVCacheImpl::GetLayoutHash() const {
  return WithLock([&] { return String(LayoutHash(config_)); });
}

void PagedKVCacheImpl::ExportPageGroup(int64_t seq_id, int64_t group_id, Tensor dst) {
  WithLock([&] { transfer_.ExportPageGroup(seq_id, group_id, dst); });
}

void PagedKVCacheImpl::PrepareImport(int64_t seq_id, String metadata_json) {
  WithLock([&] { transfer_.PrepareImport(seq_id, metadata_json); });
}

void PagedKVCacheImpl::ImportPageGroup(int64_t seq_id, int64_t group_id, Tensor src) {
  WithLock([&] { transfer_.ImportPageGroup(seq_id, group_id, src); });
}

void PagedKVCacheImpl::FinishImport(int64_t seq_id) {
  WithLock([&] { transfer_.FinishImport(seq_id); });
}

void PagedKVCacheImpl::DebugGetKV(int64_t seq_id, int64_t begin, int64_t end, Tensor k, Tensor v) {
  WithLock([&] { transfer_.ReadTokens(seq_id, begin, end, k, v); });
}

void PagedKVCacheImpl::DebugSetKV(int64_t seq_id, int64_t begin, Tensor k, Tensor v) {
  WithLock([&] { transfer_.WriteTokens(seq_id, begin, k, v); });
}

Shape PagedKVCacheImpl::DisaggPrepareRecv(int64_t, int) {
  return Guard([]() -> Shape { Refuse(CacheFeature::kDisaggregatedPrefill); });
}

void PagedKVCacheImpl::DisaggMarkSend(int64_t, int64_t, const Shape&, int32_t) {
  Guard([] { Refuse(CacheFeature::kDisaggregatedPrefill); });
}

void PagedKVCacheImpl::AppendMLAKV(int64_t, Tensor) {
  Guard([] { Refuse(CacheFeature::kMLA); });
}

void PagedKVCacheImpl::LinearAttention(int64_t, Tensor, Tensor, Tensor, double) {
  Guard([] { Refuse(CacheFeature::kLinearAttention); });
}

void PagedKVCacheImpl::DebugGetKVMLA(int64_t, int64_t, int64_t, Tensor) {
  Guard([] { Refuse(CacheFeature::kMLA); });
}

}  // namespace kvctl
