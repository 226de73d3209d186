// Disco's collectives, runtime.disco.<library>.*, with the signatures that TVM calls them by.
#include <tvm/ffi/reflection/registry.h>
#include <tvm/runtime/disco/session.h>
#include <tvm/runtime/tensor.h>

#include <memory>
#include <string>
#include <utility>

#include "distributed/communicator.h"
#include "distributed/disco_thread.h"
#include "kvctl/error.h"
#include "runtime/support/guard.h"

namespace kvctl {
namespace {

namespace ffi = tvm::ffi;
using tvm::runtime::DiscoWorker;
using tvm::runtime::ReduceKind;
using tvm::runtime::Tensor;

/*! \brief Runs f; what it or the library throws arrives as an FFI error of its kind. */
template <typename F>
auto Translated(F&& f) -> decltype(f()) {
  try {
    return std::forward<F>(f)();
  } catch (const Error& error) {
    throw ToFFIError(error);
  } catch (const ffi::Error&) {
    throw;
  } catch (const std::exception& error) {
    throw ffi::Error("RuntimeError", std::string(kLibraryName) + ": " + error.what(), "");
  }
}

/*! \brief The communicators of the worker that runs on this thread. */
struct WorkerGroups {
  std::shared_ptr<Communicator> all;
  std::shared_ptr<Communicator> group;  //!< the worker's own group; all, where there is one

  static WorkerGroups& OfThread() {
    thread_local WorkerGroups groups;
    return groups;
  }

