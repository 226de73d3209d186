// Tests of the emulation itself: it detects the bugs that it is meant to detect.
#include <cuda_runtime.h>

#ifdef KVCTL_CUDA_EMULATED
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <vector>

#include "check.h"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/warp_ops.cuh"

namespace kvctl {
namespace {

// Sums neighbours through shared memory. Without the barrier a thread may read too early.
void AddNeighbours(int* out, bool with_barrier) {
  KVCTL_DYNAMIC_SHARED(shared);
  int* values = reinterpret_cast<int*>(shared);
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (with_barrier) __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] =
      values[threadIdx.x] + values[(threadIdx.x + 1) % blockDim.x];
}

std::vector<int> Neighbours(emulate::Order order, bool with_barrier) {
  std::vector<int> out(128);
  emulate::SetOrder(order);
  cuda::Launch(AddNeighbours, dim3(2), dim3(64), 64 * sizeof(int), nullptr, out.data(),
               with_barrier);
  emulate::SetOrder(emulate::Order::kForward);
  return out;
}

void ForgetToWait(const uint32_t* in, uint32_t* out, bool wait) {
  KVCTL_DYNAMIC_SHARED(shared);
  auto* mine = reinterpret_cast<uint32_t*>(shared) + 4 * threadIdx.x;
  cuda::CopyAsync(mine, in, 16);
  cuda::CommitCopies();
  if (wait) cuda::WaitCopies<0>();
  out[threadIdx.x] = mine[3];
  cuda::WaitCopies<0>();
}

void PartOfABlockSkipsABarrier(int) {
  if (threadIdx.x < 40) __syncthreads();
}

void LanesDisagree(int) {
  if (threadIdx.x % 2 == 0) {
    __shfl_xor_sync(0xFFFFFFFFu, 1, 1);
  } else {
    __shfl_xor_sync(0xFFFFFFFFu, 1.f, 1);
  }
}

// Counts blocks without an atomic operation: those that run at once are lost.
void CountBlocks(int* count) {
  const int before = *count;
  __syncthreads();
  if (threadIdx.x == 0) *count = before + 1;
}

void NoteBlock(int* first, int* count) {
  if (threadIdx.x == 0 && atomicAdd(count, 1) == 0) *first = static_cast<int>(blockIdx.x);
}

/*! \brief Whether a launch ends the process, as a kernel that deadlocks must. */
bool Dies(void (*kernel)(int)) {
  const pid_t child = fork();
  if (child == 0) {
    std::freopen("/dev/null", "w", stderr);
    cuda::Launch(kernel, dim3(1), dim3(64), 0, nullptr, 0);
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFSIGNALED(status);
}

}  // namespace

TEST(EmulationShowsAMissingBarrier) {
  using emulate::Order;
  EXPECT(Neighbours(Order::kForward, true) == Neighbours(Order::kBackward, true));
  EXPECT(Neighbours(Order::kForward, true) == Neighbours(Order::kShuffled, true));
  EXPECT(Neighbours(Order::kForward, false) != Neighbours(Order::kBackward, false));
}

TEST(EmulationShowsACopyWithoutAWait) {
  const std::vector<uint32_t> in = {1, 2, 3, 4, 5, 6, 7, 8};
  std::vector<uint32_t> aligned(in.size() + 8), out(32);
  auto* data =
      reinterpret_cast<uint32_t*>((reinterpret_cast<uintptr_t>(aligned.data()) + 15) / 16 * 16);
  std::copy(in.begin(), in.begin() + 4, data);
  cuda::Launch(ForgetToWait, dim3(1), dim3(32), 512, nullptr, data, out.data(), true);
  EXPECT_EQ(out[31], 4u);
  cuda::Launch(ForgetToWait, dim3(1), dim3(32), 512, nullptr, data, out.data(), false);
  EXPECT_EQ(out[31], 0xFFFFFFFFu);
}

TEST(EmulationRunsBlocksInSeveralOrders) {
  using emulate::Order;
  const auto run = [](Order order, int* first) {
    int counted = 0, noted = 0;
    emulate::SetOrder(order);
    cuda::Launch(CountBlocks, dim3(20), dim3(64), 0, nullptr, &counted);
    cuda::Launch(NoteBlock, dim3(20), dim3(64), 0, nullptr, first, &noted);
    emulate::SetOrder(Order::kForward);
    EXPECT_EQ(noted, 20);
    return counted;
  };
  int first;
  EXPECT_EQ(run(Order::kForward, &first), 20);
  EXPECT_EQ(first, 0);
  EXPECT_EQ(run(Order::kBackward, &first), 20);
  EXPECT_EQ(first, 19);
  EXPECT(run(Order::kShuffled, &first) < 20);
}

TEST(EmulationEndsKernelsThatDeadlock) {
  EXPECT(Dies(PartOfABlockSkipsABarrier));
  EXPECT(Dies(LanesDisagree));
}

}  // namespace kvctl
#endif  // KVCTL_CUDA_EMULATED
