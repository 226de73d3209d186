// Sampling parameters that are out of range are refused by name.
#include <cmath>
#include <limits>

#include "core/sampling/sampling.h"
#include "kvctl/error.h"

namespace kvctl {
namespace {

void CheckRange(const char* name, double value, double low, double high, const char* allowed) {
  if (!(value >= low && value <= high)) {
    Throw(ErrorKind::kValue, name, " must be ", allowed, ", got ", value);
  }
}

}  // namespace

void Sampling::Check(int32_t vocab_size) const {
  CheckRange("temperature", temperature, 0, 1e30, "from 0 to 1e30");
  CheckRange("top_k", top_k, 0, std::numeric_limits<int32_t>::max(), "at least 0 (0: all tokens)");
  CheckRange("top_p", top_p, std::numeric_limits<double>::min(), 1, "in (0, 1]");
  CheckRange("min_p", min_p, 0, 1, "in [0, 1]");
  CheckRange("repetition_penalty", repetition_penalty, 1e-6, 1e6, "positive");
  CheckRange("presence_penalty", presence_penalty, -1e6, 1e6, "finite");
  CheckRange("frequency_penalty", frequency_penalty, -1e6, 1e6, "finite");
  for (const auto& [token, bias] : logit_bias) {
    if (token < 0 || token >= vocab_size) {
      Throw(ErrorKind::kIndex, "logit_bias names token ", token, ", but the vocabulary has ",
            vocab_size);
    }
    if (std::isnan(bias)) Throw(ErrorKind::kValue, "the logit_bias of token ", token, " is NaN");
  }
}

}  // namespace kvctl
