/*!
 * \file runtime/model/param_loader.h
 * \brief Loads parameter shards as the array that a model library's functions take.
 */
#ifndef KVCTL_RUNTIME_MODEL_PARAM_LOADER_H_
#define KVCTL_RUNTIME_MODEL_PARAM_LOADER_H_

#include <tvm/ffi/container/array.h>
#include <tvm/runtime/tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "runtime/model/model_files.h"
#include "runtime/support/json.h"

namespace kvctl {

/*! \brief A parameter as a library expects it. */
struct ParamSpec {
  std::string name;
  std::vector<int64_t> shape;  //!< -1 where the library does not say
  DLDataType dtype;
  std::string pack;  //!< packed function that the plain tensor is replaced by at load; "" for none
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
 * time.
 *
 * \param progress called with the bytes read and their total; may be empty.
 * \throws Error kValue, before anything is read, if the files lack a parameter or hold another
 * shape or dtype; kValue if a shard's bytes are not those of its checksum; kRuntime if a packing
 * function is not registered or a file cannot be read.
 */
tvm::ffi::Array<tvm::runtime::Tensor> LoadParams(
    const ModelFiles& files, const std::vector<ParamSpec>& specs, DLDevice device,
    const std::function<void(int64_t, int64_t)>& progress);

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_MODEL_PARAM_LOADER_H_
