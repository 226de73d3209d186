// Attention to the pages that a function of the queries chooses.
#include <cstring>

#include "kvctl/error.h"
#include "runtime/cache/paged_kv_cache_impl.h"
#include "runtime/support/tensor_view.h"

namespace kvctl {

void PagedKVCacheImpl::SetPageSelector(tvm::ffi::Optional<tvm::ffi::Function> select) {
  WithLock([&] {
    if (select.has_value()) RequireCpu(config_.device, "a page selector");
    select_ = std::move(select);
  });
}

const int32_t* PagedKVCacheImpl::Chosen(const SequencePlan& sequence, const Shape& pages) {
  const int32_t page_size = page_shape_.page_size;
  const int32_t num_pages = (sequence.kv_len() + page_size - 1) / page_size;
  const int32_t first_new = (sequence.kv_len() - sequence.num_query_tokens) / page_size;
  std::vector<int32_t>& chosen = chosen_pages_.emplace_back(num_pages, -1);
  for (int32_t page = first_new; page < num_pages; ++page) chosen[page] = sequence.pages[page];
  for (const int64_t page : pages) {
    if (page < 0 || page >= num_pages) {
      Throw(ErrorKind::kIndex, "the page selector chose page ", page, " of a sequence with ",
            num_pages, " pages");
    }
    chosen[page] = sequence.pages[page];
  }
  return chosen.data();
}

void PagedKVCacheImpl::SelectPages(int32_t layer, const void* q, DType dtype,
                                   int64_t q_row_stride) {
  using tvm::ffi::Any;
  using tvm::ffi::Array;
  const StepPlan& plan = table_.plan();
  const int64_t width = config_.num_qo_heads * config_.head_dim;
  const bool bits16 = dtype != DType::kFloat32;
  const DLDataType type{static_cast<uint8_t>(dtype == DType::kBFloat16 ? kDLBfloat : kDLFloat),
                        static_cast<uint8_t>(bits16 ? 16 : 32), 1};
  Tensor rows = Tensor::Empty({plan.num_query_tokens(), config_.num_qo_heads, config_.head_dim},
                              type, config_.device);
  for (int64_t row = 0; row < plan.num_query_tokens(); ++row) {
    std::memcpy(static_cast<char*>(DataPointer(rows.operator->())) + row * width * DTypeSize(dtype),
                static_cast<const char*>(q) + row * q_row_stride * DTypeSize(dtype),
                width * DTypeSize(dtype));
  }
  const Any answer = select_.value()(config_.first_layer + layer, rows);
  const std::optional<Array<Any>> sequences = answer.try_cast<Array<Any>>();
  const size_t count = plan.sequences.size();
  if (!sequences.has_value() || sequences->size() != count) {
    Throw(ErrorKind::kValue, "the page selector must return an answer for each of ", count,
          " sequences");
  }
  head_pages_.clear();
  chosen_pages_.clear();
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
        head_pages_.push_back(Chosen(sequence, *pages));
      } else {
        Throw(
            ErrorKind::kType,
            "the page selector must return lists of pages, or None, for sequences or their heads");
      }
    }
  }
}

}  // namespace kvctl
