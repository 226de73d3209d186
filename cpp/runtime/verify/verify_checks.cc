#include "runtime/verify/verify_checks.h"

#include <algorithm>
#include <limits>

#include "core/sampling/distribution.h"

namespace kvctl {
namespace {

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

}  // namespace

int64_t InRange(int64_t value, int64_t low, int64_t high, const char* name) {
  if (value < low || value > high) {
    Throw(ErrorKind::kValue, name, " must be in [", low, ", ", high, "], got ", value);
  }
  return value;
}

int32_t CheckVocabSize(int64_t size) {
  return static_cast<int32_t>(InRange(size, 1, kMaxVocab, "the vocabulary size"));
}

uint32_t CheckRootPosition(int64_t position, int64_t sequence, int64_t least) {
  if (position < least || position > kMaxInt32) {
    Throw(ErrorKind::kValue, "sequence ", sequence, ": its position must be in [", least, ", ",
          kMaxInt32, "], got ", position);
  }
  return static_cast<uint32_t>(position);
}

void CheckSamplings(const std::vector<Sampling>& samplings, int64_t size, int32_t vocab_size) {
  const auto given = static_cast<int64_t>(samplings.size());
  if (given != 1 && given != size) {
    Throw(ErrorKind::kValue, "sampling parameters must be one for all or one for each of ", size,
          " sequences, got ", given);
  }
  for (const Sampling& sampling : samplings) sampling.Check(vocab_size);
}

void CheckRowType(DType dtype, bool distribution, const char* what) {
  const bool allowed = distribution ? dtype == DType::kFloat32 || dtype == DType::kFloat64
                                    : dtype != DType::kFloat64;
  if (allowed) return;
  Throw(ErrorKind::kType, what, " must be ",
        distribution ? "float32 or float64" : "float32, float16 or bfloat16", ", got ",
        DTypeName(dtype));
}

int64_t CheckStride(int64_t stride, int64_t vocab_size) {
  if (stride != 0 && stride < vocab_size) {
    Throw(ErrorKind::kValue, "row_stride must be 0 or at least the vocabulary size, ", vocab_size,
          ", got ", stride);
  }
  return stride == vocab_size ? 0 : stride;
}

void CheckStreams(const std::vector<uint64_t>& request_ids,
                  const std::vector<int64_t>& root_positions, int64_t size, bool random) {
  CheckOneForEach(request_ids, size, "request_ids");
  CheckOneForEach(root_positions, size, "root_positions");
  if (!random || size == 0) return;
  if (root_positions.empty()) {
    Throw(ErrorKind::kValue, "root_positions must be given where tokens are sampled: they name ",
          "the random numbers, and the same numbers in every round would bias the output");
  }
  if (request_ids.empty() && size > 1) {
    Throw(ErrorKind::kValue, "request_ids must be given where tokens of ", size,
          " sequences are sampled: they name the random numbers, which must not depend on the ",
          "order of the batch");
  }
}

bool AnyRandom(const std::vector<Sampling>& samplings) {
  return std::any_of(samplings.begin(), samplings.end(),
                     [](const Sampling& sampling) { return sampling.temperature > 0; });
}

}  // namespace kvctl
