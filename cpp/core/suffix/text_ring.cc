#include "core/suffix/text_ring.h"

#include <algorithm>

#include "kvctl/error.h"

namespace kvctl {

TextRing::TextRing(int64_t capacity) : capacity_(capacity), slots_(1, kEnd) {
  if (capacity < 2 || capacity > kMaxCapacity) {
    Throw(ErrorKind::kValue, "capacity must be between 2 and ", kMaxCapacity, " tokens, got ",
          capacity);
  }
}

// A text takes its tokens and the kEnd behind them; the kEnd before it is there already.
uint32_t TextRing::PlaceFor(uint32_t size) const {
  const int64_t needed = int64_t{size} + 1;
  if (texts_.empty()) return needed <= capacity_ ? 1 : 0;
  const int64_t oldest = texts_.front().begin;
  const int64_t behind = int64_t{texts_.back().begin} + texts_.back().size + 1;
  if (behind <= oldest) return behind + needed <= oldest ? static_cast<uint32_t>(behind) : 0;
  if (behind + needed <= capacity_ + 1) return static_cast<uint32_t>(behind);
  return 1 + needed <= oldest ? 1 : 0;
}

TextRing::Text TextRing::Add(const int32_t* tokens, uint32_t size) {
  const Text text{PlaceFor(size), size};
  const size_t end = size_t{text.begin} + size + 1;
  if (end > slots_.size()) {
    if (end > slots_.capacity()) {  // doubled, but never beyond what may be used
      const auto most = static_cast<size_t>(capacity_) + 1;
      slots_.reserve(std::min(most, std::max(end, 2 * slots_.capacity())));
    }
  }
  texts_.push_back(text);
  if (end > slots_.size()) slots_.resize(end, kEnd);
  std::copy(tokens, tokens + size, slots_.begin() + text.begin);
  slots_[end - 1] = kEnd;
  num_tokens_ += size;
  return text;
}

}  // namespace kvctl
