#include "kvctl/model_runner.h"

#include <utility>

#include "kernels/team.h"
#include "kvctl/error.h"
#include "runtime/model/batch.h"
#include "runtime/model/forward_scope.h"
#include "runtime/model/replay_log.h"
#include "runtime/model/row_tensors.h"

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

/*! \brief A model function returns its logits, or an array of them and the cache. */
Tensor LogitsOf(const ffi::Any& result) {
  if (auto several = result.as<ffi::Array<ffi::Any>>()) return (*several)[0].cast<Tensor>();
  return result.cast<Tensor>();
}

}  // namespace

ModelRunner::ModelRunner(FunctionTable functions)
    : functions_(std::move(functions)), log_(std::make_shared<ReplayLog>()) {}

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

Tensor ModelRunner::Embed(const std::vector<int32_t>& tokens) const {
  UseTeam(true);
  OneTVMThread policy(limit_threads_);
  auto rows = functions_.embed(ToDevice(tokens, functions_.device()), params_).cast<Tensor>();
  return rows.CreateView({static_cast<int64_t>(tokens.size()), rows->shape[rows->ndim - 1]},
                         rows->dtype);
}

ForwardRows ModelRunner::RunStep(const std::vector<StepRequest>& requests, const Tensor& embedded,
                                 bool one_row_each, int64_t num_logits, const ModelCall& model) {
  UseTeam(true);  // before the model does: TVM's threads would hang, too
  OneTVMThread policy(limit_threads_);
  StepScope step(cache_, state_, requests);
  const int64_t rows = embedded->shape[0], hidden = embedded->shape[1];
  ForwardRows result = model(embedded.CreateView(
      one_row_each ? ffi::Shape({rows, 1, hidden}) : ffi::Shape({1, rows, hidden}),
      embedded->dtype));
  const Tensor& logits = result.logits;
  const int64_t width = logits->ndim < 2 ? 0 : logits->shape[logits->ndim - 1];
  const int64_t found = logits->ndim == 3 ? logits->shape[0] * logits->shape[1] : logits->shape[0];
  if (width != logit_columns_ || found != num_logits) {
    Throw(ErrorKind::kRuntime, functions_.path(), " returned logits of shape ",
          ffi::Shape(logits->shape, logits->shape + logits->ndim), " where ", num_logits,
          " rows of ", logit_columns_, " were expected");
  }
  step.End();
  result.logits = logits.CreateView({num_logits, width}, logits->dtype);
  return result;
}

Tensor ModelRunner::RunPrefill(const std::vector<StepRequest>& requests, const Tensor& embedded,
                               const std::vector<int32_t>& logit_rows) {
  const auto count = static_cast<int64_t>(logit_rows.size());
  return RunStep(requests, embedded, false, count,
                 [&](const Tensor& rows) {
                   const bool single = !functions_.batch_prefill && functions_.prefill;
                   const ffi::Any result = single
                                               ? Call(functions_.prefill, rows)
                                               : Call(functions_.batch_prefill, rows, &logit_rows);
                   return ForwardRows{LogitsOf(result), Tensor()};
                 })
      .logits;
}

ForwardRows ModelRunner::RunAllRows(const std::vector<StepRequest>& requests,
                                    const std::vector<int32_t>& tokens,
                                    const ForwardOptions& options,
                                    const std::vector<int32_t>& logit_rows) {
  // batch_verify computes the logits of all rows.
  const bool takes = !options.Special() && !logit_rows.empty();
  const size_t num_logits = takes || logit_rows.empty() ? tokens.size() : logit_rows.size();
  ForwardRows found = RunStep(
      requests, Embed(tokens), false, static_cast<int64_t>(num_logits), [&](const Tensor& rows) {
        if (options.Special()) return CallForStates(rows, options, logit_rows);
        return ForwardRows{LogitsOf(Call(functions_.batch_verify, rows)), Tensor()};
      });
  if (takes) found.logits = TakeRows(found.logits, logit_rows);
  return found;
}

Tensor ModelRunner::Prefill(const std::vector<int64_t>& seq_ids,
                            const std::vector<std::vector<int32_t>>& tokens) {
  Tensor logits = RunPrompts(seq_ids, tokens);
  for (size_t i = 0; i < seq_ids.size(); ++i) {
    Record(seq_ids[i], tokens[i].data(), static_cast<int64_t>(tokens[i].size()));
  }
  return logits;
}

Tensor ModelRunner::RunPrompts(const std::vector<int64_t>& seq_ids,
                               const std::vector<std::vector<int32_t>>& tokens) {
  CheckBatch(seq_ids, tokens.size(), "prompts");
  std::vector<int64_t> lengths;
  for (size_t i = 0; i < tokens.size(); ++i) {
    lengths.push_back(static_cast<int64_t>(tokens[i].size()));
    CheckTokens(seq_ids[i], tokens[i].data(), lengths[i]);
  }
  return PrefillInSteps(seq_ids, lengths, [&](const std::vector<PromptPiece>& pieces) {
    std::vector<int32_t> flat;
    for (const PromptPiece& piece : pieces) {
      const std::vector<int32_t>& prompt = tokens[piece.prompt];
      flat.insert(flat.end(), prompt.begin() + piece.begin, prompt.begin() + piece.end);
    }
    return Embed(flat);
  });
}

Tensor ModelRunner::PrefillInSteps(const std::vector<int64_t>& seq_ids,
                                   const std::vector<int64_t>& lengths, const EmbedPieces& embed) {
  for (size_t i = 0; i < seq_ids.size(); ++i) {
    CheckContext(cache_, state_, context_window_, seq_ids[i], lengths[i]);
  }
  const bool one_sequence_per_step = one_sequence_per_step_ || !functions_.batch_prefill;
  const auto steps = CutIntoSteps(lengths, prefill_chunk_size_, one_sequence_per_step);
  auto run = [&](const std::vector<PromptPiece>& pieces) {
    std::vector<StepRequest> requests;
    int64_t rows = 0;
    std::vector<int32_t> last_rows;
    for (const PromptPiece& piece : pieces) {
      StepRequest& request = requests.emplace_back();
      request.seq_id = seq_ids[piece.prompt];
      request.append_length = piece.end - piece.begin;
      rows += piece.end - piece.begin;
      const bool ends_prompt = piece.end == lengths[piece.prompt];
      if (ends_prompt) last_rows.push_back(static_cast<int32_t>(rows) - 1);
    }
    const bool nothing_ends = last_rows.empty();  // the model computes at least one row
    if (nothing_ends) last_rows.push_back(static_cast<int32_t>(rows) - 1);
    Tensor logits = RunPrefill(requests, embed(pieces), last_rows);
    return std::make_pair(logits, nothing_ends ? int64_t{0} : logits->shape[0]);
  };
  if (steps.size() == 1) return run(steps[0]).first;

  CheckFreePages(cache_, seq_ids, lengths);
  return AllOrNothing(cache_, state_, seq_ids, [&] {
    Tensor all = Tensor::Empty({static_cast<int64_t>(seq_ids.size()), logit_columns_},
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
  const ForwardRows found = RunStep(requests, Embed(tokens), true, batch, [&](const Tensor& rows) {
    const auto& decode = single ? functions_.decode : functions_.batch_decode;
    return ForwardRows{LogitsOf(Call(decode, rows)), Tensor()};
  });
  for (size_t i = 0; i < seq_ids.size(); ++i) Record(seq_ids[i], &tokens[i], 1);
  return found.logits;
}

}  // namespace kvctl
