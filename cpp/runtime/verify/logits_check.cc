#include "runtime/verify/logits_check.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "kernels/convert_row.h"
#include "kvctl/error.h"

namespace kvctl {
namespace {

bool IsBad(double value) { return std::isnan(value) || value == HUGE_VAL; }

/*! \brief The first token of a row whose value is bad, or the size of the vocabulary. */
int64_t FirstBad(const BatchArrays& arrays, const void* row, std::vector<float>* buffer) {
  const int64_t size = arrays.vocab_size;
  if (arrays.target_type == DType::kFloat64) {
    const auto* values = static_cast<const double*>(row);
    return std::find_if(values, values + size, IsBad) - values;
  }
  buffer->resize(size);
  ConvertRow(row, arrays.target_type, buffer->data(), DType::kFloat32, size);
  return std::find_if(buffer->begin(), buffer->end(), IsBad) - buffer->begin();
}

/*! \brief For each node how far it lies below the root, or -1 if its row is never read: it is a
 * drafted stop token, or hangs on one. */
std::vector<int32_t> DepthsBeforeStops(const SequenceInput& input) {
  std::vector<int32_t> depths(input.size, 0);
  for (int32_t i = 1; i < input.size; ++i) {
    const int32_t above = depths[input.parents[i]];
    depths[i] = above < 0 || input.IsStop(input.tokens[i]) ? -1 : above + 1;
  }
  return depths;
}

}  // namespace

void CheckLogits(const BatchArrays& arrays, const std::vector<VerifyItem>& items) {
  const int64_t stride = arrays.target_stride == 0 ? arrays.vocab_size : arrays.target_stride;
  std::vector<float> buffer;
  for (size_t b = 0; b < items.size(); ++b) {
    const SequenceInput& input = items[b].input;
    const std::vector<int32_t> depths = DepthsBeforeStops(input);
    for (int32_t i = 0; i < input.size; ++i) {
      if (depths[i] < 0) continue;
      const auto* row = static_cast<const char*>(input.target) +
                        input.rows[i] * stride * DTypeSize(arrays.target_type);
      const int64_t token = FirstBad(arrays, row, &buffer);
      if (token == arrays.vocab_size) continue;
      std::string place;
      if (arrays.root_positions != nullptr) {
        place = " at position " + std::to_string(arrays.root_positions[b] + depths[i]);
      }
      Throw(ErrorKind::kValue, arrays.probabilities ? "probabilities" : "logits", " of sequence ",
            b, ", row ", input.rows[i], place, ": token ", token, " has NaN or infinity");
    }
  }
}

}  // namespace kvctl
