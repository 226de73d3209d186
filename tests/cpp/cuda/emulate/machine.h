/*!
 * \file machine.h
 * \brief CUDA's execution model on one CPU thread: grids, blocks, and warps that synchronise at
 * collective operations.
 *
 * Each CUDA thread is a fiber with its own stack. A fiber runs until it waits for its block
 * (__syncthreads) or for its warp (shuffles, ldmatrix, mma). Between such points threads run one
 * after another in an order that a test chooses, so that a missing barrier changes results between
 * orders. So do blocks, which also run interleaved: a kernel may not depend on which block comes
 * first, or last. A kernel that deadlocks (a barrier that part of a block skips, a warp whose lanes
 * wait for different operations) ends the program with a message.
 */
#ifndef KVCTL_TESTS_CUDA_EMULATE_MACHINE_H_
#define KVCTL_TESTS_CUDA_EMULATE_MACHINE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace emulate {

struct dim3 {
  uint32_t x = 1, y = 1, z = 1;
  dim3() = default;
  dim3(uint32_t x, uint32_t y = 1, uint32_t z = 1)  // NOLINT: CUDA converts integers
      : x(x), y(y), z(z) {}
};

// Of the current fiber.
extern thread_local dim3 gridDim, blockDim, blockIdx, threadIdx;

/*! \brief The order in which the threads of a block run: each warp from the first (or the last) on
 * runs as far as it can before the next; or all advance together, shuffled. The blocks of a grid
 * run one after another from the first (or the last) on; or shuffled, some of them interleaved.
 * Asynchronous copies arrive as late as they may, backward as early. */
enum class Order { kForward, kBackward, kShuffled };
/*! \brief Applies to later launches. */
void SetOrder(Order order);

constexpr int kWarpSize = 32;
/*! \brief The most that a block of an H100 may request. */
constexpr size_t kMaxSharedMemory = 227 * 1024;

/*! \brief Runs body in every thread of the grid. Shared memory starts as NaN patterns. During a
 * capture it is only recorded. \param overlaps Whether it may begin before the kernel before it
 * ends. */
void Launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body,
            bool overlaps = false);
/*! \brief What every thread of a kernel that overlaps with the one before has to call: the process
 * ends where one does not. Nothing overlaps here. */
void WaitForPrevious();
/*! \brief The block's dynamic shared memory. */
unsigned char* DynamicShared();

/*! \brief Makes a kernel ready for launches, as loading its module and setting its attributes do.
 */
void Prepare(const void* kernel, size_t shared_bytes);
/*! \brief Ends the process where a launch would not be safe: a kernel whose first launch is
 * captured, or that was prepared for less shared memory. */
void CheckPrepared(const void* kernel, size_t shared_bytes);

/*! \brief The device that the thread has chosen, of two that are alike. Work is not told apart. */
int CurrentDevice();
void SetDevice(int device);

// Streams. Work is done at once, so that they only say where a call meant to queue it.
/*! \brief Notes that work was queued on a stream. */
void UseStream(void* stream);
/*! \brief The streams that work was queued on since the last call, each once. */
std::vector<void*> TakeStreams();

// Graphs: launches and copies are recorded with their arguments, and done at each replay.
void BeginCapture();
/*! \brief The number of the graph. */
int EndCapture();
bool IsCapturing();
void Replay(int graph);
/*! \brief Does work now, or records it; or neither, where it is to fail. */
void Do(const std::function<void()>& work);

/*! \brief Lets one call fail: the number-th from now on, from 1, of those that allocate memory,
 * launch a kernel, copy, clear or record an event. 0: none. */
void FailCall(int number);
/*! \brief Whether the call that asks is to fail. */
bool Fails();
/*! \brief Whether work was to fail since the last call. */
bool TakeFailure();

void SyncThreads();
void SyncWarp();
/*! \brief A collective operation of a warp. Waits for all lanes; the last one carries it out on the
 * arguments of lanes 0 to 31. */
void Collective(void (*operation)(void* const* lanes), void* mine);

/*!
 * \brief cp.async. The copy happens only when the thread waits for it, and until then the target
 * holds NaN patterns; in backward order it happens at once.
 * \param source_bytes Of 16; the rest is filled with zeros.
 */
void CopyAsync(void* target, const void* source, int source_bytes);
void CommitCopies();
/*! \brief Carries out all groups of this thread's copies but the last `pending`. */
void WaitCopies(int pending);

template <typename T>
struct ShuffleLane {
  T value, result;
  int source;
};

template <typename T, typename Source>
T Shuffle(T value, Source source_of) {
  ShuffleLane<T> mine{value, value, source_of(static_cast<int>(threadIdx.x) % kWarpSize)};
  Collective(
      [](void* const* lanes) {
        for (int i = 0; i < kWarpSize; ++i) {
          auto* lane = static_cast<ShuffleLane<T>*>(lanes[i]);
          lane->result = static_cast<ShuffleLane<T>*>(lanes[lane->source % kWarpSize])->value;
        }
      },
      &mine);
  return mine.result;
}

}  // namespace emulate

#endif  // KVCTL_TESTS_CUDA_EMULATE_MACHINE_H_
