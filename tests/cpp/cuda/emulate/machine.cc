#include "machine.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace emulate {

thread_local dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace {

constexpr size_t kStackBytes = 128 * 1024;

/*! \brief Saves the callee-saved registers on the current stack, and switches to another stack. */
extern "C" void kvctl_emulate_switch(void** save, void* load);
asm(R"(
.text
.globl kvctl_emulate_switch
.hidden kvctl_emulate_switch
.type kvctl_emulate_switch, @function
kvctl_emulate_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size kvctl_emulate_switch, .-kvctl_emulate_switch
)");

struct Copy {
  void* target;
  const void* source;
  int bytes;
  int group;
};

enum class State { kReady, kAtBarrier, kInCollective, kDone };

struct Fiber {
  std::unique_ptr<char[]> stack;
  void* top;
  State state;
  dim3 thread;
  void (*operation)(void* const*);
  void* arguments;
  std::vector<Copy> copies;
  int group = 0;
  bool waited = false;
};

struct Block {
  dim3 index;
  std::vector<Fiber> fibers;
  std::vector<uint64_t> shared;
  bool runs = false;
};

/*! \brief Blocks of a grid that are on the machine at once, where they run interleaved. */
constexpr size_t kResidentBlocks = 3;

struct Machine {
  Block blocks[kResidentBlocks];
  Block* block = nullptr;  // whose thread runs
  size_t size = 0;         // threads of a block
  void* scheduler;
  Fiber* current = nullptr;
  const std::function<void()>* body = nullptr;
  bool overlaps = false;
  Order order = Order::kForward;
  std::mt19937 random{1};
};

thread_local Machine machine;

[[noreturn]] void Die(const char* what) {
  std::fprintf(stderr, "emulated CUDA: block (%u, %u, %u): %s\n", blockIdx.x, blockIdx.y,
               blockIdx.z, what);
  std::abort();
}

void Yield(State state) {
  Fiber* self = machine.current;
  self->state = state;
  kvctl_emulate_switch(&self->top, machine.scheduler);
}

void Arrive(const Copy& copy) {
  std::memset(copy.target, 0, 16);
  if (copy.bytes > 0) std::memcpy(copy.target, copy.source, copy.bytes);
}

void FinishCopies(Fiber* fiber, int upto_group) {
  auto& copies = fiber->copies;
  size_t kept = 0;
  for (const Copy& copy : copies) {
    if (copy.group > upto_group) {
      copies[kept++] = copy;
    } else {
      Arrive(copy);
    }
  }
  copies.resize(kept);
}

void Enter() {
  (*machine.body)();
  if (!machine.current->copies.empty()) Die("a thread ended before its copies");
  if (machine.overlaps && !machine.current->waited) {
    Die("a thread of a kernel that overlaps did not wait for the kernel before");
  }
  Yield(State::kDone);
  Die("a thread that had ended was resumed");
}

void Prepare(Fiber* fiber) {
  if (fiber->stack == nullptr) fiber->stack = std::make_unique<char[]>(kStackBytes);
#ifdef __SANITIZE_ADDRESS__
  // A finished fiber never returned from its frames.
  __asan_unpoison_memory_region(fiber->stack.get(), kStackBytes);
#endif
  auto end = reinterpret_cast<uintptr_t>(fiber->stack.get() + kStackBytes) / 64 * 64;
  auto** top = reinterpret_cast<void**>(end);
  *--top = nullptr;  // Enter's return address, which also aligns its stack
  *--top = reinterpret_cast<void*>(&Enter);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber->top = top;
  fiber->state = State::kReady;
  fiber->copies.clear();
  fiber->group = 0;
  fiber->waited = false;
}

/*! \brief Resumes a warp if all its lanes wait for the same operation. Returns whether it did. */
bool TryCollective(size_t first) {
  void* lanes[kWarpSize];
  bool waits = false;
  for (int i = 0; i < kWarpSize; ++i)
    waits |= machine.block->fibers[first + i].state == State::kInCollective;
  if (!waits) return false;
  for (int i = 0; i < kWarpSize; ++i) {
    Fiber& fiber = machine.block->fibers[first + i];
    if (fiber.state == State::kDone || fiber.state == State::kAtBarrier) {
      Die("part of a warp waits for lanes that are elsewhere");
    }
    if (fiber.state != State::kInCollective) return false;
    lanes[i] = fiber.arguments;
  }
  for (int i = 0; i < kWarpSize; ++i) {
    if (machine.block->fibers[first + i].operation != machine.block->fibers[first].operation) {
      Die("lanes of a warp wait for different operations");
    }
  }
  if (machine.block->fibers[first].operation != nullptr)
    machine.block->fibers[first].operation(lanes);
  for (int i = 0; i < kWarpSize; ++i) machine.block->fibers[first + i].state = State::kReady;
  return true;
}

/*! \brief Runs each ready lane of a warp until it waits. */
void RunLanes(size_t first, const std::vector<size_t>& lanes) {
  for (size_t lane : lanes) {
    Fiber& fiber = machine.block->fibers[first + lane];
    if (fiber.state != State::kReady) continue;
    machine.current = &fiber;
    threadIdx = fiber.thread;
    kvctl_emulate_switch(&machine.scheduler, fiber.top);
  }
}

/*! \brief Releases a barrier that all threads have reached. Returns whether any thread is left. */
bool PassBarrier() {
  size_t waiting = 0, done = 0;
  for (size_t i = 0; i < machine.size; ++i) {
    waiting += machine.block->fibers[i].state == State::kAtBarrier;
    done += machine.block->fibers[i].state == State::kDone;
  }
  if (done == machine.size) return false;
  if (waiting > 0 && waiting + done == machine.size) {
    if (done > 0) Die("threads wait at a barrier for threads that have ended");
    for (size_t i = 0; i < machine.size; ++i) machine.block->fibers[i].state = State::kReady;
  }
  return true;
}

/*! \brief Puts a block of the grid on the machine. */
void Begin(const dim3& index, size_t shared_bytes, Block* block) {
  machine.block = block;
  block->index = index;
  block->runs = true;
  block->shared.assign((shared_bytes + 7) / 8 + 16, ~uint64_t{0});
  if (block->fibers.size() < machine.size) block->fibers.resize(machine.size);
  for (size_t i = 0; i < machine.size; ++i) {
    block->fibers[i].thread = dim3(static_cast<uint32_t>(i), 0, 0);
    Prepare(&block->fibers[i]);
  }
}

/*! \brief Runs a block up to its next barrier, warp by warp; shuffled: up to the next collective
 * operation of each warp. */
void Advance(Block* block) {
  machine.block = block;
  blockIdx = block->index;
  std::vector<size_t> warps(machine.size / kWarpSize), lanes(kWarpSize);
  std::iota(warps.begin(), warps.end(), 0);
  std::iota(lanes.begin(), lanes.end(), 0);
  const bool shuffled = machine.order == Order::kShuffled;
  if (machine.order == Order::kBackward) {
    std::reverse(warps.begin(), warps.end());
    std::reverse(lanes.begin(), lanes.end());
  } else if (shuffled) {
    std::shuffle(warps.begin(), warps.end(), machine.random);
    std::shuffle(lanes.begin(), lanes.end(), machine.random);
  }
  for (size_t warp : warps) {
    do {
      RunLanes(warp * kWarpSize, lanes);
    } while (TryCollective(warp * kWarpSize) && !shuffled);
  }
  block->runs = PassBarrier();
}

/*! \brief Runs a grid: its blocks one after another, shuffled: interleaved. */
void RunGrid(const dim3& grid, size_t shared_bytes) {
  std::vector<dim3> waiting;  // the last begins first
  for (uint32_t z = grid.z; z-- > 0;) {
    for (uint32_t y = grid.y; y-- > 0;) {
      for (uint32_t x = grid.x; x-- > 0;) waiting.emplace_back(x, y, z);
    }
  }
  const bool shuffled = machine.order == Order::kShuffled;
  if (shuffled) std::shuffle(waiting.begin(), waiting.end(), machine.random);
  if (machine.order == Order::kBackward) std::reverse(waiting.begin(), waiting.end());
  const size_t resident = shuffled ? kResidentBlocks : 1;
  for (size_t running = 1; running > 0;) {
    running = 0;
    for (size_t i = 0; i < resident; ++i) {
      Block& block = machine.blocks[i];
      if (!block.runs && !waiting.empty()) {
        Begin(waiting.back(), shared_bytes, &block);
        waiting.pop_back();
      }
      if (!block.runs) continue;
      ++running;
      // Not all blocks are equally fast.
      for (uint32_t steps = shuffled ? machine.random() % 3 : 1; steps > 0 && block.runs; --steps) {
        Advance(&block);
      }
    }
  }
}

}  // namespace

