/*!
 * \file core/support/make_room.h
 * \brief Reserves capacity, so that later steps cannot throw.
 */
#ifndef KVCTL_CORE_SUPPORT_MAKE_ROOM_H_
#define KVCTL_CORE_SUPPORT_MAKE_ROOM_H_

#include <algorithm>
#include <vector>

namespace kvctl {

/*! \brief Reserves capacity for `extra` more elements, so that adding them does not allocate.
 * Capacity at least doubles, as it would when adding them. */
template <typename T>
void MakeRoom(std::vector<T>* vector, size_t extra) {
  const size_t size = vector->size() + extra;
  if (size > vector->capacity()) vector->reserve(std::max(size, 2 * vector->capacity()));
}

}  // namespace kvctl

#endif  // KVCTL_CORE_SUPPORT_MAKE_ROOM_H_
