/*!
 * \file runtime/recurrent/recurrent_state.h
 * \brief RecurrentStateObj: core's table of kept states, whose memory is TVM tensors.
 */
#ifndef KVCTL_RUNTIME_RECURRENT_RECURRENT_STATE_H_
#define KVCTL_RUNTIME_RECURRENT_RECURRENT_STATE_H_

#include <atomic>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

#include "core/recurrent/recurrent_table.h"
#include "kernels/row_copy.h"
#include "kvctl/recurrent_state.h"
#include "runtime/support/exclusive_scope.h"
#include "runtime/support/guard.h"
#include "runtime/support/step_partner.h"

namespace kvctl {

class RecurrentStateImpl final : public RecurrentStateObj {
 public:
  using Shape = tvm::ffi::Shape;

  explicit RecurrentStateImpl(const RecurrentStateConfig& config);

  // KVState.
  void Clear() final;
  void AddSequence(int64_t seq_id) final;
  void RemoveSequence(int64_t seq_id) final;
  void ForkSequence(int64_t parent, int64_t child, int64_t position) final;
  void PopN(int64_t seq_id, int32_t n) final;
  void BeginForward(const Shape& seq_ids, const Shape& append_lengths,
                    const tvm::ffi::Optional<Shape>& parents) final;
  void EndForward() final;

  // RNNState.
  void Get(int64_t layer_id, int64_t state_id, Tensor out) final;
  void Set(int64_t layer_id, int64_t state_id, Tensor data) final;
  Tensor DebugGet(int64_t layer_id, int64_t state_id, int64_t seq_id) final;

  // RecurrentStateObj.
  void BeginForward(const std::vector<StepRequest>& requests) final;
  void CheckEndForward() const final;
  void AbortForward() final;
  bool InForward() const final { return table_.in_forward(); }
  int64_t NumRoots() const final;
  void GetRoots(int64_t layer_id, int64_t state_id, Tensor out) final;
  void GetRows(bool steps, Tensor out) final;
  void SetSteps(int64_t layer_id, int64_t state_id, Tensor data) final;
  int64_t Fork(int64_t parent, int64_t child, int64_t position) final;
  int64_t Pop(int64_t seq_id, int64_t n) final;
  void Restart(int64_t seq_id) final;
  RecurrentRollbackTarget PlanPop(int64_t seq_id, int64_t n) const final;
  std::vector<int32_t> Commit(const std::vector<int64_t>& seq_ids,
                              const std::vector<std::vector<int32_t>>& kept) final;
  std::vector<int32_t> PlanCommit(const std::vector<int64_t>& seq_ids,
                                  const std::vector<std::vector<int32_t>>& kept) const final;
  void DropPending(int64_t seq_id) final;
  void DropPending(const std::vector<int64_t>& seq_ids) final;
  RecurrentCheckpoint MakeCheckpoint(int64_t seq_id) final;
  void Rollback(int64_t seq_id, const RecurrentCheckpoint& checkpoint) final;
  void CheckRollback(int64_t seq_id, const RecurrentCheckpoint& checkpoint) const final;
  const RecurrentStateConfig& config() const final { return config_; }
  bool HasSequence(int64_t seq_id) const final { return table_.Contains(seq_id); }
  int64_t SequenceLength(int64_t seq_id) const final;
  int64_t PendingLength(int64_t seq_id) const final;
  int64_t EarliestPosition(int64_t seq_id) const final;
  int64_t StateBytes() const final;
  int64_t MaxStates() const final { return table_.config().max_states; }
  int64_t NumFreeStates() const final;
  Tensor GetState(int64_t seq_id, int64_t position, int64_t layer_id, int64_t state_id) const final;

  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("kvctl.RecurrentStateImpl", RecurrentStateImpl,
                                    RecurrentStateObj);

 private:
  friend class RecurrentCheckpointImpl;

  /*! \brief Whether a state of the step in flight has been set, and how. */
  enum class Written : char { kNot, kFinal, kSteps };

  /*!
   * \brief Runs f as the only caller, errors translated; a second caller at the same time is
   * refused, or waits where it closes a step or takes something back.
   */
  template <typename F>
  auto WithLock(F&& f, WhenBusy when_busy = WhenBusy::kRefuse) const {
    return Guard([&]() -> decltype(f()) {
      ExclusiveScope scope(&user_,
                           "the recurrent state is in use by another thread; one thread at a time",
                           when_busy);
      ForgetDiscarded();
      return std::forward<F>(f)();
    });
  }
  /*! \brief Releases the checkpoints that were destroyed since the last call. */
  void ForgetDiscarded() const;
  /*! \brief Called by a checkpoint's destructor, on any thread. */
  void Discard(int64_t checkpoint) const noexcept;

  const Tensor& Storage(int64_t layer_id, int64_t state_id) const;
  const RecurrentStep& Step(const char* operation) const;
  void CheckRows(const Tensor& tensor, const char* what, int64_t rows, int64_t state_id) const;
  StepOutcome Outcome() const;
  void Begin(const std::vector<StepRequest>& requests);
  void CopyRoots(const RecurrentStep& step, int64_t layer_id, int64_t state_id,
                 const Tensor& out) const;
  /*! \brief Refuses a tree where the model gives no state per token. */
  void CheckTrees(const std::vector<StepRequest>& requests) const;
  void CopyRows(const Tensor& source, const Tensor& target, size_t row_bytes,
                const std::vector<RowMove>& moves) const;
  int64_t CheckpointId(const RecurrentCheckpoint& checkpoint) const;

  RecurrentStateConfig config_;
  std::vector<size_t> row_bytes_;  // [states of a layer] bytes of one state of one layer
  mutable RecurrentTable table_;   // mutable: const calls release discarded checkpoints too
  std::vector<Tensor> storage_;    // [layers * states of a layer] (max_states + 1, ...state shape)
  std::vector<Written> written_;   // [layers * states of a layer]
  bool gives_steps_;               // whether the model computes a state per token
  StepPartner partner_{StepPartner::Kind::kState};
  mutable ObjectUser user_{std::thread::id()};
  mutable std::mutex discarded_mutex_;
  mutable std::vector<int64_t> discarded_;
};

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_RECURRENT_RECURRENT_STATE_H_
