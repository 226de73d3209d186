// Trees of drafts, and any new tokens under any masks.
#include <algorithm>

#include "kvctl/error.h"
#include "kvctl/model_runner.h"
#include "runtime/model/batch.h"
#include "runtime/model/forward_scope.h"
#include "runtime/model/row_tensors.h"

namespace kvctl {
namespace {

using tvm::runtime::Tensor;

/*! \brief Whether tokens under a request's mask, or those of them that stay, are those of a prompt.
 */
bool RunsAgain(const StepRequest& request) {
  if (request.positions != nullptr) return false;
  return !request.mask || request.mask->tree_parents() != nullptr ||
         request.mask->Encode() == Mask::Causal().Encode();
}

}  // namespace

Tensor ModelRunner::Verify(const std::vector<int64_t>& seq_ids,
                           const std::vector<TokenTree>& trees) {
  return Verify(seq_ids, trees, ForwardOptions()).logits;
}

ForwardRows ModelRunner::Verify(const std::vector<int64_t>& seq_ids,
                                const std::vector<TokenTree>& trees,
                                const ForwardOptions& options) {
  CheckBatch(seq_ids, trees.size(), "trees");
  std::vector<StepRequest> requests(trees.size());
  std::vector<int32_t> tokens;
  for (size_t i = 0; i < trees.size(); ++i) {
    const TokenTree& tree = trees[i];
    CheckNothingPending(cache_, state_, seq_ids[i]);
    const int32_t depth = *std::max_element(tree.depths().begin(), tree.depths().end());
    CheckContext(cache_, state_, context_window_, seq_ids[i], depth + 1);
    requests[i].seq_id = seq_ids[i];
    requests[i].append_length = tree.num_rows();
    requests[i].mask = Mask::Tree(tree.RowParents());
    const size_t first = tokens.size();
    tokens.resize(first + tree.num_rows());
    for (int32_t node = 0; node < tree.size(); ++node) {
      tokens[first + tree.rows()[node]] = tree.tokens()[node];
    }
  }
  return Forward(requests, tokens, options);
}

Tensor ModelRunner::Forward(const std::vector<StepRequest>& requests,
                            const std::vector<int32_t>& tokens) {
  return Forward(requests, tokens, ForwardOptions()).logits;
}

ForwardRows ModelRunner::Forward(const std::vector<StepRequest>& requests,
                                 const std::vector<int32_t>& tokens,
                                 const ForwardOptions& options) {
  ForwardRows found = RunRequests(requests, tokens, options);
  const int32_t* next = tokens.data();
  for (const StepRequest& request : requests) {
    Record(request.seq_id, next, request.append_length, !RunsAgain(request));
    next += request.append_length;
  }
  return found;
}

ForwardRows ModelRunner::RunRequests(const std::vector<StepRequest>& requests,
                                     const std::vector<int32_t>& tokens,
                                     const ForwardOptions& options) {
  CheckOptions(options);
  std::vector<int64_t> seq_ids;
  std::vector<int64_t> lengths;
  const auto total = static_cast<int64_t>(tokens.size());
  int64_t at = 0;
  for (const StepRequest& request : requests) {
    const int64_t length = request.append_length;
    if (length > total - at) {
      Throw(ErrorKind::kValue, "the requests have more new tokens than the ", total, " given");
    }
    CheckTokens(request.seq_id, tokens.data() + at, length);
    if (length > prefill_chunk_size_ && !CanCut(request)) {
      Throw(ErrorKind::kValue, "sequence ", request.seq_id, " has ", length,
            " new tokens, and one forward under a mask takes at most the prefill chunk of ",
            prefill_chunk_size_);
    }
    seq_ids.push_back(request.seq_id);
    lengths.push_back(length);
    at += length;
  }
  if (at != total) {
    Throw(ErrorKind::kValue, "the requests have ", at, " new tokens, and ", total,
          " tokens were given");
  }
  CheckBatch(seq_ids, requests.size(), "requests");
  const bool one_step = !one_sequence_per_step_ || requests.size() == 1;
  const bool last_logits = options.last_logits;
  if (total <= prefill_chunk_size_ && one_step) {
    std::vector<int32_t> ends;
    int64_t end = 0;
    for (int64_t length : lengths) ends.push_back(static_cast<int32_t>((end += length) - 1));
    if (!last_logits) ends.clear();
    return RunAllRows(requests, tokens, options, ends);
  }

  CheckFreePages(cache_, seq_ids, lengths);
  return AllOrNothing(cache_, state_, seq_ids, [&] {
    ForwardRows all;
    const int64_t num_logits = last_logits ? static_cast<int64_t>(requests.size()) : total;
    all.logits = Tensor::Empty({num_logits, logit_columns_}, DLDataType{kDLFloat, 32, 1},
                               functions_.device());
    int64_t row = 0, logit_row = 0, left = lengths[0];
    for (const std::vector<StepRequest>& step :
         CutIntoSteps(requests, prefill_chunk_size_, one_sequence_per_step_)) {
      int64_t rows = 0;
      std::vector<int32_t> ends;  // of requests whose last token is in this step
      for (const StepRequest& request : step) {
        rows += request.append_length;
        left -= request.append_length;
        if (left > 0 || !last_logits) continue;
        ends.push_back(static_cast<int32_t>(rows) - 1);
        const size_t next = logit_row + ends.size();
        if (next < lengths.size()) left = lengths[next];
      }
      const int64_t given = last_logits ? static_cast<int64_t>(ends.size()) : rows;
      if (last_logits && ends.empty()) ends.push_back(0);  // the model computes at least one row
      const std::vector<int32_t> part(tokens.begin() + row, tokens.begin() + row + rows);
      const ForwardRows found = RunAllRows(step, part, options, ends);
      if (given > 0) CopyRows(found.logits, 0, given, all.logits, logit_row);
      logit_row += given;
      for (Tensor ForwardRows::* part : {&ForwardRows::hidden, &ForwardRows::entering}) {
        const Tensor& one = found.*part;
        if (!one.defined()) continue;
        std::vector<int64_t> shape(one->shape, one->shape + one->ndim);
        shape[0] = total;
        if (!(all.*part).defined()) all.*part = Tensor::Empty(shape, one->dtype, one->device);
        CopyRows(one, 0, rows, all.*part, row);
      }
      row += rows;
    }
    return all;
  });
}

}  // namespace kvctl
