/*!
 * \file kvctl/step_request.h
 * \brief One sequence's share of a forward step, as caches, recurrent states and runners take it.
 */
#ifndef KVCTL_STEP_REQUEST_H_
#define KVCTL_STEP_REQUEST_H_

#include <cstdint>
#include <optional>

#include "kvctl/mask.h"

namespace kvctl {

/*!
 * \brief One sequence's share of a forward step.
 *
 * The arrays belong to the caller and are read only while the step begins.
 */
struct StepRequest {
  int64_t seq_id = 0;
  int64_t append_length = 0;  //!< number of new tokens, at least 1
  /*! \brief Whether the new tokens become pending nodes; nullopt: if they form a tree. */
  std::optional<bool> pending = std::nullopt;
  /*!
   * \brief [append_length] parent of each new token, an index into the pending region or -1.
   * nullptr: the tree in `mask` if there is one, else a chain.
   */
  const int32_t* parents = nullptr;
  /*! \brief [append_length] rotary positions; nullptr: the depth in the tree. Recurrent states do
   * not read them. */
  const int32_t* positions = nullptr;
  /*! \brief nullopt: causal. A recurrent state reads only the tree in it. */
  std::optional<Mask> mask = std::nullopt;

  /*!
   * \brief The tokens are the pending nodes themselves, all of them, which run the layers that
   * earlier steps left out: in the same slots, at the same positions, under their tree. Nothing
   * else may be given, and all requests of a step resume, or none.
   */
  bool resume = false;

  /*! \brief Whether the new tokens become pending nodes. */
  bool AppendsPending() const {
    return resume ||
           pending.value_or(parents != nullptr || (mask && mask->tree_parents() != nullptr));
  }
};

}  // namespace kvctl

#endif  // KVCTL_STEP_REQUEST_H_
