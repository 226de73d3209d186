#include "kernels/cuda/device/resident_words.h"

#include <algorithm>
#include <cstring>

namespace kvctl::cuda {

void ResidentWords::BeginStep() {
  runs_.clear();
  values_.clear();
  runs_.push_back({0, 0});
  num_needed_ = 0;
  overflowed_ = false;
}

int32_t ResidentWords::Keep(RowKind kind, int64_t id, const int32_t* values, int64_t count) {
  num_needed_ += Room(count);
  Place& place = places_.try_emplace({kind, id}, Place{0, -1}).first->second;
  if (place.room < count) {
    const int64_t room = Room(count);
    if (num_placed_ + room > size()) {
      overflowed_ = true;
      return -1;
    }
    place = {static_cast<int32_t>(num_placed_), static_cast<int32_t>(room)};
    num_placed_ += room;
  }
  NoteChanges(place.at, values, count);
  return place.at;
}

void ResidentWords::NoteChanges(int32_t at, const int32_t* values, int64_t count) {
  constexpr int64_t kCompared = 64;  // words that are compared at a time, and the most of a run
  const int32_t* held = words_.data() + at;
  for (int64_t begin = 0; begin < count; begin += kCompared) {
    const int64_t end = std::min(count, begin + kCompared);
    if (std::memcmp(values + begin, held + begin, 4 * (end - begin)) == 0) continue;
    // Of a stretch, the words from the first change to the last: finding each one would take the
    // host longer than the bus takes for them.
    int64_t first = begin, last = end - 1;
    while (values[first] == held[first]) ++first;
    while (values[last] == held[last]) --last;
    values_.insert(values_.end(), values + first, values + last + 1);
    runs_.back().at = at + static_cast<int32_t>(first);
    runs_.push_back({0, static_cast<int32_t>(values_.size())});
  }
}

void ResidentWords::Commit() noexcept {
  for (int32_t i = 0; i < num_runs(); ++i) {
    std::copy(values_.begin() + runs_[i].first, values_.begin() + runs_[i + 1].first,
              words_.begin() + runs_[i].at);
  }
}

void ResidentWords::ForgetRows() {
  places_.clear();
  num_placed_ = 0;
}

void ResidentWords::Replace(std::vector<int32_t> words) {
  words_ = std::move(words);
  ForgetRows();
}

}  // namespace kvctl::cuda
