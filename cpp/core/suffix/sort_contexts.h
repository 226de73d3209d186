/*!
 * \file core/suffix/sort_contexts.h
 * \brief Sorts slots by their contexts, many at a time.
 */
#ifndef KVCTL_CORE_SUFFIX_SORT_CONTEXTS_H_
#define KVCTL_CORE_SUFFIX_SORT_CONTEXTS_H_

#include <cstddef>
#include <cstdint>

namespace kvctl {

/*!
 * \brief Sorts slots of a TextRing as ContextOrder has them. \throws std::bad_alloc.
 *
 * Two tokens of all contexts at a time, then the contexts that still are equal by their next two.
 */
void SortContexts(const int32_t* slots, uint32_t* members, size_t count);

}  // namespace kvctl

#endif  // KVCTL_CORE_SUFFIX_SORT_CONTEXTS_H_
