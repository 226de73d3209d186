/*!
 * \file core/support/narrow.h
 * \brief 64-bit numbers of the FFI and of public interfaces as the 32-bit ones of core.
 */
#ifndef KVCTL_CORE_SUPPORT_NARROW_H_
#define KVCTL_CORE_SUPPORT_NARROW_H_

#include <cstdint>
#include <limits>

#include "kvctl/error.h"

namespace kvctl {

/*!
 * \brief The value as an int32.
 * \param what The value's name in the message.
 * \param site The kind of the error, kValue unless it is given.
 * \throws Error of that kind if the value does not fit.
 */
inline int32_t Narrow(int64_t value, const char* what, const ErrorSite& site = ErrorKind::kValue) {
  if (value < std::numeric_limits<int32_t>::min() || value > std::numeric_limits<int32_t>::max()) {
    Throw(site, what, " must fit 32 bits, got ", value);
  }
  return static_cast<int32_t>(value);
}

}  // namespace kvctl

#endif  // KVCTL_CORE_SUPPORT_NARROW_H_
