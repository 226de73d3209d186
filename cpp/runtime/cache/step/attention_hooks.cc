#include "runtime/cache/step/attention_hooks.h"

#include <algorithm>
#include <optional>

#include "kvctl/error.h"
#include "runtime/support/tensor_view.h"

namespace kvctl {

using tvm::ffi::Any;
using tvm::ffi::Array;
using tvm::ffi::Shape;
using tvm::runtime::Tensor;

void AttentionHooks::SetObserver(tvm::ffi::Optional<Function> observer,
                                 const ObserverOptions& options) {
  if (options.last_rows < 0) {
    Throw(ErrorKind::kValue, "the number of last tokens to watch must not be negative, got ",
          options.last_rows);
  }
  observer_ = std::move(observer);
  observer_options_ = options;
}

const int32_t* AttentionHooks::Selected(const SequencePlan& sequence, const Shape& pages) {
  const auto page_size = static_cast<int32_t>(config_.page_size);
  const int32_t num_pages = (sequence.kv_len() + page_size - 1) / page_size;
  const int32_t first_new = (sequence.kv_len() - sequence.num_query_tokens) / page_size;
  std::vector<int32_t>& selected = selected_pages_.emplace_back(num_pages, -1);
  for (int32_t page = first_new; page < num_pages; ++page) selected[page] = sequence.pages[page];
  for (const int64_t page : pages) {
    if (page < 0 || page >= num_pages) {
      Throw(ErrorKind::kIndex, "the page selector chose page ", page, " of a sequence with ",
            num_pages, " pages");
    }
    selected[page] = sequence.pages[page];
  }
  return selected.data();
}

const int32_t* const* AttentionHooks::SelectPages(const StepPlan& plan, int32_t layer,
                                                  const Tensor& q) {
  const Any answer = select_.value()(config_.first_layer + layer, q);
  const std::optional<Array<Any>> sequences = answer.try_cast<Array<Any>>();
  const size_t count = plan.sequences.size();
  if (!sequences.has_value() || sequences->size() != count) {
    Throw(ErrorKind::kValue, "the page selector must return an answer for each of ", count,
          " sequences");
  }
  head_pages_.clear();
  selected_pages_.clear();
  for (size_t s = 0; s < count; ++s) {
    const SequencePlan& sequence = plan.sequences[s];
    const Any one = (*sequences)[s];
    // None or one list for all heads, or one of either for each head.
    const std::optional<Array<Any>> heads =
        one.try_cast<Shape>().has_value() ? std::nullopt : one.try_cast<Array<Any>>();
    if (heads.has_value() && static_cast<int64_t>(heads->size()) != config_.num_kv_heads) {
      Throw(ErrorKind::kValue, "the page selector returned lists for ", heads->size(),
            " heads and the cache has ", config_.num_kv_heads, " KV heads");
    }
    for (int64_t head = 0; head < config_.num_kv_heads; ++head) {
      const Any own = heads.has_value() ? (*heads)[head] : one;
      if (own == nullptr) {
        head_pages_.push_back(sequence.pages);
      } else if (!heads.has_value() && head > 0) {
        head_pages_.push_back(head_pages_.back());
      } else if (const std::optional<Shape> pages = own.try_cast<Shape>()) {
        head_pages_.push_back(Selected(sequence, *pages));
      } else {
        Throw(
            ErrorKind::kType,
            "the page selector must return lists of pages, or None, for sequences or their heads");
      }
    }
  }
  return head_pages_.data();
}

void AttentionHooks::Observe(const ForwardStep& step, int64_t layer_id, const SumUp& sum_up) {
  constexpr DLDataType kFloat{kDLFloat, 32, 1};
  const StepPlan& plan = step.plan();
  const int64_t keys = step.num_keys();
  AttentionMass mass;
  mass.num_heads = static_cast<int32_t>(observer_options_.per_query_head ? config_.num_qo_heads
                                                                         : config_.num_kv_heads);
  mass.last_queries = static_cast<int32_t>(
      std::min<int64_t>(observer_options_.last_rows, std::max(plan.num_query_tokens(), 1)));
  Tensor all = Tensor::Empty({keys, mass.num_heads}, kFloat, config_.device);
  mass.sums = static_cast<float*>(DataPointer(all.operator->()));
  sum_up(mass);
  std::vector<int64_t> ids;
  Array<Tensor> sums;
  int64_t key = 0;
  for (size_t s = 0; s < plan.sequences.size(); ++s) {
    const int64_t length = plan.sequences[s].kv_len();
    ids.push_back(step.sequence_id(s));
    sums.push_back(
        all.CreateView({length, mass.num_heads}, kFloat, key * mass.num_heads * sizeof(float)));
    key += length;
  }
  observer_.value()(layer_id, Shape(ids), sums);
}

}  // namespace kvctl
