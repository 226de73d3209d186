#include "kernels/cpu/sampling/verify_parallel.h"

#include <omp.h>

#include <atomic>
#include <exception>
#include <mutex>

#include "kernels/verify.h"
#include "kvctl/error.h"

namespace kvctl {
namespace {

// Work for less time than this is not shared out: to wake a thread that has gone to sleep takes up
// to a tenth of a millisecond, in which the thread at hand begins.
constexpr double kMinNanoseconds = 1.5e5;
// Nor is one item that takes less than this: sharing its rows out takes a barrier for every pass,
// and on a machine that others use too each barrier may wait for a time slice.
constexpr double kMinItemNanoseconds = 4e5;
// Blocks of the vocabulary below which one item is not worth sharing out.
constexpr int32_t kMinBlocks = 4;

/*! \brief Hands out item indices, and remembers the first item that failed. */
class Queue {
 public:
  Queue(int64_t begin, int64_t end, const char* name) : next_(begin), end_(end), name_(name) {}

  // Takes a worker through items until none is left. Nothing leaves it: it runs in a parallel
  // region.
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
        Remember(current, std::make_exception_ptr(Error(error.kind(), message.str())));
      } catch (...) {
        Remember(current, std::current_exception());
      }
    } while (current < end_);  // on with the item after the one that failed
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
#pragma omp parallel for schedule(static)
  for (int32_t b = 0; b < num_blocks; ++b) body(b);
}

}  // namespace

void ForItems(int32_t vocab_size, int64_t count, double nanoseconds, const char* name,
              const std::function<void(const VocabContext& vocab,
                                       const std::function<int64_t()>& next)>& work) {
  const VocabContext serial(vocab_size, CpuVocabOps());
  const int threads = omp_in_parallel() ? 1 : omp_get_max_threads();
  const bool parallel = threads > 1 && nanoseconds >= kMinNanoseconds;
  const bool wide = parallel && serial.num_blocks() >= kMinBlocks &&
                    nanoseconds >= kMinItemNanoseconds * static_cast<double>(count);
  const int64_t alone = wide ? count / threads * threads : count;

  Queue items(0, alone, name);
  if (parallel && alone > 1) {
#pragma omp parallel num_threads(threads)
    items.Run(serial, work);
  } else if (alone > 0) {
    items.Run(serial, work);
  }
  items.Rethrow();
  if (alone == count) return;
  const VocabContext shared(vocab_size, CpuVocabOps(), ShareBlocks);
  Queue rest(alone, count, name);
  rest.Run(shared, work);
  rest.Rethrow();
}

}  // namespace kvctl
