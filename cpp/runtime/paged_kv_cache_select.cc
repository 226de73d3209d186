// Attention to the pages that a function of the queries chooses.
#include <cstring>

#include "kvctl/error.h"
#include "runtime/paged_kv_cache_impl.h"
#include "runtime/tensor_view.h"

namespace kvctl {

void PagedKVCacheImpl::SetPageSelector(tvm::ffi::Optional<tvm::ffi::Function> select) {
  InTurn([&] {
    if (select.has_value()) RequireCpu(config_.device, "a page selector");
    select_ = std::move(select);
  });
}

void PagedKVCacheImpl::SelectPages(int32_t layer, const void* q, DType dtype,
                                   int64_t q_row_stride) {
  using Pages = tvm::ffi::Array<tvm::ffi::Optional<Shape>>;
  const StepPlan& plan = table_.plan();
  const int64_t width = config_.num_qo_heads * config_.head_dim;
  const bool bits16 = dtype != DType::kFloat32;
  const DLDataType type{static_cast<uint8_t>(dtype == DType::kBFloat16 ? kDLBfloat : kDLFloat),
                        static_cast<uint8_t>(bits16 ? 16 : 32), 1};
  Tensor rows = Tensor::Empty({plan.num_rows(), config_.num_qo_heads, config_.head_dim}, type,
                              config_.device);
  for (int64_t row = 0; row < plan.num_rows(); ++row) {
    std::memcpy(static_cast<char*>(DataPointer(rows.operator->())) + row * width * DTypeSize(dtype),
                static_cast<const char*>(q) + row * q_row_stride * DTypeSize(dtype),
                width * DTypeSize(dtype));
  }
  const tvm::ffi::Any answer = select_.value()(config_.first_layer + layer, rows);
  const std::optional<Pages> pages = answer.try_cast<Pages>();
  if (!pages.has_value() || pages->size() != plan.sequences.size()) {
    Throw(ErrorKind::kValue,
          "the page selector must return one list of pages, or None, for each of ",
          plan.sequences.size(), " sequences");
  }
  selected_ = plan.sequences;
  chosen_pages_.resize(plan.sequences.size());
  for (size_t s = 0; s < selected_.size(); ++s) {
    if (!(*pages)[s].has_value()) continue;
    SequencePlan& sequence = selected_[s];
    const int32_t page_size = page_shape_.page_size;
    const int32_t num_pages = (sequence.num_columns() + page_size - 1) / page_size;
    const int32_t first_new = (sequence.num_columns() - sequence.num_rows) / page_size;
    std::vector<int32_t>& chosen = chosen_pages_[s];
    chosen.assign(num_pages, -1);
    for (int32_t page = first_new; page < num_pages; ++page) chosen[page] = sequence.pages[page];
    for (const int64_t page : (*pages)[s].value()) {
      if (page < 0 || page >= num_pages) {
        Throw(ErrorKind::kIndex, "the page selector chose page ", page, " of a sequence with ",
              num_pages, " pages");
      }
      chosen[page] = sequence.pages[page];
    }
    sequence.pages = chosen.data();
  }
}

}  // namespace kvctl
