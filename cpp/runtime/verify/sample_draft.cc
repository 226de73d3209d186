#include "runtime/verify/sample_draft.h"

#include <limits>
#include <vector>

#include "core/verify/draft.h"
#include "kernels/sampling.h"
#include "kvctl/error.h"
#include "runtime/verify/verify_batch.h"
#include "runtime/verify/verify_checks.h"

namespace kvctl {
namespace {

// A node's index takes 28 bits of a random number's name.
constexpr int64_t kMaxNode = 1 << 27;
constexpr int64_t kMaxRows = std::numeric_limits<int32_t>::max();

void CheckBatch(const DraftBatch& batch) {
  InRange(static_cast<int64_t>(batch.how), 0, kNumDrawn - 1, "how");
  InRange(batch.num_tokens, 1, kMaxNode, "the number of tokens to draw");
  InRange(batch.num_rows, 0, kMaxRows, "the number of rows");
  CheckRowType(batch.dtype, false, "logits");
  if (batch.logits == nullptr && batch.num_rows > 0) {
    Throw(ErrorKind::kValue, "logits must be given");
  }
  const int32_t vocab_size = CheckVocabSize(batch.vocab_size);
  CheckStride(batch.row_stride, vocab_size);
  if (!batch.sampling.empty()) CheckSamplings(batch.sampling, batch.num_rows, vocab_size);
  CheckStreams(batch.request_ids, batch.root_positions, batch.num_rows,
               batch.how != Drawn::kDeterministic);
  CheckOneForEach(batch.first_nodes, batch.num_rows, "first_nodes");
  CheckOneForEach(batch.depths, batch.num_rows, "depths");
}

DraftItem MakeItem(const DraftBatch& batch, const uint32_t* bitmask, int64_t row) {
  static const Sampling kSoftmax;
  const auto entry = [row](const auto& values, int64_t otherwise) {
    return values.empty() ? otherwise : static_cast<int64_t>(values[row]);
  };
  const int64_t stride = batch.row_stride == 0 ? batch.vocab_size : batch.row_stride;
  DraftItem item{};
  item.row.values = static_cast<const char*>(batch.logits) + row * stride * DTypeSize(batch.dtype);
  item.row.type = batch.dtype;
  if (bitmask != nullptr) item.row.bitmask = bitmask + row * ((batch.vocab_size + 31) / 32);
  item.sampling =
      batch.sampling.empty() ? &kSoftmax : &batch.sampling[batch.sampling.size() == 1 ? 0 : row];
  item.stream = {batch.seed, static_cast<uint64_t>(entry(batch.request_ids, 0))};
  item.root_position = CheckRootPosition(entry(batch.root_positions, 0), row, 0);
  const int64_t first = InRange(entry(batch.first_nodes, 1), 1, kMaxNode, "first node");
  item.first_node = static_cast<uint32_t>(first);
  item.depth = static_cast<uint32_t>(InRange(entry(batch.depths, first), 1, kMaxNode, "depth"));
  return item;
}

/*! \brief A checked batch. */
struct CheckedItems {
  std::vector<uint32_t> fitted;  // where the items' bitmasks may point
  std::vector<DraftItem> items;

  CheckedItems(const DraftBatch& batch, int32_t* tokens, void* probs, DType probs_dtype) {
    CheckBatch(batch);
    CheckRowType(probs_dtype, true, "probs");
    const uint32_t* bitmask =
        FitBitmask(batch.bitmask, batch.num_rows, batch.bitmask_words, batch.vocab_size, &fitted);
    items.reserve(batch.num_rows);
    for (int64_t row = 0; row < batch.num_rows; ++row) {
      DraftItem item = MakeItem(batch, bitmask, row);
      item.tokens = tokens + row * batch.num_tokens;
      if (probs != nullptr) {
        item.probs = static_cast<char*>(probs) + row * batch.vocab_size * DTypeSize(probs_dtype);
      }
      items.push_back(item);
    }
  }
};

}  // namespace

void SampleDraftInto(const DraftBatch& batch, int32_t* tokens, void* probs, DType probs_dtype) {
  CheckedItems checked(batch, tokens, probs, probs_dtype);
  DraftItems(batch.how, batch.num_tokens, probs_dtype, static_cast<int32_t>(batch.vocab_size),
             ShareItemsAmongThreads, &checked.items);
}

bool SampleDraftOnDevice(const DraftBatch& batch, CudaVerify* cuda, void* stream, int32_t* tokens,
                         void* probs, DType probs_dtype) {
  CheckedItems checked(batch, tokens, probs, probs_dtype);
  return cuda->Draft(batch.how, batch.num_tokens, probs_dtype,
                     static_cast<int32_t>(batch.vocab_size), &checked.items, stream);
}

DraftSample SampleDraft(const DraftBatch& batch) {
  CheckBatch(batch);
  DraftSample sample;
  sample.tokens.resize(batch.num_rows * batch.num_tokens);
  sample.probs.resize(batch.num_rows * batch.vocab_size);
  SampleDraftInto(batch, sample.tokens.data(), sample.probs.data(), DType::kFloat32);
  return sample;
}

}  // namespace kvctl
