#include "distributed/meeting.h"

#include <stdlib.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "kvctl/error.h"

namespace kvctl {
namespace {

namespace ffi = tvm::ffi;

/*! \brief Writes a file that a reader sees whole or not at all. */
void WriteFile(const std::filesystem::path& path, const std::string& value) {
  std::filesystem::create_directories(path.parent_path());
  const std::filesystem::path begun = path.string() + ".begun";
  std::ofstream file(begun, std::ios::binary);
  file << value;
  file.close();
  if (!file) Throw(ErrorKind::kRuntime, "cannot write ", begun.string());
  std::filesystem::rename(begun, path);
}

/*! \brief Waits for a file of another worker's. */
std::string ReadFile(const std::filesystem::path& path, int64_t timeout_ms) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  while (!std::filesystem::exists(path)) {
    if (std::chrono::steady_clock::now() > end) {
      Throw(ErrorKind::kRuntime, "the first worker has not written ", path.string(), " for ",
            timeout_ms, " ms");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

}  // namespace

std::string NewMeeting() {
  std::string folder = (std::filesystem::temp_directory_path() / "kvctl-meeting-XXXXXX").string();
  if (mkdtemp(folder.data()) == nullptr) {
    Throw(ErrorKind::kRuntime, "cannot make a folder ", folder, ": ", strerror(errno));
  }
  return folder;
}

std::string ShareFromFirst(const Meeting& meeting, const std::string& key, int rank,
                           const std::function<std::string()>& make) {
  const bool is_first = rank == 0;
  if (meeting.exchange != nullptr) {
    if (is_first) {
      const std::string value = make();
      meeting.exchange(key, ffi::Bytes(value.data(), value.size()));
      return value;
    }
    const auto value = meeting.exchange(key, nullptr).cast<ffi::Bytes>();
    return std::string(value.data(), value.size());
  }
  const std::filesystem::path path = std::filesystem::path(meeting.id) / key;
  if (!is_first) return ReadFile(path, meeting.timeout_ms);
  const std::string value = make();
  WriteFile(path, value);
  return value;
}

}  // namespace kvctl
