// Keys that turn to other positions: by kvctl's rotation, or by the model library's own.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <sstream>

#include "kernels/convert_row.h"
#include "kvctl/error.h"
#include "runtime/cache/paged_kv_cache_impl.h"
#include "runtime/support/tensor_view.h"

namespace kvctl {
namespace {

using tvm::runtime::Tensor;

// Keys that are turned at a time.
constexpr size_t kRotationBlock = 1024;
// What rounding position * frequency to float32 may add to an angle, per unit of the position.
constexpr double kAngleRounding = 2.4e-7;

/*! \brief How far apart two ways to rotate keys of a type may come out, angles aside. */
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

void PagedKVCacheImpl::CheckRotatesKeys(const char* operation) {
  RequireCpu(config_.device, operation);
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

void PagedKVCacheImpl::RotateKeys(const std::vector<KeyRotation>& rotations) {
  if (rotations.empty()) return;
  RopeTable table(step_rotation_.table->params());
  std::vector<int32_t> slots, differences;
  for (size_t begin = 0; begin < rotations.size(); begin += kRotationBlock) {
    const size_t end = std::min(begin + kRotationBlock, rotations.size());
    slots.clear();
    differences.clear();
    for (size_t i = begin; i < end; ++i) {
      slots.push_back(rotations[i].slot);
      differences.push_back(rotations[i].to - rotations[i].from);
    }
    table.Fill(differences.data(), static_cast<int32_t>(differences.size()));
    for (Tensor& pages : pages_) {
      RopeSlotsCpu(table, page_shape_, DataPointer(pages.operator->()), slots.data());
    }
  }
}

Tensor PagedKVCacheImpl::EmptyKeys(size_t count) const {
  return Tensor::Empty({1, static_cast<int64_t>(count), config_.num_kv_heads, config_.head_dim},
                       config_.dtype, config_.device);
}

Tensor PagedKVCacheImpl::TrialKeys(size_t count) const {
  std::vector<float> key(config_.num_kv_heads * config_.head_dim);
  uint32_t state = 1;
  for (float& element : key) {  // not small, and of neither sign more often
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

std::string PagedKVCacheImpl::LibraryProblem() {
  // A scaling for long contexts may go by the number of tokens in a step, as TVM's longrope
  // does.
  const auto chunk = static_cast<size_t>(config_.prefill_chunk_size);
  const auto far = static_cast<int32_t>(chunk - 1);
  const Tensor key = TrialKeys(1), keys = TrialKeys(chunk);
  const auto rotated = [&](const std::vector<int32_t>& positions, const Tensor& from) {
    return Floats(RotatedKeys(positions, PartRows(from, 0)));
  };
  const auto together = rotated(std::vector<int32_t>(chunk, far), keys);
  const auto alone = rotated({far}, key);
  const double tolerance = RoundingOf(page_shape_.dtype) + kAngleRounding * far;
  for (size_t i = 0; i < alone.size(); ++i) {
    if (std::abs(together[i] - alone[i]) <= tolerance) continue;
    return "depends on how many tokens it rotates at a time";
  }
  if (config_.rope_mode == RopeMode::kInline) return "";  // keys turn from where they came
  const auto before = Floats(key), at_zero = rotated({0}, key);
  for (size_t i = 0; i < before.size(); ++i) {
    if (before[i] == at_zero[i]) continue;
    std::ostringstream text;
    text << "changes keys at position 0, where " << before[i] << " becomes " << at_zero[i];
    return text.str();
  }
  return "";
}

void PagedKVCacheImpl::CheckLibraryRotations(const std::vector<int32_t>& from,
                                             const std::vector<int32_t>& by,
                                             const std::vector<int32_t>& to) {
  const Tensor trial = TrialKeys(from.size());
  const Tensor old = RotatedKeys(from, PartRows(trial, 0));
  const auto turned = Floats(RotatedKeys(by, PartRows(old, 0)));
  const auto expected = Floats(RotatedKeys(to, PartRows(trial, 0)));
  const int64_t width = config_.num_kv_heads * config_.head_dim;
  for (size_t i = 0; i < turned.size(); ++i) {
    const int64_t row = static_cast<int64_t>(i) / width;
    const double angles = std::abs(1.0 * from[row]) + to[row];
    const double tolerance = RoundingOf(page_shape_.dtype) + kAngleRounding * angles;
    if (std::abs(turned[i] - expected[i]) <= tolerance) continue;
    Throw(ErrorKind::kNotImplemented, "keys at position ", from[row], " cannot be turned to ",
          to[row], ": the model library's rotation by the difference, ", by[row],
          ", does not lead there");
  }
}

std::vector<Tensor> PagedKVCacheImpl::RotatedKeptKeys(int64_t seq_id,
                                                      const std::vector<int32_t>& keep) {
  table_.CheckEvict(seq_id, keep);
  const Sequence& sequence = table_.Get(seq_id);
  std::vector<int32_t> slots, from, by, to;
  for (size_t i = 0; i < keep.size(); ++i) {
    const int32_t position = sequence.PositionOf(keep[i]), target = static_cast<int32_t>(i);
    if (position == target) continue;
    slots.push_back(table_.Slot(sequence, keep[i]));
    from.push_back(position);
    by.push_back(target - position);
    to.push_back(target);
  }
  if (slots.empty()) return {};
  const bool plain = !plain_keys_.empty();
  if (!plain) CheckLibraryRotations(from, by, to);
  const Tensor keys = EmptyKeys(slots.size());
  std::vector<Tensor> turned;
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    ReadSlotsCpu(plain ? plain_key_shape_ : page_shape_,
                 DataPointer((plain ? plain_keys_ : pages_)[layer].operator->()), slots.data(),
                 static_cast<int64_t>(slots.size()), PartRows(keys, 0), {});
    turned.push_back(RotatedKeys(plain ? to : by, PartRows(keys, 0)));
  }
  return turned;
}

void PagedKVCacheImpl::WriteRotatedKeys(const std::vector<Tensor>& keys) {
  std::vector<int32_t> slots;
  for (const KeyRotation& turn : moves_.rotations) slots.push_back(turn.slot);
  for (size_t layer = 0; layer < keys.size(); ++layer) {
    WriteSlotsCpu(page_shape_, DataPointer(pages_[layer].operator->()), slots.data(),
                  static_cast<int64_t>(slots.size()), PartRows(keys[layer], 0), {});
  }
}

}  // namespace kvctl
