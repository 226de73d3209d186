#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/function.h>

#include <string>
#include <vector>

#include "check.h"
#include "kvctl/error.h"
#include "kvctl/recurrent_state.h"
#include "runtime/drop_pending.h"

namespace kvctl {
namespace {

namespace ffi = tvm::ffi;
using tvm::runtime::Tensor;

RecurrentState MakeState() {
  RecurrentStateConfig config;
  config.num_layers = 1;
  config.max_sequences = kDropSequences;
  config.max_history = 2;
  Tensor zeros = Tensor::Empty({2}, DLDataType{kDLFloat, 32, 1}, DLDevice{kDLCPU, 0});
  const float values[2] = {0, 0};
  zeros.CopyFromBytes(values, sizeof(values));
  config.init_values = {zeros};
  RecurrentState state = RecurrentState::Create(config);
  for (int64_t id = 0; id < kDropSequences; ++id) state->AddSequence(id);
  return state;
}

void Drop(const RecurrentState& state, std::vector<int64_t> ids) {
  static const ffi::Function drop =
      ffi::Function::GetGlobalRequired("kvctl.recurrent.drop_pending");
  drop(state, ffi::Shape(std::move(ids)));
}

}  // namespace

TEST(RecurrentDropPendingHappensOrNotWhileAnotherThreadAsks) {
  const RecurrentState state = MakeState();
  std::vector<int64_t> ids;
  for (int64_t id = 0; id < kDropSequences; ++id) ids.push_back(id);
  EXPECT_EQ(HalvesOfDrop(state, [&] { Drop(state, ids); }, [&] { state->SequenceLength(0); }), 0);
}

TEST(RecurrentDropPendingOfAnAbsentSequenceDropsNone) {
  const RecurrentState state = MakeState();
  Draft(state);
  try {
    Drop(state, {0, 1, kDropSequences});
    EXPECT(false && "nothing was thrown");
  } catch (const std::exception& caught) {
    EXPECT(AsError(caught).kind() == ErrorKind::kKey);
    EXPECT(std::string(caught.what()).find("there is no sequence 256") != std::string::npos);
  }
  EXPECT_EQ(NumDrafted(state), kDropSequences);
  Drop(state, {1, 0, 1});
  EXPECT_EQ(NumDrafted(state), kDropSequences - 2);
  state->DropPending(2);
  EXPECT_EQ(state->PendingLength(2), 0);
}

}  // namespace kvctl
