/*!
 * \file core/suffix/text_ring.h
 * \brief The tokens of many texts in bounded memory; the oldest texts go first.
 */
#ifndef KVCTL_CORE_SUFFIX_TEXT_RING_H_
#define KVCTL_CORE_SUFFIX_TEXT_RING_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

namespace kvctl {

/*!
 * \brief Texts one behind another in a ring of slots, each in one piece.
 *
 * The slots before and behind each text hold kEnd, so that a reader who walks over tokens needs no
 * other bound. A text that does not fit behind the newest one begins at the front again.
 */
class TextRing {
 public:
  static constexpr int32_t kEnd = -1;
  static constexpr int64_t kMaxCapacity = int64_t{1} << 31;

  /*! \brief A text's place: slots [begin, begin + size). */
  struct Text {
    uint32_t begin;
    uint32_t size;
  };

  /*!
   * \param capacity Tokens that fit, each text counted as one more than it has.
   * \throws Error kValue unless 2 <= capacity <= kMaxCapacity.
   */
  explicit TextRing(int64_t capacity);

  int64_t capacity() const { return capacity_; }
  int64_t num_tokens() const { return num_tokens_; }
  const std::deque<Text>& texts() const { return texts_; }
  /*! \brief The slots; adding a text may move them. */
  const int32_t* slots() const { return slots_.data(); }
  size_t bytes() const {
    return slots_.capacity() * sizeof(int32_t) + texts_.size() * sizeof(Text);
  }

  /*! \brief Whether a text of so many tokens, fewer than the capacity, fits now. */
  bool Fits(uint32_t size) const { return PlaceFor(size) != 0; }
  /*! \brief Adds a text that fits. \throws std::bad_alloc with nothing changed. */
  Text Add(const int32_t* tokens, uint32_t size);
  void RemoveOldest() { Removed(texts_.front()), texts_.pop_front(); }
  void RemoveNewest() { Removed(texts_.back()), texts_.pop_back(); }

  /*! \brief A number that is larger for slots of newer texts. */
  uint64_t Age(uint32_t slot) const {
    return slot < texts_.front().begin ? slot + static_cast<uint64_t>(capacity_) : slot;
  }

 private:
  uint32_t PlaceFor(uint32_t size) const;  // 0: none
  void Removed(const Text& text) { num_tokens_ -= text.size; }

  int64_t capacity_;
  int64_t num_tokens_ = 0;
  std::vector<int32_t> slots_;  // grows up to capacity_ + 1; slot 0 is kEnd
  std::deque<Text> texts_;      // the oldest first
};

}  // namespace kvctl

#endif  // KVCTL_CORE_SUFFIX_TEXT_RING_H_
