#include "runtime/cache/evict_tokens.h"

#include "kvctl/error.h"

namespace kvctl {
namespace {

using tvm::runtime::Tensor;

/*! \brief The KV indices of tokens that are counted as the sequence's length counts them. */
std::vector<int32_t> KvIndices(const Sequence& sequence, const std::vector<int32_t>& tokens) {
  std::vector<int32_t> indices = tokens;
  if (!sequence.window.reports_held_length) return indices;
  for (int32_t& token : indices) {
    if (token >= sequence.reported_length()) {
      Throw(ErrorKind::kIndex, "kept token ", token, " is not in sequence ", sequence.id,
            ", which has ", sequence.reported_length());
    }
    token = sequence.KvIndexOf(token);
  }
  return indices;
}

/*!
 * \brief The rotated kept keys that change positions, one tensor for each layer.
 * \throws Error kNotImplemented if the model library's function does not rotate them there.
 */
std::vector<Tensor> RotatedKeptKeys(const EvictionParts& parts, int64_t seq_id,
                                    const std::vector<int32_t>& keep) {
  parts.table.CheckEvict(seq_id, keep);
  const Sequence& sequence = parts.table.Get(seq_id);
  std::vector<int32_t> slots, from, by, to;
  for (size_t i = 0; i < keep.size(); ++i) {
    const int32_t position = sequence.PositionOf(keep[i]), target = static_cast<int32_t>(i);
    if (position == target) continue;
    slots.push_back(parts.table.Slot(sequence, keep[i]));
    from.push_back(position);
    by.push_back(target - position);
    to.push_back(target);
  }
  if (slots.empty()) return {};
  const bool plain = parts.backend.KeepsPlainKeys();
  if (!plain) parts.rotator.CheckRerotation(from, by, to);
  const Tensor read = parts.rotator.EmptyKeys(slots.size());
  const KVRows keys = PartRows(read, 0);
  std::vector<Tensor> rotated;
  for (int64_t layer = 0; layer < parts.backend.num_layers(); ++layer) {
    parts.backend.ReadSlots(layer, slots, keys, {});
    rotated.push_back(parts.rotator.RotateKeys(plain ? to : by, keys));
  }
  return rotated;
}

}  // namespace

void EvictTokens(const EvictionParts& parts, int64_t seq_id, const std::vector<int32_t>& keep,
                 bool rerotate) {
  if (rerotate) {
    parts.backend.Require(CacheFeature::kRerotatedEviction);
    parts.rotator.CheckCanRerotate("evict with rerotate=True");
  }
  const std::vector<int32_t> indices = KvIndices(parts.table.Get(seq_id), keep);
  // Call the model library's function, which may throw, before anything changes.
  const bool in_place = parts.rotator.RerotatesInPlace();
  if (rerotate && !in_place && !parts.backend.CallsLibraryForKeys()) {
    Throw(ErrorKind::kNotImplemented, "on CUDA devices evict with rerotate=True needs the cache's ",
          "own rotation (rope=): the model library's takes keys on the host");
  }
  std::vector<Tensor> rotated;
  if (rerotate && !in_place) rotated = RotatedKeptKeys(parts, seq_id, indices);
  parts.copies.clear();
  parts.table.Evict(seq_id, indices, rerotate, &parts.copies);
  parts.backend.ApplyCopies(parts.copies);
  const std::vector<KeyRotation>& rotations = parts.copies.rotations;
  if (in_place && !rotations.empty()) return parts.backend.RotateSlots(rotations);
  std::vector<int32_t> slots;
  for (const KeyRotation& rotation : rotations) slots.push_back(rotation.slot);
  for (size_t layer = 0; layer < rotated.size(); ++layer) {
    parts.backend.WriteSlots(static_cast<int64_t>(layer), slots, PartRows(rotated[layer], 0), {},
                             {});
  }
}

}  // namespace kvctl