void SetOrder(Order order) { machine.order = order; }

namespace {

using Graph = std::vector<std::function<void()>>;

struct Driver {
  std::map<const void*, size_t> prepared;  // shared bytes of each kernel
  std::vector<void*> streams;
  int device = 0;
  bool capturing = false;
  int calls_to_failure = 0;  // 0: none will fail
  bool failed = false;
  std::vector<Graph> graphs;
};

thread_local Driver driver;

}  // namespace

void Prepare(const void* kernel, size_t shared_bytes) {
  size_t& most = driver.prepared[kernel];
  most = std::max(most, shared_bytes);
}

void CheckPrepared(const void* kernel, size_t shared_bytes) {
  constexpr size_t kDefault = 48 * 1024;
  const auto found = driver.prepared.find(kernel);
  if (found == driver.prepared.end() && driver.capturing) {
    Die("a kernel is launched for the first time in a capture");
  }
  if (shared_bytes >
      (found == driver.prepared.end() ? kDefault : std::max(kDefault, found->second))) {
    Die("a kernel is launched with more shared memory than it was prepared for");
  }
  Prepare(kernel, 0);
}

int CurrentDevice() { return driver.device; }
void SetDevice(int device) { driver.device = device; }

void UseStream(void* stream) {
  auto& streams = driver.streams;
  if (std::find(streams.begin(), streams.end(), stream) == streams.end()) streams.push_back(stream);
}

