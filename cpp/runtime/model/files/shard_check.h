/*!
 * \file runtime/model/files/shard_check.h
 * \brief Compares a model's files with their checksums: the library before it is loaded, shards of
 * parameters beside their loading.
 */
#ifndef KVCTL_RUNTIME_MODEL_FILES_SHARD_CHECK_H_
#define KVCTL_RUNTIME_MODEL_FILES_SHARD_CHECK_H_

#include <atomic>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include "runtime/model/files/model_files.h"

namespace kvctl {

/*!
 * \brief Reads the library, where the configuration has its checksum. A flipped bit of its code
 * would end the process, or give wrong text.
 * \throws Error kValue if its bytes are not those of its checksum, or it is cut short; kRuntime if
 * it cannot be read.
 */
void CheckLibrary(const ModelFiles& files);

/*!
 * \brief Reads every shard that has a checksum, in threads of its own.
 *
 * Without it, a model with a flipped bit loads and generates wrong text. The threads read the same
 * bytes as the loader, so that the disk reads them once.
 */
class ShardCheck {
 public:
  /*!
   * \brief Starts; shards must live as long as this does. Of several workers each reads some.
   */
  explicit ShardCheck(const std::vector<ParamShard>& shards, int64_t worker = 0,
                      int64_t workers = 1);
  ShardCheck(const ShardCheck&) = delete;
  ShardCheck& operator=(const ShardCheck&) = delete;
  /*! \brief Gives up what is not done yet. */
  ~ShardCheck();

  /*!
   * \brief Waits for all shards.
   * \throws Error kValue for the first one whose bytes are not those of its checksum; kRuntime for
   * one that cannot be read.
   */
  void Finish();

 private:
  void Run();
  void Join();

  const std::vector<ParamShard>& shards_;
  std::vector<size_t> order_;  //!< of shards with a checksum, the largest first
  std::vector<std::string> found_;
  size_t threads_wanted_ = 0;  //!< each hashes so many shards at once that all are at work
  std::atomic<size_t> next_{0};
  std::atomic<bool> given_up_{false};
  std::vector<std::thread> threads_;
};

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_MODEL_FILES_SHARD_CHECK_H_
