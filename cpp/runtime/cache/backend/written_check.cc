#include "runtime/cache/backend/written_check.h"

#include <algorithm>
#include <cmath>

#include "kernels/convert_row.h"
#include "kvctl/error.h"

namespace kvctl {
namespace {

/*! \brief The sequence of one of the step's new tokens. */
int64_t SequenceOf(const ForwardStep& step, int64_t row) {
  const std::vector<SequencePlan>& sequences = step.plan().sequences;
  size_t s = 0;
  while (row >= sequences[s].query_begin + sequences[s].num_query_tokens) ++s;
  return step.sequence_id(s);
}

/*! \brief An element of given rows. */
float GivenValue(const KVRows& given, int64_t row, int64_t element) {
  float value = 0;
  const int64_t at = (row * given.row_stride + element) * DTypeSize(given.dtype);
  ConvertRow(static_cast<const char*>(given.data) + at, given.dtype, &value, DType::kFloat32, 1);
  return value;
}

/*! \brief The element that made another of its row what no page can hold; most often itself. */
int64_t Culprit(const WrittenRows& rows, const KVRows& given, int64_t row, int64_t element) {
  if (rows.shape.dtype != DType::kInt8) return element;
  // One infinite element has made NaN of its whole head: see kernels/int8_row.h.
  const int64_t end = (element / rows.shape.head_dim + 1) * rows.shape.head_dim;
  for (int64_t other = element; other < end; ++other) {
    if (!std::isfinite(GivenValue(given, row, other))) return other;
  }
  return element;
}

void CheckPart(const ForwardStep& step, const WrittenRows& rows, const char* name,
               const KVRows& given, const std::vector<float>& in_pages) {
  if (given.data == nullptr) return;
  const auto bad = std::find_if(in_pages.begin(), in_pages.end(),
                                [](float value) { return !std::isfinite(value); });
  if (bad == in_pages.end()) return;
  const int64_t size = int64_t{rows.shape.num_kv_heads} * rows.shape.head_dim;
  const int64_t row = (bad - in_pages.begin()) / size;
  const int64_t element = Culprit(rows, given, row, (bad - in_pages.begin()) % size);
  const float value = GivenValue(given, row, element);
  const int64_t sequence = SequenceOf(step, row);
  const int32_t position = step.plan().positions[row];
  const int64_t head = element / rows.shape.head_dim;
  if (std::isfinite(value)) {
    Throw(ErrorKind::kValue, "layer ", rows.layer_id, ": ", name, " of sequence ", sequence,
          " at position ", position, " (KV head ", head, ") is ", value,
          ", which the cache's type, ", DTypeName(rows.shape.dtype), ", cannot hold");
  }
  Throw(ErrorKind::kValue, "layer ", rows.layer_id, ": ", name, " of sequence ", sequence,
        " at position ", position, " (KV head ", head, ") is ", value);
}

}  // namespace

void CheckWritten(const ForwardStep& step, const WrittenRows& rows) {
  const auto count = static_cast<int64_t>(rows.slots.size());
  const int64_t size = int64_t{rows.shape.num_kv_heads} * rows.shape.head_dim;
  std::vector<float> k(rows.k.data == nullptr ? 0 : count * size);
  std::vector<float> v(rows.v.data == nullptr ? 0 : count * size);
  const auto into = [&](std::vector<float>* values) {
    return KVRows{values->empty() ? nullptr : values->data(), DType::kFloat32, size};
  };
  ReadSlotsCpu(rows.shape, rows.pages, rows.slots.data(), count, into(&k), into(&v));
  CheckPart(step, rows, "K", rows.k, k);
  CheckPart(step, rows, "V", rows.v, v);
}

}  // namespace kvctl
