#include "runtime/recurrent/recurrent_requests.h"

#include <algorithm>

#include "kvctl/error.h"

namespace kvctl {

const int32_t* NewParents(const std::vector<int32_t>& tree, const RecurrentState& state,
                          int64_t seq_id, int64_t append_length) {
  if (static_cast<int64_t>(tree.size()) == append_length) return tree.data();
  const std::vector<int32_t> pending = state->PendingParents(seq_id);
  if (static_cast<int64_t>(tree.size()) != static_cast<int64_t>(pending.size()) + append_length) {
    Throw(ErrorKind::kValue, "begin_forward: sequence ", seq_id, " has ", pending.size(),
          " pending tokens and appends ", append_length, ", but its tree has ", tree.size(),
          " nodes");
  }
  if (!std::equal(pending.begin(), pending.end(), tree.begin())) {
    Throw(ErrorKind::kValue, "begin_forward: in the tree of sequence ", seq_id,
          " the nodes that are pending already have other parents than before");
  }
  return tree.data() + pending.size();
}

void BeginRecurrentForward(const RecurrentState& state, const std::vector<StepRequest>& requests) {
  std::vector<RecurrentRequest> steps;
  for (const StepRequest& request : requests) {
    RecurrentRequest step{request.seq_id, request.append_length};
    const std::vector<int32_t>* tree = request.mask ? request.mask->tree_parents() : nullptr;
    step.pending = request.pending.value_or(tree != nullptr);
    if (tree != nullptr) {
      step.parents = NewParents(*tree, state, request.seq_id, request.append_length);
    }
    steps.push_back(step);
  }
  state->BeginForward(steps);
}

}  // namespace kvctl
