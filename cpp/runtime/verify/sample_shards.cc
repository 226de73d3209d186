#include "runtime/verify/sample_shards.h"

#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/function.h>

#include <algorithm>
#include <string>

#include "kvctl/error.h"

namespace kvctl {
namespace {

namespace ffi = tvm::ffi;
using tvm::runtime::Tensor;

constexpr DLDevice kHost = {kDLCPU, 0};
constexpr int64_t kMax = 3;  // TVM's number of this reduction

ffi::Function Collective(const char* name) {
  auto found = ffi::Function::GetGlobal(std::string("runtime.disco.") + name);
  if (!found.has_value()) {
    Throw(ErrorKind::kRuntime, "TVM's Disco is not loaded, which joins the workers");
  }
  return *found;
}

}  // namespace

Tensor SampleShards(const ShardRows& shard, int64_t workers, int64_t worker,
                    const ShardStreams& streams) {
  const int64_t rows = shard.rows, blocks = shard.blocks();
  Tensor sums = Tensor::Empty({rows, blocks, 2}, {kDLInt, 64, 1}, kHost);
  Tensor all = Tensor::Empty({workers, rows, blocks, 2}, {kDLInt, 64, 1}, kHost);
  Tensor tokens = Tensor::Empty({rows}, {kDLInt, 32, 1}, kHost);
  SumShardRows(shard, static_cast<int64_t*>(sums->data));
  Collective("allgather")(sums, true, all);
  SampleShardRows(shard, static_cast<const int64_t*>(all->data), workers, worker, streams,
                  static_cast<int32_t*>(tokens->data));
  const bool known = std::all_of(shard.temperatures, shard.temperatures + rows,
                                 [](double temperature) { return temperature == 0; });
  if (known) return tokens;
  Tensor joined = Tensor::Empty({rows}, {kDLInt, 32, 1}, kHost);
  Collective("allreduce")(tokens, ffi::Shape({kMax}), true, joined);
  return joined;
}

}  // namespace kvctl