std::vector<void*> TakeStreams() { return std::exchange(driver.streams, {}); }

void BeginCapture() {
  driver.capturing = true;
  driver.graphs.emplace_back();
}

int EndCapture() {
  driver.capturing = false;
  return static_cast<int>(driver.graphs.size()) - 1;
}

bool IsCapturing() { return driver.capturing; }

void Replay(int graph) {
  for (const auto& work : driver.graphs.at(graph)) work();
}

void FailCall(int number) { driver.calls_to_failure = number; }

bool Fails() { return driver.calls_to_failure > 0 && --driver.calls_to_failure == 0; }

bool TakeFailure() { return std::exchange(driver.failed, false); }

void Do(const std::function<void()>& work) {
  if (Fails()) {
    driver.failed = true;
  } else if (driver.capturing) {
    driver.graphs.back().push_back(work);
  } else {
    work();
  }
}

unsigned char* DynamicShared() {
  return reinterpret_cast<unsigned char*>(machine.block->shared.data());
}

void WaitForPrevious() { machine.current->waited = true; }

void Launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body,
            bool overlaps) {
  machine.overlaps = overlaps;
  if (block.y != 1 || block.z != 1 || block.x % kWarpSize != 0 || block.x > 1024) {
    Die("blocks must be full warps in one dimension");
  }
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) {
    Die("a grid has no blocks, or too many");
  }
  if (shared_bytes > kMaxSharedMemory) Die("too much shared memory");
  machine.size = block.x;
  machine.body = &body;
  gridDim = grid;
  blockDim = block;
  RunGrid(grid, shared_bytes);
}

void SyncThreads() { Yield(State::kAtBarrier); }

void Collective(void (*operation)(void* const* lanes), void* mine) {
  machine.current->operation = operation;
  machine.current->arguments = mine;
  Yield(State::kInCollective);
}

void SyncWarp() { Collective(nullptr, nullptr); }

void CopyAsync(void* target, const void* source, int source_bytes) {
  if (reinterpret_cast<uintptr_t>(target) % 16 != 0 ||
      (source_bytes > 0 && reinterpret_cast<uintptr_t>(source) % 16 != 0)) {
    Die("an asynchronous copy is not aligned to 16 bytes");
  }
  Fiber* self = machine.current;
  std::memset(target, 0xFF, 16);
  const Copy copy{target, source, source_bytes, self->group};
  if (machine.order == Order::kBackward) {
    Arrive(copy);
  } else {
    self->copies.push_back(copy);
  }
}

void CommitCopies() { ++machine.current->group; }

void WaitCopies(int pending) {
  Fiber* self = machine.current;
  FinishCopies(self, self->group - 1 - pending);
}

}  // namespace emulate
