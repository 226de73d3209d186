// Whether kvctl's declarations of NCCL are those of nccl.h: compiled where the header is.
#include <nccl.h>

#include <type_traits>

#include "distributed/nccl_library.h"

namespace kvctl {
namespace {

/*! \brief The type by which kvctl passes one of NCCL's. */
template <typename T>
struct Passed {
  using Type = std::conditional_t<std::is_enum_v<T>, int, T>;
};
template <>
struct Passed<ncclComm_t> {
  using Type = void*;
};
template <>
struct Passed<cudaStream_t> {
  using Type = void*;
};
template <>
struct Passed<ncclUniqueId> {
  using Type = nccl::UniqueId;
};
template <>
struct Passed<ncclComm_t*> {
  using Type = void**;
};
template <>
struct Passed<ncclUniqueId*> {
  using Type = nccl::UniqueId*;
};
template <>
struct Passed<ncclResult_t*> {
  using Type = int*;
};

template <typename F>
struct PassedFunction;
template <typename Result, typename... Args>
struct PassedFunction<Result (*)(Args...)> {
  using Type = typename Passed<Result>::Type (*)(typename Passed<Args>::Type...);
};

template <typename Ours, typename Theirs>
constexpr bool Same(Ours NcclLibrary::*, Theirs*) {
  return std::is_same_v<typename PassedFunction<Ours>::Type,
                        typename PassedFunction<Theirs*>::Type>;
}

static_assert(Same(&NcclLibrary::GetVersion, &ncclGetVersion));
static_assert(Same(&NcclLibrary::GetUniqueId, &ncclGetUniqueId));
static_assert(Same(&NcclLibrary::CommInitRank, &ncclCommInitRank));
static_assert(Same(&NcclLibrary::CommAbort, &ncclCommAbort));
static_assert(Same(&NcclLibrary::CommGetAsyncError, &ncclCommGetAsyncError));
static_assert(Same(&NcclLibrary::GetErrorString, &ncclGetErrorString));
static_assert(Same(&NcclLibrary::AllReduce, &ncclAllReduce));
static_assert(Same(&NcclLibrary::AllGather, &ncclAllGather));
static_assert(Same(&NcclLibrary::Broadcast, &ncclBroadcast));
static_assert(Same(&NcclLibrary::Send, &ncclSend));
static_assert(Same(&NcclLibrary::Recv, &ncclRecv));
static_assert(Same(&NcclLibrary::GroupStart, &ncclGroupStart));
static_assert(Same(&NcclLibrary::GroupEnd, &ncclGroupEnd));
static_assert(Same(&NcclLibrary::GetLastError, &ncclGetLastError));

static_assert(sizeof(nccl::UniqueId) == sizeof(ncclUniqueId));
static_assert(sizeof(nccl::DataType) == sizeof(ncclDataType_t));
static_assert(sizeof(nccl::RedOp) == sizeof(ncclRedOp_t));
static_assert(sizeof(nccl::Result) == sizeof(ncclResult_t));
static_assert(nccl::kSuccess == int{ncclSuccess});
static_assert(int{nccl::kInt8} == ncclInt8 && int{nccl::kUint8} == ncclUint8);
static_assert(int{nccl::kInt32} == ncclInt32 && int{nccl::kUint32} == ncclUint32);
static_assert(int{nccl::kInt64} == ncclInt64 && int{nccl::kUint64} == ncclUint64);
static_assert(int{nccl::kFloat16} == ncclFloat16 && int{nccl::kBfloat16} == ncclBfloat16);
static_assert(int{nccl::kFloat32} == ncclFloat32 && int{nccl::kFloat64} == ncclFloat64);
static_assert(int{nccl::kSum} == ncclSum && int{nccl::kProd} == ncclProd);
static_assert(int{nccl::kMax} == ncclMax && int{nccl::kMin} == ncclMin);
static_assert(int{nccl::kAvg} == ncclAvg);

}  // namespace
}  // namespace kvctl
