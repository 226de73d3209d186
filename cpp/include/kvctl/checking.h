/*!
 * \file kvctl/checking.h
 * \brief A mode that finds infinities and NaN where they come into being.
 */
#ifndef KVCTL_CHECKING_H_
#define KVCTL_CHECKING_H_

#include "kvctl/api.h"

namespace kvctl {

/*!
 * \brief Whether attention checks the K and V that it writes, and verification its logits.
 *
 * The mode is the process's. It is on from the start where KVCTL_CHECK is set to anything but 0.
 */
KVCTL_API bool Checking();

/*! \brief Turns the mode on or off. \return Whether it was on. */
KVCTL_API bool SetChecking(bool on);

}  // namespace kvctl

#endif  // KVCTL_CHECKING_H_
