// What attention gave to each column, for those who watch.
#include <algorithm>

#include "kvctl/error.h"
#include "runtime/cache/paged_kv_cache_impl.h"
#include "runtime/support/tensor_view.h"

namespace kvctl {

void PagedKVCacheImpl::RefuseToObserve() {
  Throw(ErrorKind::kNotImplemented, "what tokens get of attention is summed up on the CPU only");
}

void PagedKVCacheImpl::SetObserver(tvm::ffi::Optional<tvm::ffi::Function> observer,
                                   const ObserverOptions& options) {
  WithLock([&] {
    if (options.last_rows < 0) {
      Throw(ErrorKind::kValue, "the number of last tokens to watch must not be negative, got ",
            options.last_rows);
    }
    if (observer.has_value() && cuda_ != nullptr) RefuseToObserve();
    observer_ = std::move(observer);
    observer_options_ = options;
  });
}

void PagedKVCacheImpl::AttendObserved(int64_t layer_id, std::vector<AttentionArgs>* runs,
                                      const Tensor& out, double sm_scale,
                                      const AttentionOptions& options) {
  constexpr DLDataType kFloat{kDLFloat, 32, 1};
  const StepPlan& plan = table_.plan();
  int64_t columns = 0;
  for (const SequencePlan& sequence : plan.sequences) columns += sequence.kv_len();

  AttentionMass own;  // of the call itself, checked before anything happens
  if (options.mass.has_value()) {
    const Tensor mass = options.mass.value();
    own.num_heads = static_cast<int32_t>(mass->ndim == 2 && mass->shape[1] == config_.num_qo_heads
                                             ? config_.num_qo_heads
                                             : config_.num_kv_heads);
    own.sums = PerHead(mass, "mass", {columns, own.num_heads});
  }
  AttentionOptions with_lse = options;
  if (!options.lse.has_value()) {
    with_lse.lse =
        Tensor::Empty({plan.num_query_tokens(), config_.num_qo_heads}, kFloat, config_.device);
  }
  Attend(runs, out, sm_scale, with_lse);
  // Where several runs see some of the columns each, it is the sum of all that they are a share of.
  const auto sum_up = [&](const AttentionMass& mass) {
    for (AttentionArgs& args : *runs) {
      args.lse = static_cast<float*>(DataPointer(with_lse.lse.value().operator->()));
      AttentionMassCpu(args, mass);
    }
  };
  if (own.sums != nullptr) sum_up(own);
  if (!observer_.has_value()) return;

  AttentionMass watched;
  watched.num_heads = static_cast<int32_t>(observer_options_.per_query_head ? config_.num_qo_heads
                                                                            : config_.num_kv_heads);
  watched.last_queries = static_cast<int32_t>(
      std::min<int64_t>(observer_options_.last_rows, std::max(plan.num_query_tokens(), 1)));
  Tensor all = Tensor::Empty({columns, watched.num_heads}, kFloat, config_.device);
  watched.sums = static_cast<float*>(DataPointer(all.operator->()));
  std::fill_n(watched.sums, columns * watched.num_heads, 0.f);
  sum_up(watched);
  std::vector<int64_t> ids;
  tvm::ffi::Array<Tensor> sums;
  int64_t column = 0;
  for (size_t s = 0; s < plan.sequences.size(); ++s) {
    const int64_t length = plan.sequences[s].kv_len();
    ids.push_back(requests_[s].seq_id);
    sums.push_back(all.CreateView({length, watched.num_heads}, kFloat,
                                  column * watched.num_heads * sizeof(float)));
    column += length;
  }
  observer_.value()(layer_id, Shape(ids), sums);
}

}  // namespace kvctl
