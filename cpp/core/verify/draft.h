/*!
 * \file core/verify/draft.h
 * \brief Draws drafted tokens from rows of logits.
 */
#ifndef KVCTL_CORE_VERIFY_DRAFT_H_
#define KVCTL_CORE_VERIFY_DRAFT_H_

#include <cstdint>
#include <vector>

#include "core/sampling/sampling.h"
#include "core/verify/share_items.h"
#include "core/verify/tree_verifier.h"

namespace kvctl {

/*! \brief One row to draw from. */
struct DraftItem {
  RowInput row;
  const Sampling* sampling;
  RandomStream stream;
  uint32_t root_position;
  uint32_t first_node;  //!< index in its tree of the first token drawn
  uint32_t depth;       //!< depth of the tokens drawn, for Drawn::kCoupled

  int32_t* tokens;  //!< out [n], -1 after the end of the support
  void* probs;      //!< out [vocab] the distribution that the tokens were drawn from, or nullptr
};

/*!
 * \brief Draws n tokens from each row.
 *
 * Tokens are drawn from the distribution after it was rounded to `probs_type`, so `probs` holds
 * exactly what they were drawn from.
 *
 * \param probs_type kFloat32 or kFloat64.
 * \param share_items runs the rows, perhaps in several threads.
 * \throws Error kValue of the first row that has no distribution, with its index.
 */
void DraftItems(Drawn how, int32_t n, DType probs_type, int32_t vocab_size,
                const ShareItems& share_items, std::vector<DraftItem>* items);

}  // namespace kvctl

#endif  // KVCTL_CORE_VERIFY_DRAFT_H_
