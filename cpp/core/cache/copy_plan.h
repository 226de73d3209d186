/*!
 * \file core/cache/copy_plan.h
 * \brief The copies of K and V that an operation on the table needs.
 */
#ifndef KVCTL_CORE_CACHE_COPY_PLAN_H_
#define KVCTL_CORE_CACHE_COPY_PLAN_H_

#include <cstdint>
#include <vector>

namespace kvctl {

/*! \brief Copy a page, in every layer. */
struct PageCopy {
  int32_t source;
  int32_t target;
};

/*! \brief Copy one token's K and V, in every layer: slots are page * page_size + offset. */
struct SlotMove {
  int32_t source;
  int32_t target;
};

/*! \brief Rotate the K of one token from one rotary position to another, in every layer. */
struct KeyRotation {
  int32_t slot;
  int32_t from;
  int32_t to;
};

/*! \brief The copies that an operation on the table needs on the device: first the page copies,
 * then the slot moves in order, then the rotations. The target of a move is never the source of a
 * later one. */
struct CopyPlan {
  std::vector<PageCopy> pages;
  std::vector<SlotMove> slots;
  std::vector<KeyRotation> rotations;
  bool empty() const { return pages.empty() && slots.empty() && rotations.empty(); }
  void clear() {
    pages.clear();
    slots.clear();
    rotations.clear();
  }
};

}  // namespace kvctl

#endif  // KVCTL_CORE_CACHE_COPY_PLAN_H_
