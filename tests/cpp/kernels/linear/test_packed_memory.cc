#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include "check.h"
#include "kernels/packed_memory.h"

namespace {

struct Memory {
  uint8_t* data;
  size_t bytes;
};

Memory New(size_t bytes, int value) {
  const Memory memory{static_cast<uint8_t*>(kvctl::NewPackedMemory(bytes)), bytes};
  std::memset(memory.data, value, bytes);
  return memory;
}

bool Holds(const Memory& memory, int value) {
  for (size_t i = 0; i < memory.bytes; ++i) {
    if (memory.data[i] != value) return false;
  }
  return true;
}

}  // namespace

TEST(PackedMemoryOfSmallWeightsLiesOneBehindAnother) {
  const Memory first = New(1000, 1), second = New(70000, 2), third = New(64, 3);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(first.data) % 64, 0u);
  EXPECT(second.data == first.data + 1024);
  EXPECT(third.data == second.data + 70016);
  for (const Memory& memory : {first, second, third}) kvctl::FreePackedMemory(memory.data);
}

TEST(PackedMemoryIsNobodyElses) {
  // More than a slab holds, and weights with memory of their own between them.
  const size_t sizes[] = {1, 640, 3000000, 9000000, 8388608, 8388607, 2097152, 100};
  std::vector<Memory> all;
  for (int i = 0; i < 40; ++i) all.push_back(New(sizes[i % 8], i));
  for (int i = 0; i < 40; i += 3) kvctl::FreePackedMemory(all[i].data);
  for (int i = 0; i < 40; i += 3) all[i] = New(sizes[(i + 5) % 8], i);
  for (int i = 0; i < 40; ++i) EXPECT(Holds(all[i], i));
  for (const Memory& memory : all) kvctl::FreePackedMemory(memory.data);
  kvctl::FreePackedMemory(nullptr);
}

TEST(PackedMemoryServesWeightsThatComeAndGo) {
  const Memory kept = New(4096, 7);
  for (int i = 0; i < 200; ++i) {
    const Memory passing = New(1 << 20, i);
    kvctl::FreePackedMemory(passing.data);
  }
  EXPECT(Holds(kept, 7));
  kvctl::FreePackedMemory(kept.data);
}

TEST(PackedMemoryOfNoBytesLiesWithinASlab) {
  std::vector<void*> all;
  // A whole slab and more, with nothing behind each weight.
  for (int i = 0; i < 40; ++i) {
    all.push_back(kvctl::NewPackedMemory(1 << 20));
    all.push_back(kvctl::NewPackedMemory(0));
    EXPECT(all[2 * i + 1] != all[2 * i]);
  }
  for (void* memory : all) kvctl::FreePackedMemory(memory);
}

TEST(PackedMemoryWorksInAChildThatWasForkedMeanwhile) {
  std::atomic<bool> begun{false}, done{false};
  std::thread other([&] {
    for (; !done; begun = true) kvctl::FreePackedMemory(kvctl::NewPackedMemory(64));
  });
  while (!begun) std::this_thread::yield();
  for (int i = 0; i < 200; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(3);  // ends a child that waits for the other thread
      kvctl::FreePackedMemory(kvctl::NewPackedMemory(64));
      _exit(0);
    }
    int status = -1;
    EXPECT(waitpid(child, &status, 0) == child && status == 0);
    if (status != 0) break;
  }
  done = true;
  other.join();
}
