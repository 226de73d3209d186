/*!
 * \file runtime/recurrent/recurrent_requests.h
 * \brief A step as users ask for it, as a recurrent state takes it.
 */
#ifndef KVCTL_RUNTIME_RECURRENT_RECURRENT_REQUESTS_H_
#define KVCTL_RUNTIME_RECURRENT_RECURRENT_REQUESTS_H_

#include <cstdint>
#include <vector>

#include "kvctl/paged_kv_cache.h"
#include "kvctl/recurrent_state.h"

namespace kvctl {

/*!
 * \brief The parents of a step's new nodes in a tree that lists either those alone or the whole
 * pending region, whose earlier nodes must then be what is pending.
 * \return [append_length] within `tree`.
 * \throws Error kValue if the tree is of another size, or has other parents for pending nodes.
 */
const int32_t* NewParents(const std::vector<int32_t>& tree, const RecurrentState& state,
                          int64_t seq_id, int64_t append_length);

/*! \brief Begins the step of a paged cache in a recurrent state too: of masks only trees matter. */
void BeginRecurrentForward(const RecurrentState& state, const std::vector<StepRequest>& requests);

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_RECURRENT_RECURRENT_REQUESTS_H_
