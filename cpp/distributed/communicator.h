/*!
 * \file distributed/communicator.h
 * \brief What Disco's collectives need of a communication library.
 */
#ifndef KVCTL_DISTRIBUTED_COMMUNICATOR_H_
#define KVCTL_DISTRIBUTED_COMMUNICATOR_H_

#include <tvm/ffi/container/shape.h>
#include <tvm/runtime/disco/builtin.h>

#include <cstdint>
#include <memory>
#include <string>

#include "distributed/meeting.h"

namespace kvctl {

/*!
 * \brief The workers of a session, or of one of its groups, joined by a library.
 *
 * Buffers are contiguous, and lie where the library works: in host memory for Gloo, on the worker's
 * device for NCCL. Every call but Close comes from the worker's thread. A call throws
 * std::exception when a peer is gone or the connections were closed; the communicator is then of
 * no use any more.
 */
class Communicator {
 public:
  virtual ~Communicator() = default;

  /*! \brief This worker's place among size(). */
  virtual int rank() const = 0;
  virtual int size() const = 0;

  /*! \brief recv, (count,) of dtype, is the reduction of every worker's send; they may be one. */
  virtual void AllReduce(const void* send, void* recv, int64_t count, DLDataType dtype,
                         tvm::runtime::ReduceKind kind) = 0;
  /*! \brief recv, (size, bytes), holds every worker's send, (bytes,), in their order. */
  virtual void AllGather(const void* send, void* recv, int64_t bytes) = 0;
  /*! \brief recv, (bytes,), is the first worker's send, which the others do not read. */
  virtual void Broadcast(const void* send, void* recv, int64_t bytes) = 0;
  /*! \brief recv, (bytes,), is this worker's row of the first worker's send, (size, bytes). */
  virtual void Scatter(const void* send, void* recv, int64_t bytes) = 0;
  /*! \brief recv of the first worker, (size, bytes), holds every worker's send, (bytes,). */
  virtual void Gather(const void* send, void* recv, int64_t bytes) = 0;
  virtual void Send(const void* data, int64_t bytes, int receiver) = 0;
  virtual void Recv(void* data, int64_t bytes, int sender) = 0;
  /*! \brief Waits for what the calls above have only begun. */
  virtual void Synchronize() {}

  /*! \brief Ends the connections, so that calls in flight throw, here or at a peer; any thread. */
  virtual void Close() = 0;
};

/*! \brief The name under which this library's collectives are registered: "gloo" or "nccl". */
extern const char* const kLibraryName;
/*! \brief The type of the devices whose memory the library takes. */
extern const DLDeviceType kDeviceType;

/*!
 * \brief Joins the workers of a group.
 * \param group Names the group among those of the meeting.
 * \param device_id The worker's device.
 */
std::shared_ptr<Communicator> Join(const Meeting& meeting, const std::string& group, int rank,
                                   int size, int device_id);

}  // namespace kvctl

#endif  // KVCTL_DISTRIBUTED_COMMUNICATOR_H_
