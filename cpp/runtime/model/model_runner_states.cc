// Hidden states and early exits of a runner, and prompts that are embeddings.
#include <algorithm>
#include <string>

#include "kvctl/error.h"
#include "kvctl/model_runner.h"
#include "runtime/model/batch.h"
#include "runtime/model/row_tensors.h"
#include "runtime/support/json.h"

namespace kvctl {
namespace {

namespace ffi = tvm::ffi;
using tvm::runtime::Tensor;

std::vector<int32_t> Integers(const JsonObject& json, const char* key) {
  std::vector<int32_t> values;
  const auto array = FindMember<ffi::json::Array>(json, key);
  if (!array) return values;
  for (const ffi::Any& value : *array)
    values.push_back(static_cast<int32_t>(value.cast<int64_t>()));
  return values;
}

std::string Listed(const std::vector<int32_t>& values) {
  std::string text;
  for (int32_t value : values) text += (text.empty() ? "" : ", ") + std::to_string(value);
  return text.empty() ? "none" : text;
}

/*! \brief Some columns of (rows, columns, hidden), in their order. */
Tensor TakeColumns(const Tensor& states, const std::vector<int32_t>& columns) {
  const int64_t rows = states->shape[0], all = states->shape[1], width = states->shape[2];
  const auto count = static_cast<int64_t>(columns.size());
  bool same = count == all;
  for (int64_t i = 0; same && i < count; ++i) same = columns[i] == i;
  if (same) return states;
  Tensor taken = Tensor::Empty({rows, count, width}, states->dtype, states->device);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < count; ++i) {
      CopyElements(states, (row * all + columns[i]) * width, width, taken,
                   (row * count + i) * width);
    }
  }
  return taken;
}

}  // namespace

void ModelRunner::FindStates() {
  const JsonObject& metadata = functions_.metadata();
  const JsonObject ours = FindMember<JsonObject>(metadata, "kvctl").value_or(JsonObject());
  hidden_layers_ = Integers(ours, "hidden_layers");
  exit_layers_ = Integers(ours, "exit_layers");
  for (int32_t layer : exit_layers_) {
    exits_.push_back(functions_.Find("batch_verify_until_" + std::to_string(layer)));
    rests_.push_back(functions_.Find("batch_verify_from_" + std::to_string(layer)));
  }
  to_states_ = functions_.Find("batch_verify_to_hidden_states");
  if (!to_states_) to_states_ = functions_.Find("batch_verify_to_last_hidden_states");
  get_logits_ = functions_.Find("get_logits");
  if (!get_logits_) get_logits_ = functions_.Find("batch_get_logits");
}

bool ModelRunner::GivesHidden() const { return to_states_ && get_logits_ && !state_.defined(); }

void ModelRunner::CheckOptions(const ForwardOptions& options) const {
  if (options.hidden.empty() && options.exit_layer == 0) return;
  if (options.exit_layer != 0) {
    ExitOf(options.exit_layer);
  } else if (!GivesHidden()) {
    Throw(ErrorKind::kNotImplemented, functions_.path(), " was compiled without hidden states ",
          "(kvctl compile --hidden-layers)");
  }
  for (int32_t layer : options.hidden) {
    if (layer == ForwardOptions::kLast) continue;
    const bool known =
        std::find(hidden_layers_.begin(), hidden_layers_.end(), layer) != hidden_layers_.end();
    if (!known || options.exit_layer != 0) {
      Throw(ErrorKind::kNotImplemented, functions_.path(), " does not give the output of layer ",
            layer, options.exit_layer != 0 ? " where it stops early" : "",
            "; it was compiled for the layers ", Listed(hidden_layers_));
    }
  }
}

size_t ModelRunner::ExitOf(int32_t exit_layer) const {
  const auto found = std::find(exit_layers_.begin(), exit_layers_.end(), exit_layer);
  if (found == exit_layers_.end() || !get_logits_) {
    Throw(ErrorKind::kNotImplemented, functions_.path(), " cannot stop after ", exit_layer,
          " layers; it was compiled for ", Listed(exit_layers_), " (kvctl compile --exit-layers)");
  }
  return found - exit_layers_.begin();
}

Tensor ModelRunner::LogitsFrom(const Tensor& hidden) const {
  const ffi::Any logits = get_logits_(hidden, params_);
  const auto parts = logits.as<ffi::Array<ffi::Any>>();
  return parts ? (*parts)[0].cast<Tensor>() : logits.cast<Tensor>();
}

