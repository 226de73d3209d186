/*!
 * \file failing_allocations.h
 * \brief Lets allocations of this thread fail, to see what an operation leaves behind.
 */
#ifndef KVCTL_TESTS_CORE_FAILING_ALLOCATIONS_H_
#define KVCTL_TESTS_CORE_FAILING_ALLOCATIONS_H_

#include <cstdint>

namespace kvctl {

/*! \brief How many allocations still succeed; negative: all of them. */
extern thread_local int64_t allocations_left;

}  // namespace kvctl

#endif  // KVCTL_TESTS_CORE_FAILING_ALLOCATIONS_H_
