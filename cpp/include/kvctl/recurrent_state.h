/*!
 * \file kvctl/recurrent_state.h
 * \brief The recurrent state for C++ programs: what layers without a KV cache remember of a
 * sequence.
 *
 * A RecurrentState is a TVM RNNState: every vm.builtin.kv_state_* and vm.builtin.rnn_state_*
 * function takes it. It can also be rolled back into the middle of a chunk. It keeps a history of
 * states for that, in one of two ways:
 *
 * - a model that computes the state after every token hands them over (SetSteps); rolling back,
 * committing a tree path and forking then land exactly on any of them;
 * - of one that does not, the state before each chunk is kept; rolling back lands there and returns
 * how many tokens have to run again.
 */
#ifndef KVCTL_RECURRENT_STATE_H_
#define KVCTL_RECURRENT_STATE_H_

#include <runtime/vm/kv_state.h>
#include <tvm/ffi/container/array.h>

#include <cstdint>
#include <vector>

#include "kvctl/api.h"
#include "kvctl/step_request.h"

namespace kvctl {

/*! \brief What a recurrent state is created with. */
struct RecurrentStateConfig {
  int64_t num_layers = 0;
  int64_t max_sequences = 32;
  int64_t max_history = 16;  //!< tokens by which a sequence can be rolled back
  /*!
   * \brief The memory for states, or 0 for twice max_history + 1 of them per sequence. Larger token
   * trees need more; with less, the history gives way where it runs short.
   */
  int64_t max_bytes = 0;
  /*! \brief Keep the state after every token where the model gives it; false: only after chunks. */
  bool keep_steps = true;
  /*!
   * \brief Whether the model computes the state after every token, which token trees need. If not,
   * begin_forward refuses trees until the model calls SetSteps all the same.
   */
  bool gives_steps = true;
  /*! \brief Initial value of each state of a layer, all on one device; layers are alike. */
  tvm::ffi::Array<tvm::runtime::Tensor> init_values;
};

/*! \brief The point that a rollback would reach. */
struct RecurrentRollbackTarget {
  int64_t length = 0;   //!< committed length afterwards
  int64_t pending = 0;  //!< pending tokens left
  int64_t replay = 0;   //!< tokens after that which have to run again
};

/*! \brief A point that one sequence can return to; it holds its state until it is destroyed. */
class RecurrentCheckpointObj : public tvm::ffi::Object {
 public:
  static constexpr bool _type_mutable = true;
  TVM_FFI_DECLARE_OBJECT_INFO("kvctl.RecurrentCheckpoint", RecurrentCheckpointObj,
                              tvm::ffi::Object);
};

class RecurrentCheckpoint : public tvm::ffi::ObjectRef {
 public:
  TVM_FFI_DEFINE_OBJECT_REF_METHODS_NULLABLE(RecurrentCheckpoint, tvm::ffi::ObjectRef,
                                             RecurrentCheckpointObj);
};

/*!
 * \brief kvctl's recurrent state. Every operation either happens or throws a tvm::ffi::Error and
 * leaves the state as it was; use from two threads at once is refused with a RuntimeError.
 */
class RecurrentStateObj : public tvm::runtime::vm::RNNStateObj {
 public:
  using Tensor = tvm::runtime::Tensor;

  // The step in flight.
  /*! \brief Begins a step. TVM's BeginForward commits chains and leaves trees pending. */
  virtual void BeginForward(const std::vector<StepRequest>& requests) = 0;
  using RNNStateObj::BeginForward;
  /*! \brief Throws what EndForward would throw: states that the forward has left out. */
  virtual void CheckEndForward() const = 0;
  /*! \brief Takes the step in flight back. */
  virtual void AbortForward() = 0;
  virtual bool InForward() const = 0;

  // The model's side of a step. A root is a state of before the step that new tokens start from:
  // one per sequence, in their order, unless a tree grows from several pending nodes.
  virtual int64_t NumRoots() const = 0;
  /*! \brief Copies the roots' states. \param out (num_roots, ...state shape). */
  virtual void GetRoots(int64_t layer_id, int64_t state_id, Tensor out) = 0;
  /*!
   * \brief Where the state that each new token starts from is found, and where the one after it
   * belongs.
   * \param steps true: a state per token is to be computed. Token i writes entry i; it reads entry
   * source
   * >= 0, or root -1 - source. false: one state per root is updated in place; token i writes entry
   * root(i) and reads it too, or the root's own state first. Only where each sequence's tokens form
   * a chain.
   * \param out (2, tokens) int32: sources, then targets.
   */
  virtual void GetRows(bool steps, Tensor out) = 0;
  /*! \brief The state after every new token. \param data (tokens, ...state shape). */
  virtual void SetSteps(int64_t layer_id, int64_t state_id, Tensor data) = 0;

