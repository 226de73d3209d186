/*!
 * \file kvctl/graph_state.h
 * \brief What CUDA graphs recorded with a cache's attention depend on.
 */
#ifndef KVCTL_GRAPH_STATE_H_
#define KVCTL_GRAPH_STATE_H_

#include <cstdint>

namespace kvctl {

/*!
 * \brief The state of a cache on a CUDA device, as graphs see it.
 *
 * A graph that was recorded in one step does the attention of another if the first three are equal
 * in both. Sequences, lengths and masks may differ: kernels read them from the step's plan.
 */
struct GraphState {
  int64_t num_new_tokens;  //!< of the step in flight, or of the last one
  int64_t item_rows;       //!< which attention kernel the step needs: one for 16, 32 or 64 rows
  int64_t generation;      //!< calls of ForgetGraphs until now
  int64_t num_captured;    //!< attention calls that were captured until now
  uint64_t stream;         //!< the cudaStream_t that the step's plan was copied on
};

}  // namespace kvctl

#endif  // KVCTL_GRAPH_STATE_H_
