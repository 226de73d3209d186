#include "kvctl/model_runner.h"

#include <algorithm>
#include <utility>

#include "kernels/team.h"
#include "kvctl/error.h"
#include "runtime/model/batch.h"
#include "runtime/model/forward_scope.h"

namespace kvctl {
namespace {

namespace ffi = tvm::ffi;
using tvm::runtime::Tensor;

Tensor ToDevice(const std::vector<int32_t>& values, DLDevice device) {
  Tensor tensor =
      Tensor::Empty({static_cast<int64_t>(values.size())}, DLDataType{kDLInt, 32, 1}, device);
  tensor.CopyFromBytes(values.data(), values.size() * sizeof(int32_t));
  return tensor;
}

/*! \brief Copies rows [begin, end) of source into target, from row `at` on. */
void CopyRows(const Tensor& source, int64_t begin, int64_t end, const Tensor& target, int64_t at) {
  const int64_t row_bytes = source->shape[1] * ((source->dtype.bits + 7) / 8);
  DLTensor from = *source.operator->();
  DLTensor to = *target.operator->();
  int64_t shape[2] = {end - begin, source->shape[1]};
  from.shape = to.shape = shape;
  from.byte_offset += begin * row_bytes;
  to.byte_offset += at * row_bytes;
  Tensor::CopyFromTo(&from, &to);
}

/*! \brief A model function returns its logits, or an array of them and the cache. */
Tensor LogitsOf(const ffi::Any& result) {
  if (auto several = result.as<ffi::Array<ffi::Any>>()) return (*several)[0].cast<Tensor>();
  return result.cast<Tensor>();
}

}  // namespace

void ModelRunner::CheckTokens(int64_t seq_id, const int32_t* tokens, int64_t count) const {
  if (count < 1) Throw(ErrorKind::kValue, "there are no tokens for sequence ", seq_id);
  for (int64_t i = 0; i < count; ++i) {
    if (tokens[i] < 0 || tokens[i] >= vocab_size_) {
      Throw(ErrorKind::kValue, "token ", tokens[i], " for sequence ", seq_id,
            " is not in the model's vocabulary [0, ", vocab_size_, ")");
    }
  }
}

ffi::Any ModelRunner::Call(const ModelFunction& function, const Tensor& embedded,
                           const std::vector<int32_t>* rows) const {
  std::vector<ffi::Any> arguments = {embedded};
  if (rows != nullptr) arguments.emplace_back(ToDevice(*rows, functions_.device()));
  if (cache_.defined()) arguments.emplace_back(cache_);
  if (state_.defined()) arguments.emplace_back(state_);
  arguments.emplace_back(params_);
  const std::vector<ffi::AnyView> views(arguments.begin(), arguments.end());
  ffi::Any result;
  function.packed().CallPacked(views.data(), static_cast<int32_t>(views.size()), &result);
  return result;
}

Tensor ModelRunner::RunStep(const std::vector<StepRequest>& requests,
                            const std::vector<int32_t>& tokens, bool one_row_each,
                            int64_t num_logits, const ModelCall& model) {
  UseTeam(true);  // before the model does: TVM's threads would hang, too
  OneTVMThread policy(limit_threads_);
  StepScope step(cache_, state_, requests);
  const auto rows = static_cast<int64_t>(tokens.size());
  auto embedded = functions_.embed(ToDevice(tokens, functions_.device()), params_).cast<Tensor>();
  const int64_t hidden = embedded->shape[embedded->ndim - 1];
  embedded = embedded.CreateView(
      one_row_each ? ffi::Shape({rows, 1, hidden}) : ffi::Shape({1, rows, hidden}),
      embedded->dtype);
  const Tensor logits = LogitsOf(model(embedded));
  const int64_t width = logits->ndim == 3 ? logits->shape[2] : 0;
  if (width != vocab_size_ || logits->shape[0] * logits->shape[1] != num_logits) {
    Throw(ErrorKind::kRuntime, functions_.path(), " returned logits of shape ",
          ffi::Shape(logits->shape, logits->shape + logits->ndim), " where ", num_logits,
          " rows of ", vocab_size_, " were expected");
  }
  step.End();
  return logits.CreateView({num_logits, width}, logits->dtype);
}

Tensor ModelRunner::RunPrefill(const std::vector<StepRequest>& requests,
                               const std::vector<int32_t>& tokens,
                               const std::vector<int32_t>& logit_rows) {
  const auto count = static_cast<int64_t>(logit_rows.size());
  return RunStep(requests, tokens, false, count, [&](const Tensor& embedded) {
    if (!functions_.batch_prefill && functions_.prefill) return Call(functions_.prefill, embedded);
    return Call(functions_.batch_prefill, embedded, &logit_rows);
  });
}

Tensor ModelRunner::RunAllRows(const std::vector<StepRequest>& requests,
                               const std::vector<int32_t>& tokens) {
  return RunStep(requests, tokens, false, static_cast<int64_t>(tokens.size()),
                 [&](const Tensor& embedded) { return Call(functions_.batch_verify, embedded); });
}

Tensor ModelRunner::Prefill(const std::vector<int64_t>& seq_ids,
                            const std::vector<std::vector<int32_t>>& tokens) {
  CheckBatch(seq_ids, tokens.size(), "prompts");
  std::vector<int64_t> lengths;
  for (size_t i = 0; i < tokens.size(); ++i) {
    lengths.push_back(static_cast<int64_t>(tokens[i].size()));
    CheckTokens(seq_ids[i], tokens[i].data(), lengths[i]);
    CheckContext(cache_, state_, context_window_, seq_ids[i], lengths[i]);
  }
  const bool one_sequence_per_step = one_sequence_per_step_ || !functions_.batch_prefill;
  const auto steps = CutIntoSteps(tokens, prefill_chunk_size_, one_sequence_per_step);
  auto run = [&](const std::vector<PromptPiece>& pieces) {
    std::vector<StepRequest> requests;
    std::vector<int32_t> flat;
    std::vector<int32_t> last_rows;
    for (const PromptPiece& piece : pieces) {
      const std::vector<int32_t>& prompt = tokens[piece.prompt];
      StepRequest& request = requests.emplace_back();
      request.seq_id = seq_ids[piece.prompt];
      request.append_length = piece.end - piece.begin;
      flat.insert(flat.end(), prompt.begin() + piece.begin, prompt.begin() + piece.end);
      const bool ends_prompt = piece.end == lengths[piece.prompt];
      if (ends_prompt) last_rows.push_back(static_cast<int32_t>(flat.size()) - 1);
    }
    const bool nothing_ends = last_rows.empty();  // the model computes at least one row
    if (nothing_ends) last_rows.push_back(static_cast<int32_t>(flat.size()) - 1);
    Tensor logits = RunPrefill(requests, flat, last_rows);
    return std::make_pair(logits, nothing_ends ? int64_t{0} : logits->shape[0]);
  };
  if (steps.size() == 1) return run(steps[0]).first;

  CheckFreePages(cache_, seq_ids, lengths);
  return AllOrNothing(cache_, state_, seq_ids, [&] {
    Tensor all = Tensor::Empty({static_cast<int64_t>(seq_ids.size()), vocab_size_},
                               DLDataType{kDLFloat, 32, 1}, functions_.device());
    int64_t at = 0;
    for (const std::vector<PromptPiece>& pieces : steps) {
      auto [logits, count] = run(pieces);
      if (count > 0) CopyRows(logits, 0, count, all, at);
      at += count;
    }
    return all;
  });
}

Tensor ModelRunner::Decode(const std::vector<int64_t>& seq_ids,
                           const std::vector<int32_t>& tokens) {
  CheckBatch(seq_ids, tokens.size(), "tokens");
  const auto batch = static_cast<int64_t>(tokens.size());
  const bool single = !functions_.batch_decode && functions_.decode && batch == 1;
  if ((!functions_.batch_decode && !single) || batch > prefill_chunk_size_) {
    std::vector<std::vector<int32_t>> prompts;
    for (int32_t token : tokens) prompts.push_back({token});
    return Prefill(seq_ids, prompts);
  }
  std::vector<StepRequest> requests(seq_ids.size());
  for (size_t i = 0; i < seq_ids.size(); ++i) {
    CheckTokens(seq_ids[i], &tokens[i], 1);
    CheckContext(cache_, state_, context_window_, seq_ids[i], 1);
    requests[i].seq_id = seq_ids[i];
    requests[i].append_length = 1;
  }
  return RunStep(requests, tokens, true, batch, [&](const Tensor& embedded) {
    return Call(single ? functions_.decode : functions_.batch_decode, embedded);
  });
}

Tensor ModelRunner::Verify(const std::vector<int64_t>& seq_ids,
                           const std::vector<TokenTree>& trees) {
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
  return Forward(requests, tokens);
}

Tensor ModelRunner::Forward(const std::vector<StepRequest>& requests,
                            const std::vector<int32_t>& tokens) {
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
  if (total <= prefill_chunk_size_ && one_step) return RunAllRows(requests, tokens);

  CheckFreePages(cache_, seq_ids, lengths);
  return AllOrNothing(cache_, state_, seq_ids, [&] {
    Tensor all =
        Tensor::Empty({total, vocab_size_}, DLDataType{kDLFloat, 32, 1}, functions_.device());
    int64_t row = 0;
    for (const std::vector<StepRequest>& step :
         CutIntoSteps(requests, prefill_chunk_size_, one_sequence_per_step_)) {
      int64_t rows = 0;
      for (const StepRequest& request : step) rows += request.append_length;
      const Tensor logits = RunAllRows(step, {tokens.begin() + row, tokens.begin() + row + rows});
      CopyRows(logits, 0, rows, all, row);
      row += rows;
    }
    return all;
  });
}

}  // namespace kvctl
