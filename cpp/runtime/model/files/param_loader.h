/*!
 * \file runtime/model/files/param_loader.h
 * \brief Loads parameter shards as the array that a model library's functions take.
 */
#ifndef KVCTL_RUNTIME_MODEL_FILES_PARAM_LOADER_H_
#define KVCTL_RUNTIME_MODEL_FILES_PARAM_LOADER_H_

#include <tvm/ffi/container/array.h>
#include <tvm/runtime/tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <unordered_map>
#include <vector>

#include "runtime/model/files/model_files.h"
#include "runtime/model/files/param_split.h"
#include "runtime/support/json.h"

namespace kvctl {

/*! \brief A function of MLC-LLM's that cuts a parameter into the shares of all workers. */
struct ShardStep {
  std::string function;
  std::vector<int64_t> in_shape;
  std::vector<int64_t> out_shape;  //!< of the last one (workers, ...)
  DLDataType out_dtype;
};

/*! \brief A parameter as a library expects it. */
struct ParamSpec {
  std::string name;
  std::vector<int64_t> shape;  //!< -1 where the library does not say
  DLDataType dtype;
  std::string pack;  //!< packed function that the plain tensor is replaced by at load; "" for none
  std::vector<ShardStep> steps;  //!< MLC-LLM's way to a worker's share; empty: all of it
};

/*! \brief Which worker of how many loads its share. */
struct WorkerShare {
  int64_t index = 0;
  int64_t count = 1;
  std::unordered_map<std::string, ParamSplit> splits;          //!< of the parameters that are split
  std::function<tvm::ffi::Function(const std::string&)> find;  //!< functions of ShardStep
};

/*!
 * \brief The parameters that a library's metadata names, in its order.
 * \throws Error kValue if the metadata does not say, or says it in another form.
 */
std::vector<ParamSpec> ReadParamSpecs(const JsonObject& metadata, const std::string& library);

/*!
 * \brief Reads and, where the library wants it, packs every parameter.
 *
 * Each plain tensor is packed and freed before the next one is read, so that only one exists at a
 * time. A worker reads its share of parameters that are split, and checks the sums of its share of
 * the files: together the workers check all.
 *
 * \param progress called with the bytes read and their total; may be empty.
 * \throws Error kValue, before anything is read, if the files lack a parameter or hold another
 * shape or dtype; kValue if a shard's bytes are not those of its checksum; kRuntime if a packing
 * function is not registered or a file cannot be read.
 */
tvm::ffi::Array<tvm::runtime::Tensor> LoadParams(
    const ModelFiles& files, const std::vector<ParamSpec>& specs, DLDevice device,
    const WorkerShare& worker, const std::function<void(int64_t, int64_t)>& progress);

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_MODEL_FILES_PARAM_LOADER_H_
