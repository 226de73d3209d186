#include "core/sequence.h"

#include <numeric>

namespace kvctl {

void PendingRegion::Push(int32_t parent, int32_t position) {
  if (parent != size() - 1) chain = false;
  depths.push_back(parent < 0 ? 0 : depths[parent] + 1);
  positions.push_back(position);
  parents.push_back(parent);
}

void PendingRegion::Truncate(int32_t size) {
  parents.resize(size);
  depths.resize(size);
  positions.resize(size);
  chain = true;
  for (int32_t node = 0; node < size && chain; ++node) chain = parents[node] == node - 1;
}

void Sequence::ExtendCommitted(int32_t count) {
  for (int32_t i = 0; positions && i < count; ++i) positions->push_back(next_position + i);
  num_committed += count;
  next_position += count;
}

void Sequence::PushCommitted(int32_t position) {
  if (!positions && position != num_committed) {
    positions = std::make_shared<std::vector<int32_t>>(num_committed);
    std::iota(positions->begin(), positions->end(), 0);
  }
  if (positions) positions->push_back(position);
  ++num_committed;
  next_position = position + 1;
}

void Sequence::TruncateCommitted(int32_t length) {
  if (length == num_committed) return;
  // The first token that goes is the next to come again, whatever was evicted before it.
  next_position = PositionOf(length);
  if (positions) {
    // A checkpoint may hold the same vector, and reads no further than its own length: what is
    // pushed after a truncation must not overwrite that.
    if (positions.use_count() > 1) positions = std::make_shared<std::vector<int32_t>>(*positions);
    positions->resize(length);
  }
  num_committed = length;
}

}  // namespace kvctl
