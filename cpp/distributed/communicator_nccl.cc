// Collectives over NCCL: between the CUDA devices of one machine or of several.
//
// A call queues its work on the stream that TVM uses, as a kernel would, and returns. What fails
// there is told by Synchronize.
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/runtime/device_api.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <mutex>
#include <utility>

#include "distributed/communicator.h"
#include "distributed/nccl_library.h"
#include "distributed/reduction.h"
#include "kvctl/api.h"
#include "kvctl/error.h"
#include "runtime/support/guard.h"

namespace kvctl {
namespace {

using tvm::runtime::DeviceAPI;
using tvm::runtime::ReduceKind;

template <typename T>
constexpr nccl::DataType kDataType = nccl::kInt8;
template <>
constexpr nccl::DataType kDataType<uint8_t> = nccl::kUint8;
template <>
constexpr nccl::DataType kDataType<int32_t> = nccl::kInt32;
template <>
constexpr nccl::DataType kDataType<uint32_t> = nccl::kUint32;
template <>
constexpr nccl::DataType kDataType<int64_t> = nccl::kInt64;
template <>
constexpr nccl::DataType kDataType<uint64_t> = nccl::kUint64;
template <>
constexpr nccl::DataType kDataType<Float16> = nccl::kFloat16;
template <>
constexpr nccl::DataType kDataType<BFloat16> = nccl::kBfloat16;
template <>
constexpr nccl::DataType kDataType<float> = nccl::kFloat32;
template <>
constexpr nccl::DataType kDataType<double> = nccl::kFloat64;

nccl::DataType ToDataType(DLDataType dtype) {
  nccl::DataType found = nccl::kInt8;
  WithType(dtype, [&](auto value) { found = kDataType<decltype(value)>; });
  return found;
}

/*! \brief NCCL's operation; it has the largest before the smallest, and TVM the other way round. */
nccl::RedOp ToRedOp(ReduceKind kind) {
  switch (kind) {
    case ReduceKind::kProd:
      return nccl::kProd;
    case ReduceKind::kMin:
      return nccl::kMin;
    case ReduceKind::kMax:
      return nccl::kMax;
    case ReduceKind::kAvg:
      return nccl::kAvg;
    default:
      return nccl::kSum;
  }
}

/*! \brief Throws what NCCL says of a result, unless it is success. */
void Check(const NcclLibrary& library, nccl::Result result, const char* call, int worker,
           nccl::Comm comm) {
  if (result == nccl::kSuccess) return;
  const char* more = library.GetLastError == nullptr ? nullptr : library.GetLastError(comm);
  const bool has_more = more != nullptr && *more != '\0';
  Throw(ErrorKind::kRuntime, "worker ", worker, ": ", call,
        " failed: ", library.GetErrorString(result), has_more ? " (" : "", has_more ? more : "",
        has_more ? ")" : "");
}

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(const NcclLibrary& library, nccl::Comm comm, int rank, int size, int worker,
                   int device_id)
      : library_(library),
        comm_(comm),
        rank_(rank),
        size_(size),
        worker_(worker),
        device_{kDLCUDA, device_id} {}
  ~NcclCommunicator() override { Close(); }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  void AllReduce(const void* send, void* recv, int64_t count, DLDataType dtype,
                 ReduceKind kind) override {
    const nccl::DataType type = ToDataType(dtype);
    Queue("ncclAllReduce", [&](nccl::Stream stream) {
      return library_.AllReduce(send, recv, count, type, ToRedOp(kind), comm_, stream);
    });
  }

  void AllGather(const void* send, void* recv, int64_t bytes) override {
    Queue("ncclAllGather", [&](nccl::Stream stream) {
      return library_.AllGather(send, recv, bytes, nccl::kInt8, comm_, stream);
    });
  }

  void Broadcast(const void* send, void* recv, int64_t bytes) override {
    Queue("ncclBroadcast", [&](nccl::Stream stream) {
      // NCCL reads the first worker's send alone, and wants a buffer of every worker.
      return library_.Broadcast(rank_ == 0 ? send : recv, recv, bytes, nccl::kInt8, 0, comm_,
                                stream);
    });
  }

  void Scatter(const void* send, void* recv, int64_t bytes) override {
    Exchange([&](nccl::Stream stream) {
      if (rank_ == 0) {
        for (int peer = 0; peer < size_; ++peer) {
          QueueSend(static_cast<const char*>(send) + peer * bytes, bytes, peer, stream);
        }
      }
      QueueRecv(recv, bytes, 0, stream);
    });
  }

  void Gather(const void* send, void* recv, int64_t bytes) override {
    Exchange([&](nccl::Stream stream) {
      if (rank_ == 0) {
        for (int peer = 0; peer < size_; ++peer) {
          QueueRecv(static_cast<char*>(recv) + peer * bytes, bytes, peer, stream);
        }
      }
      QueueSend(send, bytes, 0, stream);
    });
  }

  void Send(const void* data, int64_t bytes, int receiver) override {
    Queue("ncclSend", [&](nccl::Stream stream) {
      return library_.Send(data, bytes, nccl::kInt8, receiver, comm_, stream);
    });
  }

