#include "kernels/team.h"

#include <omp.h>
#include <pthread.h>

#include <atomic>

#include "kvctl/error.h"

namespace kvctl {
namespace {

std::atomic<bool> team_used{false};
std::atomic<bool> team_lost{false};

// Computed state only: nothing here may allocate or lock in the child.
void LoseTeam() {
  if (team_used.load(std::memory_order_relaxed)) team_lost.store(true, std::memory_order_relaxed);
}

const int at_fork = pthread_atfork(nullptr, nullptr, LoseTeam);

}  // namespace

bool UseTeam(bool wanted) {
  if (!wanted || at_fork != 0 || omp_get_max_threads() == 1) return wanted;
  if (team_lost.load(std::memory_order_relaxed)) {
    Throw(ErrorKind::kRuntime,
          "this process was forked after kvctl had computed with several threads. The threads do "
          "not exist here, and this call would wait for them forever. Fork before kvctl computes, "
          "or start a new process (Python: multiprocessing's \"spawn\")");
  }
  if (!team_used.load(std::memory_order_relaxed)) team_used.store(true, std::memory_order_relaxed);
  return true;
}

}  // namespace kvctl
