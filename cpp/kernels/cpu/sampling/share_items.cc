#include <omp.h>

#include <atomic>
#include <exception>
#include <mutex>
#include <sstream>

#include "kernels/sampling.h"
#include "kernels/team.h"
#include "kvctl/error.h"

namespace kvctl {
namespace {

// Shorter batches stay on the calling thread: waking a sleeping thread takes a tenth of a
// millisecond, or four where it wakes on this thread's core.
constexpr double kMinNanoseconds = 6e5;
// Shorter items are not split by blocks: a split needs a barrier for every pass over the
// vocabulary. Where the other thread slept, it often wakes on this thread's core, and each barrier
// then takes as long as this thread spins: five milliseconds were measured for a chain of eight at
// 152k tokens, which one thread verifies in half of one.
constexpr double kMinItemNanoseconds = 4e6;
// Items with fewer blocks of the vocabulary are not split.
constexpr int32_t kMinBlocks = 4;

/*! \brief Hands out item indices and keeps the error of the first item that failed. */
class Queue {
 public:
  Queue(int64_t begin, int64_t end, const char* name) : next_(begin), end_(end), name_(name) {}

  // Runs a worker until no item is left. It does not throw because it runs in a parallel region.
  template <typename Work>
  void Run(const VocabContext& vocab, const Work& work) noexcept {
    int64_t current = end_;
    const std::function<int64_t()> next = [&] {
      current = next_.fetch_add(1, std::memory_order_relaxed);
      return current < end_ ? current : -1;
    };
    do {
      try {
        work(vocab, next);
        return;
      } catch (const Error& error) {
        std::ostringstream message;
        message << name_ << " " << current << ": " << error.what();
        Remember(current,
                 std::make_exception_ptr(Error({error.kind(), error.where()}, message.str())));
      } catch (...) {
        Remember(current, std::current_exception());
      }
    } while (current < end_);  // continue after the item that failed
  }

  void Rethrow() const {
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  void Remember(int64_t index, std::exception_ptr failure) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (failure_ && failed_ < index) return;
    failed_ = index;
    failure_ = failure;
  }

  std::atomic<int64_t> next_;
  const int64_t end_;
  const char* name_;
  std::mutex mutex_;
  int64_t failed_ = 0;
  std::exception_ptr failure_;
};

void ShareBlocks(int32_t num_blocks, const std::function<void(int32_t)>& body) {
#pragma omp parallel for schedule(static) if (UseTeam(num_blocks > 1))
  for (int32_t b = 0; b < num_blocks; ++b) body(b);
}

}  // namespace

void ShareItemsAmongThreads(const ItemBatch& batch, const ItemWork& work) {
  const VocabContext serial(batch.vocab_size, CpuVocabOps());
  const int64_t count = batch.count;
  const int threads = omp_in_parallel() ? 1 : omp_get_max_threads();
  const bool parallel = UseTeam(threads > 1 && batch.nanoseconds >= kMinNanoseconds);
  const bool wide = parallel && serial.num_blocks() >= kMinBlocks &&
                    batch.nanoseconds >= kMinItemNanoseconds * static_cast<double>(count);
  // Each thread takes complete items. The items of an incomplete last round are split by blocks.
  const int64_t whole = wide ? count / threads * threads : count;

  Queue items(0, whole, batch.name);
  if (parallel && whole > 1) {
#pragma omp parallel num_threads(threads)
    items.Run(serial, work);
  } else if (whole > 0) {
    items.Run(serial, work);
  }
  items.Rethrow();
  if (whole == count) return;
  const VocabContext shared(batch.vocab_size, CpuVocabOps(), ShareBlocks);
  Queue rest(whole, count, batch.name);
  rest.Run(shared, work);
  rest.Rethrow();
}

}  // namespace kvctl
