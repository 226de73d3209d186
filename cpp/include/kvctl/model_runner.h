/*!
 * \file kvctl/model_runner.h
 * \brief A compiled language model on a kvctl cache: prefill, decode, verify.
 */
#ifndef KVCTL_MODEL_RUNNER_H_
#define KVCTL_MODEL_RUNNER_H_

#include <tvm/ffi/container/array.h>
#include <tvm/runtime/tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kvctl/api.h"
#include "kvctl/function_table.h"
#include "kvctl/paged_kv_cache.h"
#include "kvctl/recurrent_state.h"
#include "kvctl/step_request.h"
#include "kvctl/token_tree.h"

namespace kvctl {

struct PromptPiece;
struct ReplayLog;
struct ReplayTarget;
struct SequenceTokens;

/*! \brief How a model is loaded. 0 means: what the model's library says. */
struct RunnerOptions {
  DLDevice device = {kDLCPU, 0};
  int64_t max_sequences = 4;
  /*!
   * \brief Tokens that the cache holds, all sequences together. By default one full context window
   * for each sequence, but no more than 8192.
   */
  int64_t max_total_tokens = 0;
  int64_t prefill_chunk_size = 0;  //!< new tokens of one forward; at most the library's
  int64_t page_size = 16;
  /*! \brief The type of K and V in the cache's pages; with 0 bits the library's own. */
  DLDataType kv_dtype = {kDLFloat, 0, 1};
  /*! \brief Of float8_e4m3fn pages, on the host: see PagedKVCacheConfig::kv_scales. */
  tvm::ffi::Optional<tvm::runtime::Tensor> kv_scales;
  /*!
   * \brief Which worker this is, counted from 0, of those that a library was compiled for
   * (tensor_parallel_shards); -1: none of several.
   */
  int64_t shard = -1;
  // Of models with recurrent layers.
  int64_t max_history = 16;     //!< tokens by which a sequence can be rolled back
  int64_t max_state_bytes = 0;  //!< memory for kept states; see RecurrentStateConfig::max_bytes
  bool keep_steps = true;       //!< keep the state after every token where the model gives it
  /*! \brief Called during the load with the bytes of parameters read and their total. */
  std::function<void(int64_t, int64_t)> progress;
};

/*! \brief What a forward of every row returns beside its logits, and how far it goes. */
struct ForwardOptions {
  /*! \brief Stands for what the output layer reads, among the layers of `hidden`. */
  static constexpr int32_t kLast = -1;
  /*!
   * \brief Layers whose outputs are returned, counted from 0, or kLast; empty: none. The library
   * must have been compiled for them; MLC-LLM's libraries with *_to_last_hidden_states have kLast.
   */
  std::vector<int32_t> hidden;
  /*!
   * \brief > 0: only the first so many layers run, then the last norm and the output layer. The
   * rows are pending, and can be dropped but not committed before ModelRunner::Complete. The
   * library must have been compiled for that number.
   */
  int32_t exit_layer = 0;
  /*!
   * \brief Logits behind the last token of each request alone, in their order, as Prefill gives
   * them; hidden states are those of all tokens.
   */
  bool last_logits = false;