  // Rolling back. Each returns how many tokens have to run again.
  /*! \brief ForkSequence that may land before `position`; TVM's throws where it would. */
  virtual int64_t Fork(int64_t parent_seq_id, int64_t child_seq_id, int64_t position) = 0;
  /*! \brief PopN that may land before the target; TVM's throws where it would. */
  virtual int64_t Pop(int64_t seq_id, int64_t n) = 0;
  /*! \brief Takes back every token, however far the kept states reach; checkpoints stay valid. */
  virtual void Restart(int64_t seq_id) = 0;
  /*! \brief Where Pop would land; throws where it would. */
  virtual RecurrentRollbackTarget PlanPop(int64_t seq_id, int64_t n) const = 0;
  /*!
   * \brief Commits a path of each sequence's pending region and drops the other nodes.
   * \param kept per sequence, nodes from the committed state downwards.
   */
  virtual std::vector<int32_t> Commit(const std::vector<int64_t>& seq_ids,
                                      const std::vector<std::vector<int32_t>>& kept) = 0;
  /*! \brief What Commit would return; throws where it would. */
  virtual std::vector<int32_t> PlanCommit(const std::vector<int64_t>& seq_ids,
                                          const std::vector<std::vector<int32_t>>& kept) const = 0;
  /*! \brief Drops the pending nodes of a sequence. */
  virtual void DropPending(int64_t seq_id) = 0;
  /*! \brief Drops the pending nodes of several sequences, or throws and drops none. */
  virtual void DropPending(const std::vector<int64_t>& seq_ids) = 0;
  virtual RecurrentCheckpoint MakeCheckpoint(int64_t seq_id) = 0;
  /*! \brief Returns exactly, whatever the history's bound. */
  virtual void Rollback(int64_t seq_id, const RecurrentCheckpoint& checkpoint) = 0;
  /*! \brief Throws where Rollback would. */
  virtual void CheckRollback(int64_t seq_id, const RecurrentCheckpoint& checkpoint) const = 0;

  // Queries.
  virtual const RecurrentStateConfig& config() const = 0;
  virtual bool HasSequence(int64_t seq_id) const = 0;
  /*! \brief Tokens of a sequence, pending ones counted. */
  virtual int64_t SequenceLength(int64_t seq_id) const = 0;
  virtual int64_t PendingLength(int64_t seq_id) const = 0;
  /*! \brief The earliest length that the sequence can be rolled back to. */
  virtual int64_t EarliestPosition(int64_t seq_id) const = 0;
  /*! \brief Bytes of one kept state: all layers together. */
  virtual int64_t StateBytes() const = 0;
  virtual int64_t MaxStates() const = 0;      //!< states that fit, without the initial one
  virtual int64_t NumFreeStates() const = 0;  //!< those that nothing uses
  /*! \brief A copy of the state after `position` tokens (-1: the present one), pending ones
   * counted. */
  virtual Tensor GetState(int64_t seq_id, int64_t position, int64_t layer_id,
                          int64_t state_id) const = 0;

  static constexpr bool _type_mutable = true;
  TVM_FFI_DECLARE_OBJECT_INFO("kvctl.RecurrentState", RecurrentStateObj,
                              tvm::runtime::vm::RNNStateObj);
};

class RecurrentState : public tvm::runtime::vm::RNNState {
 public:
  /*!
   * \brief Creates a recurrent state.
   * \throws tvm::ffi::Error ValueError for sizes that make no sense.
   */
  KVCTL_API static RecurrentState Create(const RecurrentStateConfig& config);

  TVM_FFI_DEFINE_OBJECT_REF_METHODS_NULLABLE(RecurrentState, tvm::runtime::vm::RNNState,
                                             RecurrentStateObj);
};

/*!
 * \brief Puts kvctl's recurrent state behind vm.builtin.rnn_state_create, for model libraries whose
 * VM is created from now on; those keep it after UninstallRecurrentState.
 */
KVCTL_API void InstallRecurrentState();
/*! \brief Puts TVM's recurrent state back. */
KVCTL_API void UninstallRecurrentState();
/*! \brief Whether kvctl's recurrent state is installed. */
KVCTL_API bool RecurrentStateInstalled();

}  // namespace kvctl

#endif  // KVCTL_RECURRENT_STATE_H_
