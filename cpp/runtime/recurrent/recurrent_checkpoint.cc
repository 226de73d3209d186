// Points that a sequence of a RecurrentState can return to.
#include <tvm/ffi/cast.h>

#include <utility>

#include "runtime/recurrent/recurrent_state.h"

namespace kvctl {

class RecurrentCheckpointImpl final : public RecurrentCheckpointObj {
 public:
  RecurrentCheckpointImpl(RecurrentState state, int64_t id) : state_(std::move(state)), id_(id) {}
  ~RecurrentCheckpointImpl() { state()->Discard(id_); }

  const RecurrentStateImpl* state() const {
    return static_cast<const RecurrentStateImpl*>(state_.get());
  }
  int64_t id() const { return id_; }

  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("kvctl.RecurrentCheckpointImpl", RecurrentCheckpointImpl,
                                    RecurrentCheckpointObj);

 private:
  RecurrentState state_;  // which a checkpoint keeps alive
  int64_t id_;
};

void RecurrentStateImpl::Discard(int64_t checkpoint) const noexcept {
  std::lock_guard<std::mutex> lock(discarded_mutex_);
  discarded_.push_back(checkpoint);
}

void RecurrentStateImpl::ForgetDiscarded() const {
  std::lock_guard<std::mutex> lock(discarded_mutex_);
  for (int64_t checkpoint : discarded_) table_.ReleaseCheckpoint(checkpoint);
  discarded_.clear();
}

RecurrentCheckpoint RecurrentStateImpl::MakeCheckpoint(int64_t seq_id) {
  return WithLock([&] {
    const int64_t id = table_.MakeCheckpoint(seq_id);
    return RecurrentCheckpoint(
        tvm::ffi::make_object<RecurrentCheckpointImpl>(tvm::ffi::GetRef<RecurrentState>(this), id));
  });
}

int64_t RecurrentStateImpl::CheckpointId(const RecurrentCheckpoint& checkpoint) const {
  const auto* made = checkpoint.as<RecurrentCheckpointImpl>();
  if (made == nullptr || made->state() != this) {
    Throw(ErrorKind::kValue, "rollback: the checkpoint was made by another recurrent state");
  }
  return made->id();
}

void RecurrentStateImpl::CheckRollback(int64_t seq_id,
                                       const RecurrentCheckpoint& checkpoint) const {
  WithLock([&] { table_.CheckCheckpoint(seq_id, CheckpointId(checkpoint)); });
}
void RecurrentStateImpl::Rollback(int64_t seq_id, const RecurrentCheckpoint& checkpoint) {
  WithLock([&] { table_.Rollback(seq_id, CheckpointId(checkpoint)); }, WhenBusy::kWait);
}

}  // namespace kvctl
