/*!
 * \file core/suffix/context_order.h
 * \brief Places of texts in the order of what stands before them.
 */
#ifndef KVCTL_CORE_SUFFIX_CONTEXT_ORDER_H_
#define KVCTL_CORE_SUFFIX_CONTEXT_ORDER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace kvctl {

/*!
 * \brief A sorted set of slots of a TextRing. A slot's key is its context: its token, then the one
 * before it, and so on, up to kMaxContext tokens or the beginning of its text.
 *
 * Slots whose contexts end with the same tokens are neighbours. So the longest earlier occurrence
 * of a text's last tokens is next to where the text itself would stand, and all other occurrences
 * are around it: one binary search finds them. Equal contexts are in the order of their slots.
 *
 * The slots lie in sorted blocks, found over the first slot of each. Adding or removing one moves
 * part of a block, and now and then the table of blocks.
 */
class ContextOrder {
 public:
  static constexpr int32_t kMaxContext = 64;

  /*! \brief Between two slots: before slot `index` of a block. */
  struct Place {
    size_t block;
    int32_t index;
  };

  /*! \brief How many last tokens two contexts share, and whether a stands before or behind b. */
  struct Comparison {
    int32_t order;  //!< < 0: a comes first, 0: equal contexts
    int32_t shared;
  };
  /*! \brief Compares the contexts that end at *a and *b; each has a TextRing::kEnd before it. */
  static Comparison Compare(const int32_t* a, const int32_t* b);

  size_t size() const { return size_; }
  size_t bytes() const;

  /*! \brief Adds a slot. \throws std::bad_alloc with nothing changed. */
  void Insert(const int32_t* slots, uint32_t slot);
  /*! \brief Removes a slot that is there. */
  void Erase(const int32_t* slots, uint32_t slot);
  /*! \brief Has these slots instead, in any order. \throws std::bad_alloc with nothing changed. */
  void Assign(const int32_t* slots, std::vector<uint32_t> members);

  /*! \brief The place behind all contexts that are not larger than the one that ends at *last. */
  Place UpperBound(const int32_t* slots, const int32_t* last) const;
  /*! \brief Moves behind the next slot and returns it; false at the end. */
  bool Next(Place* place, uint32_t* slot) const;
  /*! \brief Moves before the previous slot and returns it; false at the beginning. */
  bool Previous(Place* place, uint32_t* slot) const;

 private:
  static constexpr int32_t kBlock = 512;

  struct Block {
    int32_t count;
    uint32_t slots[kBlock];
  };
  struct Entry {
    std::unique_ptr<Block> block;  // never empty
    uint32_t first;                // its first slot
    int32_t token;                 // and the token there: most comparisons end at it
  };

  template <typename Less>
  Place Find(const int32_t* slots, int32_t token, const Less& less) const;
  Place FindSlot(const int32_t* slots, uint32_t slot) const;
  void SetFirst(const int32_t* slots, size_t block);

  std::vector<Entry> blocks_;
  size_t size_ = 0;
};

}  // namespace kvctl

#endif  // KVCTL_CORE_SUFFIX_CONTEXT_ORDER_H_
