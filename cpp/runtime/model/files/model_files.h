/*!
 * \file runtime/model/files/model_files.h
 * \brief The files of a model directory, with checks of their sizes and layout.
 */
#ifndef KVCTL_RUNTIME_MODEL_FILES_MODEL_FILES_H_
#define KVCTL_RUNTIME_MODEL_FILES_MODEL_FILES_H_

#include <tvm/ffi/dtype.h>

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/support/json.h"

namespace kvctl {

/*! \brief One parameter and its place in a shard. */
struct ParamRecord {
  std::string name;
  std::vector<int64_t> shape;
  DLDataType dtype;
  bool widened;  //!< stored as bfloat16, a float32 once loaded
  int64_t nbytes;
  int64_t offset;
};

/*! \brief One params_shard_*.bin. */
struct ParamShard {
  std::string path;
  int64_t nbytes;
  std::string md5;  //!< 32 hexadecimal digits; "" where the index has none
  std::vector<ParamRecord> records;
};

/*! \brief The files of a model as MLC-LLM lays them out. */
struct ModelFiles {
  std::string directory;
  std::string library;
  std::string library_md5;  //!< as kvctl compiled it; "" where the configuration does not say
  std::string index;  //!< tensor-cache.json, or ndarray-cache.json as it was called until 2025
  JsonObject config;  //!< mlc-chat-config.json
  std::vector<ParamShard> shards;
};

/*!
 * \brief Finds and checks the files of a model directory without reading the parameters.
 * \throws Error kFileNotFound for a file that is missing; kValue for one whose size, layout or
 * content contradicts the index, with both sizes, and for a directory with more than one library.
 */
ModelFiles OpenModelFiles(const std::string& directory);

/*! \brief "float32 (4, 8)". */
std::string DescribeTensor(DLDataType dtype, const std::vector<int64_t>& shape);

/*!
 * \brief Bytes of a tensor.
 * \throws Error kValue for a negative extent or a size beyond int64; what names the tensor.
 */
int64_t TensorBytes(DLDataType dtype, const std::vector<int64_t>& shape, const std::string& what);

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_MODEL_FILES_MODEL_FILES_H_
