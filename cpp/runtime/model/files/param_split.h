/*!
 * \file runtime/model/files/param_split.h
 * \brief The share that one worker of several has of a model's parameters.
 */
#ifndef KVCTL_RUNTIME_MODEL_FILES_PARAM_SPLIT_H_
#define KVCTL_RUNTIME_MODEL_FILES_PARAM_SPLIT_H_

#include <tvm/runtime/tensor.h>

#include <cstdint>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "runtime/model/files/model_files.h"
#include "runtime/support/json.h"

namespace kvctl {

/*! \brief Parts of a parameter along one axis, one after another in a worker's share. */
struct ParamSplit {
  int64_t axis = 0;
  std::vector<int64_t> local;                       //!< extents of the parts in the share
  std::vector<std::pair<int64_t, int64_t>> ranges;  //!< what of the whole begins each part
  bool minus_infinity = false;                      //!< what fills the rest of a part; else zeros
};

/*!
 * \brief How a library's metadata splits parameters, by their names, for one worker.
 * \throws Error kValue if the metadata says it in another form.
 */
std::unordered_map<std::string, ParamSplit> ReadParamSplits(const JsonObject& metadata,
                                                            int64_t worker,
                                                            const std::string& library);

/*!
 * \brief Checks that a split fits a parameter.
 * \throws Error kValue
 */
void CheckSplit(const ParamSplit& split, const ParamRecord& record, const std::string& library);

/*! \brief Bytes of a parameter's file that a share is read from. */
int64_t ShareBytes(const ParamSplit& split, const ParamRecord& record);

/*! \brief A file in memory, of which the system reads what is touched. */
class MappedFile {
 public:
  /*! \throws Error kRuntime if the file cannot be read. */
  MappedFile(const std::string& path, int64_t nbytes);
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  const char* data() const { return data_; }

 private:
  char* data_ = nullptr;
  size_t size_ = 0;
};

/*!
 * \brief A worker's share of a parameter, on the host.
 * \param bytes The parameter in its file.
 */
tvm::runtime::Tensor ReadShare(const char* bytes, const ParamRecord& record,
                               const ParamSplit& split);

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_MODEL_FILES_PARAM_SPLIT_H_