  static Communicator& Of(bool in_group) {
    const auto& found = in_group ? OfThread().group : OfThread().all;
    if (found == nullptr) {
      Throw(ErrorKind::kRuntime, "this thread's worker has not joined the others yet: call ",
            "Session.init_ccl(\"", kLibraryName, "\", *device_ids) first");
    }
    return *found;
  }
};

void JoinWorkers(Meeting meeting, int device_id) {
  DiscoWorker* worker = DiscoWorker::ThreadLocal();
  meeting.worker = worker->worker_id;
  WorkerGroups& groups = WorkerGroups::OfThread();
  groups = WorkerGroups();
  const int group_size = worker->num_workers / worker->num_groups;
  groups.all = Join(meeting, "all", worker->worker_id, worker->num_workers, device_id);
  groups.group = worker->num_groups == 1
                     ? groups.all
                     : Join(meeting, "group" + std::to_string(worker->worker_id / group_size),
                            worker->worker_id % group_size, group_size, device_id);
  worker->default_device = DLDevice{kDeviceType, device_id};
  worker->ccl = kLibraryName;
}

/*! \brief A tensor's memory, after a check that collectives can read it in one piece. */
void* Data(const Tensor& tensor, const char* name) {
  if (tensor->device.device_type != kDeviceType) {
    Throw(ErrorKind::kValue, name, " lies on a device of type ", tensor->device.device_type,
          "; collectives of ", kLibraryName, " take type ", kDeviceType);
  }
  if (!tensor.IsContiguous()) Throw(ErrorKind::kValue, name, " must be contiguous");
  return static_cast<char*>(tensor->data) + tensor->byte_offset;
}

int64_t Bytes(const Tensor& tensor) {
  return static_cast<int64_t>(ffi::GetDataSize(*tensor.operator->()));
}

void RequireSize(const Tensor& whole, const Tensor& part, int64_t parts, const char* what) {
  if (Bytes(whole) != parts * Bytes(part)) {
    Throw(ErrorKind::kValue, what, " must hold ", parts, " x ", Bytes(part), " bytes, and holds ",
          Bytes(whole));
  }
}

const Tensor& Given(const ffi::Optional<Tensor>& tensor, const char* name, Tensor* storage) {
  if (!tensor.has_value()) Throw(ErrorKind::kValue, "worker 0 of a group must give ", name);
  return *storage = *tensor;
}

void InitCCL(tvm::runtime::Session session, ffi::Shape device_ids) {
  const std::string prefix = std::string("runtime.disco.") + kLibraryName;
  auto join = session->GetGlobalFunc(prefix + ".init_ccl_per_worker");
  session->CallPacked(join, device_ids, ffi::String(NewMeeting()));
}

void InitCCLPerWorker(ffi::Shape device_ids, ffi::String id) {
  const int local = DiscoWorker::ThreadLocal()->local_worker_id;
  if (local >= static_cast<int>(device_ids.size())) {
    Throw(ErrorKind::kValue, "worker ", local,
          " of this machine has no device: ", device_ids.size(), " were named");
  }
  Meeting meeting;
  meeting.id = id;
  JoinWorkers(std::move(meeting), static_cast<int>(device_ids[local]));
}

/*! \brief Joins by a function instead of a folder; the result closes the connections. */
ffi::Function JoinByExchange(ffi::Function exchange, ffi::String id, ffi::String host,
                             int64_t timeout_ms, int64_t device_id) {
  Meeting meeting;
  meeting.id = id;
  meeting.exchange = std::move(exchange);
  meeting.host = host;
  meeting.timeout_ms = timeout_ms;
  JoinWorkers(std::move(meeting), static_cast<int>(device_id));
  const WorkerGroups& groups = WorkerGroups::OfThread();
  return ffi::Function::FromTyped([all = groups.all, group = groups.group] {
    Translated([&] {
      all->Close();
      group->Close();
    });
  });
}

void Leave() { WorkerGroups::OfThread() = WorkerGroups(); }

/*!
 * \brief Has other threads be this worker: with its place among Disco's, and its communicators.
 * \return A function that makes its thread this worker, given true, and what it was, given false.
 *   One thread at a time may be it, and no longer than the session lives.
 */
ffi::Function Place() {
  struct State {
    DiscoWorker* worker = DiscoWorker::ThreadLocal();
    WorkerGroups groups = WorkerGroups::OfThread();
    DiscoWorker* before = nullptr;
    bool taken = false;
  };
  return ffi::Function::FromTyped([state = std::make_shared<State>()](bool take) {
    Translated([&] {
      if (take == state->taken) return;
      if (take) {
        state->before = BecomeWorker(state->worker);
      } else {
        BecomeWorker(state->before);
      }
      std::swap(WorkerGroups::OfThread(), state->groups);
      state->taken = take;
    });
  });
}

void AllReduce(Tensor send, int64_t kind, bool in_group, Tensor recv) {
  if (kind < 0 || kind > 4) Throw(ErrorKind::kValue, "a reduction is 0 to 4, got ", kind);
  RequireSize(recv, send, 1, "recv");
  const int64_t count = send.Shape().Product();
  Communicator& workers = WorkerGroups::Of(in_group);
  if (count == 0) return;
  workers.AllReduce(Data(send, "send"), Data(recv, "recv"), count, send->dtype,
                    static_cast<ReduceKind>(kind));
}

void AllGather(Tensor send, bool in_group, Tensor recv) {
  Communicator& workers = WorkerGroups::Of(in_group);
  RequireSize(recv, send, workers.size(), "recv");
  if (Bytes(send) > 0) workers.AllGather(Data(send, "send"), Data(recv, "recv"), Bytes(send));
}

void BroadcastFromWorker0(ffi::Optional<Tensor> send, bool in_group, Tensor recv) {
  Communicator& workers = WorkerGroups::Of(in_group);
  const void* from = nullptr;
  Tensor given;
  if (workers.rank() == 0) {
    RequireSize(Given(send, "send", &given), recv, 1, "send");
    from = Data(given, "send");
  }
  if (Bytes(recv) > 0) workers.Broadcast(from, Data(recv, "recv"), Bytes(recv));
}

void ScatterFromWorker0(ffi::Optional<Tensor> send, bool in_group, Tensor recv) {
  Communicator& workers = WorkerGroups::Of(in_group);
  const void* from = nullptr;
  Tensor given;
  if (workers.rank() == 0) {
    RequireSize(Given(send, "send", &given), recv, workers.size(), "send");
    from = Data(given, "send");
  }
  if (Bytes(recv) > 0) workers.Scatter(from, Data(recv, "recv"), Bytes(recv));
}

void GatherToWorker0(Tensor send, bool in_group, ffi::Optional<Tensor> recv) {
  Communicator& workers = WorkerGroups::Of(in_group);
  void* to = nullptr;
  Tensor given;
  if (workers.rank() == 0) {
    RequireSize(Given(recv, "recv", &given), send, workers.size(), "recv");
    to = Data(given, "recv");
  }
  if (Bytes(send) > 0) workers.Gather(Data(send, "send"), to, Bytes(send));
}

void SendToWorker(Tensor buffer, int64_t receiver) {
  Communicator& workers = WorkerGroups::Of(false);
  if (receiver < 0 || receiver >= workers.size() || receiver == workers.rank()) {
    Throw(ErrorKind::kIndex, "worker ", workers.rank(), " cannot send to worker ", receiver,
          ": the others of ", workers.size(), " can be named");
  }
  workers.Send(Data(buffer, "buffer"), Bytes(buffer), static_cast<int>(receiver));
}

void RecvFromWorker(Tensor buffer, int64_t sender) {
  Communicator& workers = WorkerGroups::Of(false);
  if (sender < 0 || sender >= workers.size() || sender == workers.rank()) {
    Throw(ErrorKind::kIndex, "worker ", workers.rank(), " cannot receive from worker ", sender,
          ": the others of ", workers.size(), " can be named");
  }
  workers.Recv(Data(buffer, "buffer"), Bytes(buffer), static_cast<int>(sender));
}

int GroupSize() {
  const DiscoWorker* worker = DiscoWorker::ThreadLocal();
  return worker->num_workers / worker->num_groups;
}

void SendToNextGroup(Tensor buffer) {
  SendToWorker(std::move(buffer), DiscoWorker::ThreadLocal()->worker_id + GroupSize());
}

void RecvFromPrevGroup(Tensor buffer) {
  RecvFromWorker(std::move(buffer), DiscoWorker::ThreadLocal()->worker_id - GroupSize());
}

void RecvFromWorker0(Tensor buffer) { RecvFromWorker(std::move(buffer), 0); }

void Synchronize() { WorkerGroups::Of(false).Synchronize(); }

/*! \brief Disco's own wait, in a loop where an exception would end the process. */
void SyncWorker() {
  const auto& all = WorkerGroups::OfThread().all;
  if (all == nullptr) return;
  try {
    all->Synchronize();
  } catch (const std::exception&) {
    // The next collective, or synchronize, tells of it.
  }
}

template <auto f, typename R, typename... Args>
auto Guarded(R (*)(Args...)) {
  return [](Args... args) { return Translated([&] { return f(std::move(args)...); }); };
}

}  // namespace

TVM_FFI_STATIC_INIT_BLOCK() {
  tvm::ffi::reflection::GlobalDef registry;
  const std::string disco = std::string("runtime.disco.") + kLibraryName + ".";
  const auto add = [&](const char* name, auto f) { registry.def((disco + name).c_str(), f); };
  add("init_ccl", Guarded<InitCCL>(InitCCL));
  add("init_ccl_per_worker", Guarded<InitCCLPerWorker>(InitCCLPerWorker));
  add("allreduce", Guarded<AllReduce>(AllReduce));
  add("allgather", Guarded<AllGather>(AllGather));
  add("broadcast_from_worker0", Guarded<BroadcastFromWorker0>(BroadcastFromWorker0));
  add("scatter_from_worker0", Guarded<ScatterFromWorker0>(ScatterFromWorker0));
  add("gather_to_worker0", Guarded<GatherToWorker0>(GatherToWorker0));
  add("recv_from_worker0", Guarded<RecvFromWorker0>(RecvFromWorker0));
  add("send_to_next_group", Guarded<SendToNextGroup>(SendToNextGroup));
  add("recv_from_prev_group", Guarded<RecvFromPrevGroup>(RecvFromPrevGroup));
  add("send_to_worker", Guarded<SendToWorker>(SendToWorker));
  add("recv_from_worker", Guarded<RecvFromWorker>(RecvFromWorker));
  add("sync_worker", SyncWorker);
  add("synchronize", Guarded<Synchronize>(Synchronize));
  add("join", [](ffi::Function exchange, ffi::String id, ffi::String host, int64_t timeout_ms,
                 int64_t device_id) {
    return Translated([&] { return JoinByExchange(exchange, id, host, timeout_ms, device_id); });
  });
  add("leave", Leave);
  add("place", Guarded<Place>(Place));
}

}  // namespace kvctl
