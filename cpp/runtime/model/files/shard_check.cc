#include "runtime/model/files/shard_check.h"

#include <algorithm>
#include <fstream>
#include <utility>

#include "core/support/elf_file.h"
#include "core/support/md5.h"
#include "kvctl/error.h"
#include "runtime/model/files/file_md5.h"

namespace kvctl {
namespace {

constexpr size_t kMaxThreads = 8;
constexpr size_t kPieceBytes = 1 << 20;

}  // namespace

void CheckLibrary(const ModelFiles& files) {
  if (files.library_md5.empty()) return;
  CheckElfFile(files.library);
  std::ifstream file(files.library, std::ios::binary);
  if (!file) Throw(ErrorKind::kRuntime, "cannot read ", files.library);
  std::vector<char> piece(kPieceBytes);
  Md5 md5;
  while (file) {
    file.read(piece.data(), static_cast<std::streamsize>(piece.size()));
    md5.Update(piece.data(), static_cast<size_t>(file.gcount()));
  }
  const std::string found = md5.Finish();
  if (found == files.library_md5) return;
  Throw(ErrorKind::kValue, files.library,
        " is damaged, or not the library that kvctl compiled: its ", "MD5 is ", found,
        ", mlc-chat-config.json says ", files.library_md5,
        ". Download or compile the model again; where you exchanged the library, remove ",
        "\"library_md5\" from the configuration.");
}

ShardCheck::ShardCheck(const std::vector<ParamShard>& shards, int64_t worker, int64_t workers)
    : shards_(shards), found_(shards.size()) {
  for (size_t i = 0; i < shards.size(); ++i) {
    if (!shards[i].md5.empty()) order_.push_back(i);
  }
  std::stable_sort(order_.begin(), order_.end(),
                   [&shards](size_t a, size_t b) { return shards[a].nbytes > shards[b].nbytes; });
  if (workers > 1) {
    std::vector<size_t> all = std::move(order_);
    order_.clear();
    for (size_t i = static_cast<size_t>(worker); i < all.size();
         i += static_cast<size_t>(workers)) {
      order_.push_back(all[i]);
    }
  }
  const size_t cores = std::max(1U, std::thread::hardware_concurrency());
  threads_wanted_ = std::min({order_.size(), cores, kMaxThreads});
  try {
    while (threads_.size() < threads_wanted_) threads_.emplace_back([this] { Run(); });
  } catch (const std::system_error&) {
    // With fewer threads it takes longer; with none, Finish does it all.
  } catch (...) {
    given_up_ = true;
    Join();
    throw;
  }
}

ShardCheck::~ShardCheck() {
  given_up_ = true;
  Join();
}

void ShardCheck::Join() {
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

void ShardCheck::Run() {
  const size_t threads = std::max<size_t>(1, threads_wanted_);
  HashFiles(
      [this](int64_t, HashedFile* file) {
        const size_t i = next_++;
        if (i >= order_.size()) return false;
        *file = {shards_[order_[i]].path, shards_[order_[i]].nbytes, order_[i]};
        return true;
      },
      [this](size_t index, const std::string& md5) { found_[index] = md5; },
      [this] { return given_up_.load(); },
      static_cast<int>((order_.size() + threads - 1) / threads));
}

void ShardCheck::Finish() {
  Run();
  Join();
  std::sort(order_.begin(), order_.end());
  for (size_t i : order_) {
    const ParamShard& shard = shards_[i];
    if (found_[i] == shard.md5) continue;
    if (found_[i].empty()) {
      Throw(ErrorKind::kRuntime, "cannot read ", shard.nbytes, " bytes from ", shard.path);
    }
    Throw(ErrorKind::kValue, shard.path, " is damaged: its MD5 is ", found_[i], ", its index says ",
          shard.md5, ". Download or compile the model again.");
  }
}

}  // namespace kvctl
