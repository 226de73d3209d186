#include "core/cache/sequence.h"

#include <algorithm>
#include <numeric>

namespace kvctl {

void PendingRegion::Append(const int32_t* new_parents, int32_t count, bool masks_columns) {
  const int32_t first = size();
  depths.resize(first + count);
  positions.resize(first + count);
  if (masks_columns) {
    masked.resize(first, 0);
    masked.resize(first + count, 1);
  }
  parents.resize(first + count);
  int32_t branches = 0;  // without a branch per node, so that the compiler can count many at a time
  for (int32_t i = 0; new_parents != nullptr && i < count; ++i) {
    branches += new_parents[i] != first + i - 1;
  }
  if (branches == 0) {
    std::iota(parents.begin() + first, parents.end(), first - 1);
    std::iota(depths.begin() + first, depths.end(), first == 0 ? 0 : depths[first - 1] + 1);
    return;
  }
  chain = false;
  for (int32_t node = first; node < first + count; ++node) {
    const int32_t parent = new_parents[node - first];
    parents[node] = parent;
    depths[node] = parent < 0 ? 0 : depths[parent] + 1;
  }
}

void PendingRegion::Truncate(int32_t size) {
  parents.resize(size);
  depths.resize(size);
  positions.resize(size);
  if (static_cast<int32_t>(masked.size()) > size) masked.resize(size);
  num_written = std::min(num_written, size);
  chain = true;
  for (int32_t node = 0; node < size && chain; ++node) chain = parents[node] == node - 1;
}

int32_t Sequence::num_sinks() const {
  if (positions == nullptr) return std::min(window.sinks, num_committed);
  const auto end = std::lower_bound(positions->begin(), positions->end(), window.sinks);
  return static_cast<int32_t>(end - positions->begin());
}

void Sequence::ExtendCommitted(int32_t count) {
  for (int32_t i = 0; positions && i < count; ++i) positions->push_back(next_position + i);
  num_committed += count;
  next_position += count;
}

void Sequence::PushCommitted(int32_t position) {
  if (positions) positions->push_back(position);
  ++num_committed;
  next_position = position + 1;
}

PositionList Sequence::PositionsFor(const int32_t* next, int32_t count) const {
  bool differs = false;
  for (int32_t i = 0; i < count; ++i) differs |= next[i] != num_committed + i;
  if (!differs) return nullptr;
  auto list = std::make_shared<std::vector<int32_t>>();
  list->reserve(num_committed + count);
  list->resize(num_committed);
  std::iota(list->begin(), list->end(), 0);
  return list;
}

void Sequence::TruncateCommitted(int32_t length) {
  if (length == num_committed) return;
  // A checkpoint may share the vector and reads up to its own length. Tokens pushed after a
  // truncation must not overwrite that part.
  if (positions && positions.use_count() > 1) {
    positions = std::make_shared<std::vector<int32_t>>(*positions);
  }
  // The next token takes the position of the first token dropped, whatever was evicted before it.
  next_position = PositionOf(length);
  if (positions) positions->resize(length);
  num_committed = length;
}

}  // namespace kvctl