  /*! \brief Whether a forward returns something else than the logits of all layers. */
  bool Special() const { return !hidden.empty() || exit_layer > 0; }
};

/*! \brief The rows of a forward. */
struct ForwardRows {
  tvm::runtime::Tensor logits;  //!< (rows, vocabulary) float32
  /*! \brief (rows, layers asked for, hidden) of the model's type; null if none was asked for. */
  tvm::runtime::Tensor hidden;
  /*! \brief (rows, hidden) what the next layer reads; null unless the forward stopped early. */
  tvm::runtime::Tensor entering{};
};

/*! \brief A point that one sequence of a ModelRunner can return to; it holds what it needs. */
struct RunnerCheckpoint {
  CacheCheckpoint cache;
  RecurrentCheckpoint state;
  std::shared_ptr<const SequenceTokens> tokens;
};

/*!
 * \brief A model directory, loaded: MLC-LLM's layout, compiled by kvctl or by anybody.
 *
 * Sequences live in the cache: add them there, and take tokens back there (PopN, Commit,
 * Rollback). Those of a model with recurrent layers live in the state, those of a hybrid in both,
 * in equal lengths: the runner's own AddSequence, PopN, Commit and so on change both at once. Where
 * no state is kept at the target, they go back further and run tokens again. They serve models
 * without recurrent layers, too. Every call here either happens for all sequences that it names or
 * leaves the cache as it was, whatever is thrown in the middle of the model. One thread at a time.
 *
 * Errors are kvctl::Error for what the runner sees and tvm::ffi::Error for what the cache, the
 * virtual machine and the model's kernels say; AsError in kvctl/error.h makes one of them.
 */
class KVCTL_API ModelRunner {
 public:
  /*!
   * \brief Loads a model with its library, on a cache of its own.
   * \throws Error kFileNotFound / kValue for files that are missing, cut short or do not belong
   * together, before any parameter is read; kNotImplemented for a model that the runner cannot run.
   */
  static ModelRunner Load(const std::string& directory, const RunnerOptions& options = {});
  /*!
   * \brief The same with a library that is loaded already, on its device.
   * \throws Error kRuntime if that was loaded before kvctl's cache was installed.
   */
  static ModelRunner Load(const std::string& directory, const FunctionTable& functions,
                          const RunnerOptions& options = {});

  /*!
   * \brief Appends prompts of any lengths, in chunks.
   * \return (batch, vocabulary) float32: what follows the last token of each prompt.
   * \throws Error kValue for an empty prompt, a token outside the vocabulary, a sequence named
   * twice or with pending nodes, a prompt beyond the model's context window; kOutOfPages if the
   * prompts do not fit the cache.
   */
  tvm::runtime::Tensor Prefill(const std::vector<int64_t>& seq_ids,
                               const std::vector<std::vector<int32_t>>& tokens);
  /*! \brief Appends one token to each sequence. \return (batch, vocabulary) float32. */
  tvm::runtime::Tensor Decode(const std::vector<int64_t>& seq_ids,
                              const std::vector<int32_t>& tokens);
  /*!
   * \brief Forwards one tree of drafts per sequence and leaves its rows pending; commit them
   * through the cache.
   * \return (rows of all trees, vocabulary) float32, tree after tree, row i saying what follows the
   * node in row i.
   * \throws Error kValue if a row of a tree belongs to no node (Forward takes such rows, with their
   * tokens and their mask), a tree is larger than the prefill chunk, or a sequence has pending
   * nodes already: a tree's parents count from its own root. Forward grows a tree.
   */
  tvm::runtime::Tensor Verify(const std::vector<int64_t>& seq_ids,
                              const std::vector<TokenTree>& trees);
  /*!
   * \brief Forwards any new tokens under any masks, those without one in chunks.
   * \param tokens The new tokens of all requests, request after request.
   * \return (all new tokens, vocabulary) float32, request after request.
   * \throws Error kValue if the requests' lengths do not add up to the tokens, or a request with
   * a mask has more of them than the prefill chunk.
   */
  tvm::runtime::Tensor Forward(const std::vector<StepRequest>& requests,
                               const std::vector<int32_t>& tokens);

