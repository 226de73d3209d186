// Collectives over Gloo: TCP between processes of one machine or of several.
#include <gloo/allgather.h>
#include <gloo/allreduce.h>
#include <gloo/broadcast.h>
#include <gloo/gather.h>
#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/file_store.h>
#include <gloo/scatter.h>
#include <gloo/transport/tcp/device.h>
#include <gloo/transport/unbound_buffer.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <utility>
#include <vector>

#include "distributed/communicator.h"
#include "distributed/gloo_waits.h"
#include "distributed/reduction.h"

namespace kvctl {
namespace {

namespace ffi = tvm::ffi;
using tvm::runtime::ReduceKind;

/*! \brief A store whose values travel by a function of the session's. */
class ExchangeStore final : public gloo::rendezvous::Store {
 public:
  ExchangeStore(ffi::Function exchange, std::string group)
      : exchange_(std::move(exchange)), prefix_(std::move(group) + "/") {}

  void set(const std::string& key, const std::vector<char>& data) override {
    exchange_(prefix_ + key, ffi::Bytes(data.data(), data.size()));
  }
  std::vector<char> get(const std::string& key) override {
    const auto value = exchange_(prefix_ + key, nullptr).cast<ffi::Bytes>();
    return std::vector<char>(value.data(), value.data() + value.size());
  }
  void wait(const std::vector<std::string>& keys) override {
    for (const std::string& key : keys) exchange_(prefix_ + key, nullptr);
  }
  void wait(const std::vector<std::string>& keys, const std::chrono::milliseconds&) override {
    wait(keys);
  }

 private:
  ffi::Function exchange_;
  std::string prefix_;
};

// Gloo of 2022, which Debian 12 has, takes the store by reference, later ones by shared pointer.
template <typename Context, typename Store, typename Device>
auto Connect(Context* context, std::shared_ptr<Store> store, Device& device, int)
    -> decltype(context->connectFullMesh(store, device)) {
  context->connectFullMesh(store, device);
}
template <typename Context, typename Store, typename Device>
void Connect(Context* context, std::shared_ptr<Store> store, Device& device, long) {
  context->connectFullMesh(*store, device);
}

class GlooCommunicator final : public Communicator {
 public:
  /*! \param waits what the context waits by */
  GlooCommunicator(std::shared_ptr<gloo::Context> context, std::shared_ptr<GlooWaits> waits)
      : context_(std::move(context)), waits_(std::move(waits)) {}
  ~GlooCommunicator() override { Close(); }

  int rank() const override { return context_->rank; }
  int size() const override { return context_->size; }

  void AllReduce(const void* send, void* recv, int64_t count, DLDataType dtype,
                 ReduceKind kind) override {
    WithType(dtype, [&](auto type) {
      using T = decltype(type);
      if (send != recv) std::memmove(recv, send, count * sizeof(T));
      gloo::AllreduceOptions options(context_);
      options.setOutput(static_cast<T*>(recv), count);
      options.setReduceFunction([kind](void* out, const void* a, const void* b, size_t n) {
        Reduce<T>(kind, out, a, b, n);
      });
      gloo::allreduce(options);
      if (kind == ReduceKind::kAvg) DivideBy<T>(size(), recv, count);
    });
  }

  void AllGather(const void* send, void* recv, int64_t bytes) override {
    gloo::AllgatherOptions options(context_);
    options.setInput(Bytes(send), bytes);
    options.setOutput(Bytes(recv), bytes * size());
    gloo::allgather(options);
  }

  void Broadcast(const void* send, void* recv, int64_t bytes) override {
    if (rank() == 0 && send != recv) std::memmove(recv, send, bytes);
    gloo::BroadcastOptions options(context_);
    options.setOutput(Bytes(recv), bytes);
    options.setRoot(0);
    gloo::broadcast(options);
  }

  void Scatter(const void* send, void* recv, int64_t bytes) override {
    gloo::ScatterOptions options(context_);
    if (rank() == 0) {
      std::vector<char*> rows;
      for (int i = 0; i < size(); ++i) rows.push_back(Bytes(send) + i * bytes);
      options.setInputs(rows, bytes);
    }
    options.setOutput(Bytes(recv), bytes);
    options.setRoot(0);
    gloo::scatter(options);
  }

  void Gather(const void* send, void* recv, int64_t bytes) override {
    gloo::GatherOptions options(context_);
    options.setInput(Bytes(send), bytes);
    if (rank() == 0) options.setOutput(Bytes(recv), bytes * size());
    options.setRoot(0);
    gloo::gather(options);
  }

  void Send(const void* data, int64_t bytes, int receiver) override {
    auto buffer = context_->createUnboundBuffer(Bytes(data), bytes);
    buffer->send(receiver, kMessageSlot);
    buffer->waitSend(context_->getTimeout());
  }

  void Recv(void* data, int64_t bytes, int sender) override {
    auto buffer = context_->createUnboundBuffer(data, bytes);
    buffer->recv(sender, kMessageSlot);
    buffer->waitRecv(context_->getTimeout());
  }

  void Close() override {
    context_->closeConnections();
    waits_->End();
  }

 private:
  // Gloo's collectives count their slots from 0; a message of ours lies far from them.
  static constexpr uint64_t kMessageSlot = uint64_t{1} << 62;

  /*! \brief Gloo takes what it only reads as mutable, too. */
  static char* Bytes(const void* data) { return const_cast<char*>(static_cast<const char*>(data)); }

  std::shared_ptr<gloo::Context> context_;
  std::shared_ptr<GlooWaits> waits_;
};

}  // namespace

const char* const kLibraryName = "gloo";
const DLDeviceType kDeviceType = kDLCPU;

std::shared_ptr<Communicator> Join(const Meeting& meeting, const std::string& group, int rank,
                                   int size, int /*device_id*/) {
  gloo::transport::tcp::attr attributes;
  attributes.hostname = meeting.host;
  auto device = gloo::transport::tcp::CreateDevice(attributes);
  auto context = std::make_shared<EndableContext>(rank, size);
  context->setTimeout(std::chrono::milliseconds(meeting.timeout_ms));
  if (meeting.exchange != nullptr) {
    Connect(context.get(), std::make_shared<ExchangeStore>(meeting.exchange, group), device, 0);
  } else {
    std::filesystem::path folder = std::filesystem::path(meeting.id) / group;
    std::filesystem::create_directories(folder);
    Connect(context.get(), std::make_shared<gloo::rendezvous::FileStore>(folder.string()), device,
            0);
  }
  auto waits = std::make_shared<GlooWaits>();
  context->WaitBy(waits);
  return std::make_shared<GlooCommunicator>(std::move(context), std::move(waits));
}

}  // namespace kvctl