  void Recv(void* data, int64_t bytes, int sender) override {
    Queue("ncclRecv", [&](nccl::Stream stream) {
      return library_.Recv(data, bytes, nccl::kInt8, sender, comm_, stream);
    });
  }

  void Synchronize() override {
    // Without the lock: Close must be able to end what is waited for.
    DeviceAPI::Get(device_)->StreamSync(device_, Stream());
    const std::lock_guard<std::timed_mutex> lock(mutex_);
    RequireOpen();
    nccl::Result error = nccl::kSuccess;
    Check(library_, library_.CommGetAsyncError(comm_, &error), "ncclCommGetAsyncError", worker_,
          comm_);
    Check(library_, error, "a collective of NCCL", worker_, comm_);
  }

  void Close() override {
    if (closed_.exchange(true)) return;
    // A call that connects with a peer for the first time may wait for it, and only the abort ends
    // that wait. Any other call is over at once.
    std::unique_lock<std::timed_mutex> lock(mutex_, std::chrono::milliseconds(kCallMilliseconds));
    // Not ncclCommDestroy, which may wait for peers.
    library_.CommAbort(comm_);
  }

 private:
  static constexpr int kCallMilliseconds = 500;

  nccl::Stream Stream() const { return TVMFFIEnvGetStream(kDLCUDA, device_.device_id); }

  void RequireOpen() const {
    if (closed_) {
      Throw(ErrorKind::kRuntime, "worker ", worker_, ": its connections over NCCL are closed");
    }
  }

  /*! \brief Calls NCCL with the stream, while nobody closes the connections. */
  template <typename F>
  void Queue(const char* name, F&& call) {
    const std::lock_guard<std::timed_mutex> lock(mutex_);
    RequireOpen();
    Check(library_, call(Stream()), name, worker_, comm_);
  }

  /*! \brief Queues sends and receives that go on together. */
  template <typename F>
  void Exchange(F&& queue) {
    const std::lock_guard<std::timed_mutex> lock(mutex_);
    RequireOpen();
    Check(library_, library_.GroupStart(), "ncclGroupStart", worker_, comm_);
    try {
      queue(Stream());
    } catch (...) {
      library_.GroupEnd();  // a group that was left open would swallow the next calls
      throw;
    }
    Check(library_, library_.GroupEnd(), "ncclGroupEnd", worker_, comm_);
  }

  void QueueSend(const void* data, int64_t bytes, int peer, nccl::Stream stream) {
    Check(library_, library_.Send(data, bytes, nccl::kInt8, peer, comm_, stream), "ncclSend",
          worker_, comm_);
  }
  void QueueRecv(void* data, int64_t bytes, int peer, nccl::Stream stream) {
    Check(library_, library_.Recv(data, bytes, nccl::kInt8, peer, comm_, stream), "ncclRecv",
          worker_, comm_);
  }

  const NcclLibrary& library_;
  nccl::Comm comm_;
  int rank_;
  int size_;
  int worker_;
  DLDevice device_;
  std::atomic<bool> closed_{false};
  std::timed_mutex mutex_;
};

/*! \brief Loads NCCL from a file; returns its version, as 22703 for 2.27.3. */
int64_t LoadLibrary(const tvm::ffi::String& path) {
  const NcclLibrary& library = NcclLibrary::Load(path);
  int version = 0;
  Check(library, library.GetVersion(&version), "ncclGetVersion", 0, nullptr);
  return version;
}

}  // namespace

const char* const kLibraryName = "nccl";
const DLDeviceType kDeviceType = kDLCUDA;

std::shared_ptr<Communicator> Join(const Meeting& meeting, const std::string& group, int rank,
                                   int size, int device_id) {
  const NcclLibrary& library = NcclLibrary::Get();
  const DLDevice device{kDLCUDA, device_id};
  Init("cuda");
  DeviceAPI::Get(device)->SetDevice(device);
  const std::string id = ShareFromFirst(meeting, group + "/nccl_id", rank, [&] {
    nccl::UniqueId made;
    Check(library, library.GetUniqueId(&made), "ncclGetUniqueId", meeting.worker, nullptr);
    return std::string(made.bytes, sizeof(made.bytes));
  });
  nccl::UniqueId unique;
  if (id.size() != sizeof(unique.bytes)) {
    Throw(ErrorKind::kRuntime, "worker ", meeting.worker, ": NCCL's unique id has ",
          sizeof(unique.bytes), " bytes, and ", id.size(), " came");
  }
  std::memcpy(unique.bytes, id.data(), sizeof(unique.bytes));
  nccl::Comm comm = nullptr;
  Check(library, library.CommInitRank(&comm, size, unique, rank), "ncclCommInitRank",
        meeting.worker, nullptr);
  return std::make_shared<NcclCommunicator>(library, comm, rank, size, meeting.worker, device_id);
}

TVM_FFI_STATIC_INIT_BLOCK() {
  tvm::ffi::reflection::GlobalDef().def("runtime.disco.nccl.load_library",
                                        [](tvm::ffi::String path) {
                                          try {
                                            return LoadLibrary(path);
                                          } catch (const Error& error) {
                                            throw ToFFIError(error);
                                          }
                                        });
}

}  // namespace kvctl
