// The proof that cached keys can be rotated to other positions.
#include <cmath>
#include <sstream>

#include "kernels/convert_row.h"
#include "kvctl/error.h"
#include "runtime/cache/step/key_rotator.h"

namespace kvctl {
namespace {

using tvm::runtime::Tensor;

// What rounding position * frequency to float32 may add to an angle, per unit of the position.
constexpr double kAngleRounding = 2.4e-7;

/*! \brief How far two ways to rotate keys of a type may differ, apart from the angles' rounding. */
double RoundingOf(DType dtype) {
  return dtype == DType::kFloat32 ? 1e-6 : dtype == DType::kFloat16 ? 4e-3 : 3e-2;
}

std::vector<float> Floats(const Tensor& keys) {
  const KVRows rows = PartRows(keys, 0);
  std::vector<float> floats(keys->shape[1] * rows.row_stride);
  ConvertRow(rows.data, rows.dtype, floats.data(), DType::kFloat32,
             static_cast<int64_t>(floats.size()));
  return floats;
}

}  // namespace

bool KeyRotator::RerotatesInPlace() const {
  return step_.table != nullptr && config_.rope_mode != RopeMode::kInline;
}

void KeyRotator::CheckCanRerotate(const char* operation) {
  if (config_.rope_mode == RopeMode::kNone) {
    Throw(ErrorKind::kNotImplemented, operation,
          " rotates keys that the cache has rotated; this cache takes keys as they come (it was "
          "created without rope)");
  }
  if (!config_.split_rotary.has_value()) return;
  if (!library_problem_.has_value()) library_problem_ = LibraryProblem();
  if (library_problem_->empty()) return;
  Throw(ErrorKind::kNotImplemented, operation,
        " needs a rotation by a token's position and nothing else; the model library's ",
        *library_problem_);
}

Tensor KeyRotator::ExampleKeys(size_t count) const {
  std::vector<float> key(config_.num_kv_heads * config_.head_dim);
  uint32_t state = 1;
  for (float& element : key) {  // of magnitude 0.5 to 1.5, with either sign equally often
    state = state * 1664525u + 1013904223u;
    element = (state >> 31 ? 1 : -1) * (0.5f + static_cast<float>(state >> 8 & 0xffff) / 0x10000);
  }
  const Tensor keys = EmptyKeys(count);
  const KVRows rows = PartRows(keys, 0);
  char* to = static_cast<char*>(rows.data);
  for (size_t i = 0; i < count; ++i, to += rows.row_stride * DTypeSize(rows.dtype)) {
    ConvertRow(key.data(), DType::kFloat32, to, rows.dtype, rows.row_stride);
  }
  return keys;
}

std::string KeyRotator::LibraryProblem() {
  // Some scalings for long contexts depend on the number of tokens in a step, TVM's longrope among
  // them.
  const auto chunk = static_cast<size_t>(config_.prefill_chunk_size);
  const auto far = static_cast<int32_t>(chunk - 1);
  const Tensor key = ExampleKeys(1), keys = ExampleKeys(chunk);
  const auto rotated = [&](const std::vector<int32_t>& positions, const Tensor& from) {
    return Floats(RotateKeys(positions, PartRows(from, 0)));
  };
  const auto together = rotated(std::vector<int32_t>(chunk, far), keys);
  const auto alone = rotated({far}, key);
  const double tolerance = RoundingOf(dtype_) + kAngleRounding * far;
  for (size_t i = 0; i < alone.size(); ++i) {
    if (std::abs(together[i] - alone[i]) <= tolerance) continue;
    return "depends on how many tokens it rotates at a time";
  }
  if (config_.rope_mode == RopeMode::kInline) return "";  // the cache keeps keys unrotated as well
  const auto before = Floats(key), at_zero = rotated({0}, key);
  for (size_t i = 0; i < before.size(); ++i) {
    if (before[i] == at_zero[i]) continue;
    std::ostringstream text;
    text << "changes keys at position 0, where " << before[i] << " becomes " << at_zero[i];
    return text.str();
  }
  return "";
}

void KeyRotator::CheckRerotation(const std::vector<int32_t>& from, const std::vector<int32_t>& by,
                                 const std::vector<int32_t>& to) {
  const Tensor example = ExampleKeys(from.size());
  const Tensor old = RotateKeys(from, PartRows(example, 0));
  const auto rerotated = Floats(RotateKeys(by, PartRows(old, 0)));
  const auto expected = Floats(RotateKeys(to, PartRows(example, 0)));
  const int64_t width = config_.num_kv_heads * config_.head_dim;
  for (size_t i = 0; i < rerotated.size(); ++i) {
    const int64_t row = static_cast<int64_t>(i) / width;
    const double angles = std::abs(1.0 * from[row]) + to[row];
    const double tolerance = RoundingOf(dtype_) + kAngleRounding * angles;
    if (std::abs(rerotated[i] - expected[i]) <= tolerance) continue;
    Throw(ErrorKind::kNotImplemented, "keys at position ", from[row], " cannot be turned to ",
          to[row], ": the model library's rotation by the difference, ", by[row],
          ", does not lead there");
  }
}

}  // namespace kvctl
