// The file of a SuffixStore: a header, the lengths of the texts, the oldest first, their tokens,
// and the MD5 of all of it. Numbers are little-endian; the index is made anew.
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <mutex>

#include "core/suffix/suffix_store.h"
#include "core/support/md5.h"
#include "kvctl/error.h"

namespace kvctl {
namespace {

constexpr char kMagic[8] = {'k', 'v', 'c', 't', 'l', 's', 'f', '1'};
constexpr size_t kDigest = 32;

struct Header {
  char magic[8];
  int64_t capacity;
  int64_t num_texts;
  int64_t num_tokens;
};
static_assert(sizeof(Header) == 32);

using File = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;

/*! \brief Writes a file beside its destination, and gives it its name when it is whole. */
class NewFile {
 public:
  explicit NewFile(const std::string& path)
      : path_(path),
        unfinished_(path + ".unfinished-" + std::to_string(getpid())),
        file_(std::fopen(unfinished_.c_str(), "wbx"), std::fclose) {
    if (file_ == nullptr) Fail();
  }
  ~NewFile() {
    if (finished_ || file_ == nullptr) return;
    file_.reset();
    std::remove(unfinished_.c_str());
  }

  void Write(const void* data, size_t size) {
    if (size == 0) return;  // of an empty store, and from nowhere
    md5_.Update(data, size);
    if (std::fwrite(data, 1, size, file_.get()) != size) Fail();
  }

  void Finish() {
    const std::string digest = md5_.Finish();
    if (std::fwrite(digest.data(), 1, kDigest, file_.get()) != kDigest) Fail();
    if (std::fflush(file_.get()) != 0 || fsync(fileno(file_.get())) != 0) Fail();
    if (std::rename(unfinished_.c_str(), path_.c_str()) != 0) Fail();
    finished_ = true;
  }

 private:
  [[noreturn]] void Fail() const {
    Throw(ErrorKind::kRuntime, "cannot write ", path_, ": ", std::strerror(errno));
  }

  std::string path_;
  std::string unfinished_;
  Md5 md5_;
  bool finished_ = false;
  File file_;
};

/*! \brief Reads a file of known size that nobody vouches for. */
class OldFile {
 public:
  explicit OldFile(const std::string& path)
      : path_(path), file_(std::fopen(path.c_str(), "rb"), std::fclose) {
    if (file_ == nullptr) {
      const ErrorKind kind = errno == ENOENT ? ErrorKind::kFileNotFound : ErrorKind::kRuntime;
      Throw(kind, "cannot read ", path, ": ", std::strerror(errno));
    }
    std::error_code error;
    size_ = std::filesystem::file_size(path, error);
    if (error) Throw(ErrorKind::kRuntime, "cannot read ", path, ": ", error.message());
  }

  uint64_t size() const { return size_; }
  void Read(void* data, size_t size) {
    if (size == 0) return;
    ReadRaw(data, size);
    md5_.Update(data, size);
  }
  void CheckDigest() {
    char digest[kDigest];
    ReadRaw(digest, kDigest);
    if (md5_.Finish() != std::string(digest, kDigest)) Damaged("its checksum is another one");
  }

  template <typename... Parts>
  [[noreturn]] void Damaged(const Parts&... why) const {
    Throw(ErrorKind::kValue, path_, " is no suffix store, or a damaged one: ", why...);
  }

 private:
  void ReadRaw(void* data, size_t size) {
    if (std::fread(data, 1, size, file_.get()) != size) Damaged("it ends too early");
  }

  std::string path_;
  File file_;
  uint64_t size_ = 0;
  Md5 md5_;
};

Header ReadHeader(OldFile* file) {
  Header header;
  if (file->size() < sizeof header + kDigest) file->Damaged("it has ", file->size(), " bytes");
  file->Read(&header, sizeof header);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) file->Damaged("it begins otherwise");
  const int64_t most = TextRing::kMaxCapacity;
  const bool plausible = header.capacity >= 2 && header.capacity <= most && header.num_texts >= 0 &&
                         header.num_texts <= most && header.num_tokens >= header.num_texts &&
                         header.num_tokens <= most;
  if (!plausible) file->Damaged("its header has impossible sizes");
  const auto words = static_cast<uint64_t>(header.num_texts + header.num_tokens);
  const uint64_t expected = sizeof header + words * sizeof(int32_t) + kDigest;
  if (file->size() != expected) {
    file->Damaged("its header promises ", expected, " bytes, and it has ", file->size());
  }
  return header;
}

}  // namespace

void SuffixStore::Save(const std::string& path) const {
  const std::shared_lock lock(mutex_);
  NewFile file(path);
  Header header{{}, capacity(), static_cast<int64_t>(texts_.texts().size()), texts_.num_tokens()};
  std::copy(std::begin(kMagic), std::end(kMagic), header.magic);
  file.Write(&header, sizeof header);
  for (const TextRing::Text& text : texts_.texts()) file.Write(&text.size, sizeof text.size);
  for (const TextRing::Text& text : texts_.texts()) {
    file.Write(texts_.slots() + text.begin, text.size * sizeof(int32_t));
  }
  file.Finish();
}

std::unique_ptr<SuffixStore> SuffixStore::Load(const std::string& path,
                                               std::optional<int64_t> capacity) {
  OldFile file(path);
  const Header header = ReadHeader(&file);
  auto store = std::make_unique<SuffixStore>(capacity.value_or(header.capacity));
  std::vector<int32_t> sizes(static_cast<size_t>(header.num_texts));
  std::vector<int32_t> tokens(static_cast<size_t>(header.num_tokens));
  file.Read(sizes.data(), sizes.size() * sizeof(int32_t));
  file.Read(tokens.data(), tokens.size() * sizeof(int32_t));
  file.CheckDigest();
  std::vector<TokenSpan> texts;
  texts.reserve(sizes.size());
  int64_t begin = 0;
  for (int32_t size : sizes) {
    if (size < 1 || begin + size > header.num_tokens) file.Damaged("a text has length ", size);
    texts.push_back({tokens.data() + begin, static_cast<size_t>(size)});
    begin += size;
  }
  if (begin != header.num_tokens) file.Damaged("its texts do not have all tokens");
  if (std::any_of(tokens.begin(), tokens.end(), [](int32_t token) { return token < 0; })) {
    file.Damaged("it has a negative token");
  }
  store->Add(texts);
  return store;
}

}  // namespace kvctl
