/*!
 * \file distributed/disco_thread.h
 * \brief Which of Disco's workers a thread is.
 */
#ifndef KVCTL_DISTRIBUTED_DISCO_THREAD_H_
#define KVCTL_DISTRIBUTED_DISCO_THREAD_H_

#include <tvm/runtime/disco/session.h>
// The thread's worker is a variable of an inline function, and must be TVM's own here.
#pragma GCC visibility push(default)
#include <tvm/runtime/disco/disco_worker.h>
#pragma GCC visibility pop

#include <utility>

#include "kvctl/error.h"

namespace kvctl {

/*! \brief Makes this thread a worker, or none if worker is null; returns what it was before. */
inline tvm::runtime::DiscoWorker* BecomeWorker(tvm::runtime::DiscoWorker* worker) {
  using tvm::runtime::DiscoWorker;
  DiscoWorker* before = std::exchange(tvm::runtime::ThreadLocalDiscoWorker::Get()->worker, worker);
  if (worker != nullptr && DiscoWorker::ThreadLocal() != worker) {
    Throw(ErrorKind::kRuntime, "TVM's Disco keeps a thread's worker where kvctl cannot set it");
  }
  return before;
}

}  // namespace kvctl

#endif  // KVCTL_DISTRIBUTED_DISCO_THREAD_H_
