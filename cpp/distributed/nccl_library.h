/*!
 * \file distributed/nccl_library.h
 * \brief The part of NCCL that kvctl calls, found in libnccl.so.2 when it is asked for.
 *
 * The declarations are kvctl's own: NCCL's header comes with its library in a package of 305 MB,
 * and its binary interface has kept what is declared here since version 2.10. A build where nccl.h
 * is found compares them (tests/cpp/distributed/nccl_header.cc).
 */
#ifndef KVCTL_DISTRIBUTED_NCCL_LIBRARY_H_
#define KVCTL_DISTRIBUTED_NCCL_LIBRARY_H_

#include <cstddef>
#include <string>

namespace kvctl {

/*! \brief NCCL's types and constants, by their values in nccl.h. */
namespace nccl {

using Result = int;
using Comm = void*;    //!< ncclComm_t
using Stream = void*;  //!< cudaStream_t
constexpr Result kSuccess = 0;

struct UniqueId {
  char bytes[128];
};

enum DataType : int {
  kInt8 = 0,
  kUint8 = 1,
  kInt32 = 2,
  kUint32 = 3,
  kInt64 = 4,
  kUint64 = 5,
  kFloat16 = 6,
  kFloat32 = 7,
  kFloat64 = 8,
  kBfloat16 = 9,
};

enum RedOp : int { kSum = 0, kProd = 1, kMax = 2, kMin = 3, kAvg = 4 };

}  // namespace nccl

/*! \brief The functions of a libnccl.so.2. */
struct NcclLibrary {
  nccl::Result (*GetVersion)(int* version);
  nccl::Result (*GetUniqueId)(nccl::UniqueId* id);
  nccl::Result (*CommInitRank)(nccl::Comm* comm, int size, nccl::UniqueId id, int rank);
  nccl::Result (*CommAbort)(nccl::Comm comm);
  nccl::Result (*CommGetAsyncError)(nccl::Comm comm, nccl::Result* error);
  const char* (*GetErrorString)(nccl::Result result);
  nccl::Result (*AllReduce)(const void* send, void* recv, size_t count, nccl::DataType dtype,
                            nccl::RedOp op, nccl::Comm comm, nccl::Stream stream);
  nccl::Result (*AllGather)(const void* send, void* recv, size_t send_count, nccl::DataType dtype,
                            nccl::Comm comm, nccl::Stream stream);
  nccl::Result (*Broadcast)(const void* send, void* recv, size_t count, nccl::DataType dtype,
                            int root, nccl::Comm comm, nccl::Stream stream);
  nccl::Result (*Send)(const void* data, size_t count, nccl::DataType dtype, int peer,
                       nccl::Comm comm, nccl::Stream stream);
  nccl::Result (*Recv)(void* data, size_t count, nccl::DataType dtype, int peer, nccl::Comm comm,
                       nccl::Stream stream);
  nccl::Result (*GroupStart)();
  nccl::Result (*GroupEnd)();
  /*! \brief Says more of the last error; null before version 2.13. */
  const char* (*GetLastError)(nccl::Comm comm);

  /*!
   * \brief Loads a library for this process, unless one was loaded.
   * \param path The file, or a name that the dynamic linker looks up.
   * \throws Error of kind kFileNotFound if it cannot be loaded or lacks a function, or if another
   * one was loaded before.
   */
  static const NcclLibrary& Load(const std::string& path);
  /*! \brief The library that was loaded; by default the dynamic linker's libnccl.so.2. */
  static const NcclLibrary& Get();
};

}  // namespace kvctl

#endif  // KVCTL_DISTRIBUTED_NCCL_LIBRARY_H_