ForwardRows ModelRunner::CallForStates(const Tensor& embedded, const ForwardOptions& options,
                                       const std::vector<int32_t>& logit_rows) const {
  const bool leaves = options.exit_layer != 0;
  const ModelFunction& function = leaves ? exits_[ExitOf(options.exit_layer)] : to_states_;
  const ffi::Any result = Call(function, embedded);
  const auto several = result.as<ffi::Array<ffi::Any>>();
  Tensor states = several ? (*several)[0].cast<Tensor>() : result.cast<Tensor>();
  // kvctl's libraries give (rows, columns, hidden), MLC-LLM's and exits (1, rows, hidden).
  const int64_t rows = embedded->shape[0] * embedded->shape[1];
  const bool stacked = !leaves && function.name() == "batch_verify_to_hidden_states";
  const int64_t columns = stacked ? static_cast<int64_t>(hidden_layers_.size()) + 1 : 1;
  const int64_t width = states->shape[states->ndim - 1];
  states = states.CreateView({rows, columns, width}, states->dtype);
  const auto last = static_cast<int32_t>(columns) - 1;

  ForwardRows found;
  Tensor read = TakeColumns(states, {last}).CreateView({rows, width}, states->dtype);
  if (!logit_rows.empty()) read = TakeRows(read, logit_rows);
  found.logits = LogitsFrom(read);
  if (leaves)
    found.entering = (*several)[1].cast<Tensor>().CreateView({rows, width}, states->dtype);
  std::vector<int32_t> wanted;
  for (int32_t layer : options.hidden) {
    const auto place = std::find(hidden_layers_.begin(), hidden_layers_.end(), layer);
    wanted.push_back(layer == ForwardOptions::kLast
                         ? last
                         : static_cast<int32_t>(place - hidden_layers_.begin()));
  }
  if (!wanted.empty()) found.hidden = TakeColumns(states, wanted);
  return found;
}

ForwardRows ModelRunner::Complete(const std::vector<int64_t>& seq_ids, const Tensor& entering,
                                  int32_t exit_layer) {
  CheckBatch(seq_ids, seq_ids.size(), "sequences");
  const size_t exit = ExitOf(exit_layer);
  std::vector<StepRequest> requests;
  int64_t rows = 0;
  for (int64_t id : seq_ids) {
    StepRequest& request = requests.emplace_back();
    request.seq_id = id;
    request.resume = true;
    request.append_length = cache_->PendingLength(id);
    rows += request.append_length;
  }
  if (entering->ndim != 2 || entering->shape[0] != rows) {
    Throw(ErrorKind::kValue, "the sequences have ", rows, " pending rows, and the rows that enter ",
          "layer ", exit_layer, " are ",
          ffi::Shape(entering->shape, entering->shape + entering->ndim));
  }
  return RunStep(requests, entering, false, rows, [&](const Tensor& embedded) {
    const ffi::Any result = Call(rests_[exit], embedded);
    const auto several = result.as<ffi::Array<ffi::Any>>();
    const Tensor read = (*several)[0].cast<Tensor>();
    const int64_t width = read->shape[read->ndim - 1];
    ForwardRows found;
    found.logits = LogitsFrom(read.CreateView({rows, width}, read->dtype));
    found.hidden = read.CreateView({rows, 1, width}, read->dtype);
    return found;
  });
}

Tensor ModelRunner::PrefillEmbeddings(const std::vector<int64_t>& seq_ids,
                                      const std::vector<Tensor>& embeddings) {
  CheckBatch(seq_ids, embeddings.size(), "prompts");
  if (state_.defined()) {
    Throw(ErrorKind::kNotImplemented,
          "a model with recurrent layers may have to run tokens again, and embeddings have none");
  }
  const Tensor like = Embed({0});
  const int64_t hidden = like->shape[1];
  std::vector<int64_t> lengths;
  for (size_t i = 0; i < embeddings.size(); ++i) {
    const Tensor& rows = embeddings[i];
    if (rows->ndim != 2 || rows->shape[1] != hidden || rows->shape[0] < 1) {
      Throw(ErrorKind::kValue, "the embeddings of sequence ", seq_ids[i], " must be (n, ", hidden,
            ") with n from 1, got ", ffi::Shape(rows->shape, rows->shape + rows->ndim));
    }
    if (rows.DataType() != like.DataType()) {
      Throw(ErrorKind::kType, "the embeddings of sequence ", seq_ids[i], " must be ",
            ffi::DLDataTypeToString(like.DataType()), ", not ",
            ffi::DLDataTypeToString(rows.DataType()));
    }
    if (!rows.IsContiguous()) {
      Throw(ErrorKind::kValue, "the embeddings of sequence ", seq_ids[i], " must be contiguous");
    }
    lengths.push_back(rows->shape[0]);
  }
  return PrefillInSteps(seq_ids, lengths, [&](const std::vector<PromptPiece>& pieces) {
    int64_t count = 0;
    for (const PromptPiece& piece : pieces) count += piece.end - piece.begin;
    Tensor rows = Tensor::Empty({count, hidden}, like->dtype, functions_.device());
    int64_t at = 0;
    for (const PromptPiece& piece : pieces) {
      CopyRows(embeddings[piece.prompt], piece.begin, piece.end, rows, at);
      at += piece.end - piece.begin;
    }
    return rows;
  });
}

}  // namespace kvctl
