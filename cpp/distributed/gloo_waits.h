/*!
 * \file distributed/gloo_waits.h
 * \brief Waits of Gloo's that another thread can end.
 *
 * Gloo wakes who waits for a peer when the connection ends, but not always: Gloo of 2022 was seen
 * to wait for a send to a dead peer until its timeout. And a peer that is stopped ends no
 * connection.
 */
#ifndef KVCTL_DISTRIBUTED_GLOO_WAITS_H_
#define KVCTL_DISTRIBUTED_GLOO_WAITS_H_

#include <gloo/rendezvous/context.h>
#include <gloo/transport/context.h>
#include <gloo/transport/unbound_buffer.h>

#include <chrono>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <utility>
#include <vector>

namespace kvctl {

/*! \brief The buffers of a context that a thread waits for. */
class GlooWaits {
 public:
  /*! \brief Ends every wait, and those that would begin later, with an exception; any thread. */
  void End() {
    const std::lock_guard<std::mutex> lock(mutex_);
    ended_ = true;
    for (gloo::transport::UnboundBuffer* buffer : waiting_) {
      buffer->abortWaitSend();
      buffer->abortWaitRecv();
    }
  }

  /*! \brief Runs wait, which returns false when it was ended. */
  template <typename F>
  void Wait(gloo::transport::UnboundBuffer* buffer, F&& wait) {
    Add(buffer);
    const Removal removal{this, buffer};
    if (!wait()) ThrowEnded();
  }

 private:
  struct Removal {
    GlooWaits* waits;
    gloo::transport::UnboundBuffer* buffer;
    ~Removal() {
      const std::lock_guard<std::mutex> lock(waits->mutex_);
      waits->waiting_.erase(buffer);
    }
  };

  [[noreturn]] static void ThrowEnded() {
    throw std::runtime_error("the connections of this worker were closed");
  }
  void Add(gloo::transport::UnboundBuffer* buffer) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (ended_) ThrowEnded();
    waiting_.insert(buffer);
  }

  std::mutex mutex_;
  bool ended_ = false;
  std::set<gloo::transport::UnboundBuffer*> waiting_;
};

/*! \brief A buffer whose waits can be ended. */
class EndableBuffer final : public gloo::transport::UnboundBuffer {
 public:
  EndableBuffer(std::unique_ptr<gloo::transport::UnboundBuffer> buffer,
                std::shared_ptr<GlooWaits> waits)
      : UnboundBuffer(buffer->ptr, buffer->size),
        buffer_(std::move(buffer)),
        waits_(std::move(waits)) {}

  bool waitRecv(int* rank, std::chrono::milliseconds timeout) override {
    waits_->Wait(buffer_.get(), [&] { return buffer_->waitRecv(rank, timeout); });
    return true;
  }
  bool waitSend(int* rank, std::chrono::milliseconds timeout) override {
    waits_->Wait(buffer_.get(), [&] { return buffer_->waitSend(rank, timeout); });
    return true;
  }
  void abortWaitRecv() override { buffer_->abortWaitRecv(); }
  void abortWaitSend() override { buffer_->abortWaitSend(); }
  void send(int receiver, uint64_t slot, size_t offset, size_t bytes) override {
    buffer_->send(receiver, slot, offset, bytes);
  }
  void recv(int sender, uint64_t slot, size_t offset, size_t bytes) override {
    buffer_->recv(sender, slot, offset, bytes);
  }
  void recv(std::vector<int> senders, uint64_t slot, size_t offset, size_t bytes) override {
    buffer_->recv(std::move(senders), slot, offset, bytes);
  }

 private:
  std::unique_ptr<gloo::transport::UnboundBuffer> buffer_;
  std::shared_ptr<GlooWaits> waits_;
};

/*! \brief The connections of a context, with buffers whose waits can be ended. */
class EndableTransport final : public gloo::transport::Context {
 public:
  EndableTransport(std::shared_ptr<gloo::transport::Context> context,
                   std::shared_ptr<GlooWaits> waits)
      : Context(context->rank, context->size),
        context_(std::move(context)),
        waits_(std::move(waits)) {}

  std::unique_ptr<gloo::transport::Pair>& getPair(int rank) override {
    return context_->getPair(rank);
  }
  std::unique_ptr<gloo::transport::Pair>& createPair(int rank) override {
    return context_->createPair(rank);
  }
  std::unique_ptr<gloo::transport::UnboundBuffer> createUnboundBuffer(void* data,
                                                                      size_t bytes) override {
    return std::make_unique<EndableBuffer>(context_->createUnboundBuffer(data, bytes), waits_);
  }

 private:
  std::shared_ptr<gloo::transport::Context> context_;
  std::shared_ptr<GlooWaits> waits_;
};

/*! \brief A context whose waits can be ended once it is connected. */
class EndableContext final : public gloo::rendezvous::Context {
 public:
  using Context::Context;

  /*! \brief Has the buffers that are made from now on wait by `waits`. */
  void WaitBy(std::shared_ptr<GlooWaits> waits) {
    transportContext_ =
        std::make_shared<EndableTransport>(std::move(transportContext_), std::move(waits));
  }
};

}  // namespace kvctl

#endif  // KVCTL_DISTRIBUTED_GLOO_WAITS_H_