  /*!
   * \brief Verify with hidden states, or of a part of the layers.
   * \throws Error kNotImplemented if the library was not compiled for what is asked.
   */
  ForwardRows Verify(const std::vector<int64_t>& seq_ids, const std::vector<TokenTree>& trees,
                     const ForwardOptions& options);
  /*! \brief Forward with hidden states, or of a part of the layers, whose rows must be pending. */
  ForwardRows Forward(const std::vector<StepRequest>& requests, const std::vector<int32_t>& tokens,
                      const ForwardOptions& options);
  /*!
   * \brief Runs the other layers of all pending rows of some sequences, in their slots; they can
   * then be committed.
   * \param entering ForwardRows::entering of the rows of all sequences, (rows, hidden): sequence
   * after sequence, of each the rows that are pending still, in their order.
   * \param exit_layer How many layers they ran.
   * \return Logits, and in `hidden` what the output layer reads, (rows, 1, hidden).
   * \throws Error kValue if a sequence has no such rows, or they are more than the prefill chunk.
   */
  ForwardRows Complete(const std::vector<int64_t>& seq_ids, const tvm::runtime::Tensor& entering,
                       int32_t exit_layer);
  /*!
   * \brief Joins the logits of all workers; every worker calls it, with the rows that the same
   * call returned to each.
   * \param local (rows, logit_columns) float32.
   * \return On worker 0 (rows, vocabulary); on others `local`.
   * \throws Error kValue for another shape; kRuntime if no collectives are there.
   */
  tvm::runtime::Tensor GatherLogits(const tvm::runtime::Tensor& local) const;
  /*! \brief Whether the library gives what the output layer reads; see ForwardOptions::hidden. */
  bool GivesHidden() const;
  /*! \brief The rows that enter layer 0, (n, hidden). */
  tvm::runtime::Tensor Embed(const std::vector<int32_t>& tokens) const;
  /*!
   * \brief Appends prompts that are rows of embeddings, in chunks.
   * \param embeddings (n_i, hidden) of what Embed returns, for each sequence.
   * \return (batch, vocabulary) float32.
   * \throws Error kValue, kType for rows that are none; kNotImplemented for a model with recurrent
   * layers.
   */
  tvm::runtime::Tensor PrefillEmbeddings(const std::vector<int64_t>& seq_ids,
                                         const std::vector<tvm::runtime::Tensor>& embeddings);

  // Sequences of the cache and of the state together. A sequence is changed either by these or by
  // the methods of cache() and state(), not by both.
  /*! \brief Adds an empty sequence. \throws Error kValue if the id is taken. */
  void AddSequence(int64_t seq_id);
  /*! \brief Removes a sequence; its checkpoints become invalid. */
  void RemoveSequence(int64_t seq_id);
  /*!
   * \brief Makes `child` a copy of the first `position` tokens of `parent`, -1: of all.
   * \throws Error kValue if tokens have to run again that cannot (see PopN).
   */
  void ForkSequence(int64_t parent, int64_t child, int64_t position = -1);
  /*! \brief Commits a path of each sequence's pending nodes and drops the others; see PopN. */
  void Commit(const std::vector<int64_t>& seq_ids, const std::vector<std::vector<int32_t>>& kept);
  /*! \brief Drops the pending nodes of some sequences. */
  void DropPending(const std::vector<int64_t>& seq_ids);
  /*!
   * \brief Takes back the last n tokens: first pending nodes, then committed ones.
   * \throws Error kValue if a sequence has fewer, or if no state is kept at the target and the
   * tokens that lead there ran under a mask or at positions of their own; kOutOfPages if what has
   * to run again does not fit.
   */
  void PopN(int64_t seq_id, int64_t n);
  RunnerCheckpoint MakeCheckpoint(int64_t seq_id);
  /*! \brief Makes a sequence exactly what it was; the checkpoint stays valid. */
  void Rollback(int64_t seq_id, const RunnerCheckpoint& checkpoint);
  /*! \brief Tokens of a sequence, pending ones counted. */
  int64_t SequenceLength(int64_t seq_id) const;
  int64_t PendingLength(int64_t seq_id) const;
  /*! \brief How many tokens have run again so far. */
  int64_t replayed_tokens() const;

  /*! \brief The cache of the attention layers; null for a model that has none. */
  const PagedKVCache& cache() const { return cache_; }
  /*! \brief The state of the recurrent layers; null for a model that has none. */
  const RecurrentState& state() const { return state_; }
  const FunctionTable& functions() const { return functions_; }
  /*! \brief The parameters, in the order in which the library's functions take them. */
  const tvm::ffi::Array<tvm::runtime::Tensor>& params() const { return params_; }
  /*! \brief mlc-chat-config.json. */
  const tvm::ffi::json::Object& config() const { return config_; }
  int64_t vocab_size() const { return vocab_size_; }
  /*!
   * \brief Length of a row of logits: the vocabulary, or what this worker has of it. Those of
   * worker i begin with token i times this, and minus infinity follows the last token.
   */
  int64_t logit_columns() const { return logit_columns_; }
  int64_t shard() const { return shard_; }            //!< which worker this is
  int64_t num_shards() const { return num_shards_; }  //!< workers that run the model together
  int64_t prefill_chunk_size() const { return prefill_chunk_size_; }

