/*!
 * \file core/support/make_room.h
 * \brief What may fail, out of host memory, comes before what changes something.
 */
#ifndef KVCTL_CORE_SUPPORT_MAKE_ROOM_H_
#define KVCTL_CORE_SUPPORT_MAKE_ROOM_H_

#include <algorithm>
#include <vector>

namespace kvctl {

/*! \brief Makes room for `extra` elements more, so that adding them does not allocate; in steps
 * that double, as adding them would. */
template <typename T>
void MakeRoom(std::vector<T>* vector, size_t extra) {
  const size_t size = vector->size() + extra;
  if (size > vector->capacity()) vector->reserve(std::max(size, 2 * vector->capacity()));
}

}  // namespace kvctl

#endif  // KVCTL_CORE_SUPPORT_MAKE_ROOM_H_