 private:
  explicit ModelRunner(FunctionTable functions);

  void CheckPair(int64_t seq_id) const;
  SequenceTokens& TokensOf(int64_t seq_id) const;
  void Record(int64_t seq_id, const int32_t* tokens, int64_t count, bool special = false);
  void RunAgain(std::vector<ReplayTarget> targets);
  void RunAgainOrReturn(std::vector<ReplayTarget> targets, const std::vector<int64_t>& seq_ids,
                        const std::vector<RunnerCheckpoint>& points);
  tvm::runtime::Tensor RunPrompts(const std::vector<int64_t>& seq_ids,
                                  const std::vector<std::vector<int32_t>>& tokens);

  using ModelCall = std::function<ForwardRows(const tvm::runtime::Tensor& embeddings)>;
  tvm::runtime::Tensor RunPrefill(const std::vector<StepRequest>& requests,
                                  const tvm::runtime::Tensor& embedded,
                                  const std::vector<int32_t>& logit_rows);
  ForwardRows RunAllRows(const std::vector<StepRequest>& requests,
                         const std::vector<int32_t>& tokens, const ForwardOptions& options,
                         const std::vector<int32_t>& logit_rows);
  ForwardRows RunRequests(const std::vector<StepRequest>& requests,
                          const std::vector<int32_t>& tokens, const ForwardOptions& options);
  ForwardRows RunStep(const std::vector<StepRequest>& requests,
                      const tvm::runtime::Tensor& embedded, bool one_row_each, int64_t num_logits,
                      const ModelCall& model);
  ForwardRows CallForStates(const tvm::runtime::Tensor& embedded, const ForwardOptions& options,
                            const std::vector<int32_t>& logit_rows) const;
  void CheckOptions(const ForwardOptions& options) const;
  size_t ExitOf(int32_t exit_layer) const;
  tvm::runtime::Tensor LogitsFrom(const tvm::runtime::Tensor& hidden) const;
  void FindStates();
  using EmbedPieces = std::function<tvm::runtime::Tensor(const std::vector<PromptPiece>&)>;
  tvm::runtime::Tensor PrefillInSteps(const std::vector<int64_t>& seq_ids,
                                      const std::vector<int64_t>& lengths,
                                      const EmbedPieces& embed);
  tvm::ffi::Any Call(const ModelFunction& function, const tvm::runtime::Tensor& embedded,
                     const std::vector<int32_t>* rows = nullptr) const;
  void CheckTokens(int64_t seq_id, const int32_t* tokens, int64_t count) const;

  FunctionTable functions_;
  tvm::ffi::Array<tvm::runtime::Tensor> params_;
  PagedKVCache cache_;
  RecurrentState state_;
  tvm::ffi::json::Object config_;
  int64_t vocab_size_ = 0;
  int64_t logit_columns_ = 0;
  int64_t shard_ = 0;
  int64_t num_shards_ = 1;
  int64_t prefill_chunk_size_ = 0;
  int64_t context_window_ = -1;  // tokens of a sequence; below 1: no limit
  // MLC-LLM's recurrent layers run the rows of a prefill or a verification as one sequence.
  bool one_sequence_per_step_ = false;
  std::vector<int32_t> hidden_layers_;  // whose outputs the library gives
  std::vector<int32_t> exit_layers_;    // after which it can stop
  std::vector<ModelFunction> exits_;    // one for each of them
  std::vector<ModelFunction> rests_;    // the layers after each of them
  ModelFunction to_states_;             // kvctl's or MLC-LLM's; absent: no hidden states
  ModelFunction get_logits_;
  std::shared_ptr<ReplayLog> log_;  // of a model with recurrent layers
  bool limit_threads_ = false;  // our own models run on OpenMP; TVM's pool would only disturb it
};

}  // namespace kvctl

#endif  // KVCTL_MODEL_RUNNER_H_
