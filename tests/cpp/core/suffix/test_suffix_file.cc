#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>

#include "check.h"
#include "core/suffix/suffix_store.h"

using kvctl::SuffixStore;
using kvctl::TokenSpan;

namespace {

namespace fs = std::filesystem;
using Text = std::vector<int32_t>;

/*! \brief A folder of its own, removed at the end. */
struct Folder {
  Folder() : path(fs::temp_directory_path() / ("kvctl_suffix_" + std::to_string(getpid()))) {
    fs::create_directories(path);
  }
  ~Folder() { fs::remove_all(path); }
  std::string File(const char* name) const { return (path / name).string(); }
  fs::path path;
};

std::string Bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void Write(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

void Fill(SuffixStore* store, uint32_t seed, int32_t count) {
  std::mt19937 random(seed);
  for (int32_t i = 0; i < count; ++i) {
    Text text(1 + random() % 60);
    for (int32_t& token : text) token = static_cast<int32_t>(random() % 5);
    store->Add({{text.data(), text.size()}});
  }
}

}  // namespace

TEST(SuffixFileIsTheSameStore) {
  const Folder folder;
  const std::string path = folder.File("store"), again = folder.File("again");
  SuffixStore store(2000);
  Fill(&store, 1, 200);  // the oldest are gone
  store.Save(path);
  const auto loaded = SuffixStore::Load(path);
  EXPECT_EQ(loaded->capacity(), 2000);
  EXPECT_EQ(loaded->num_tokens(), store.num_tokens());
  loaded->Save(again);
  EXPECT(Bytes(path) == Bytes(again));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path), {}), 2);  // nothing unfinished
  const auto smaller = SuffixStore::Load(path, 100);
  EXPECT(smaller->num_tokens() < 100 && smaller->num_texts() > 0);
}

TEST(SuffixFileOfAnEmptyStore) {
  const Folder folder;
  SuffixStore(50).Save(folder.File("store"));
  EXPECT_EQ(SuffixStore::Load(folder.File("store"))->num_texts(), 0);
}

TEST(SuffixFileIsNotTrusted) {
  const Folder folder;
  const std::string path = folder.File("store"), broken = folder.File("broken");
  SuffixStore store(500);
  Fill(&store, 2, 20);
  store.Save(path);
  const std::string bytes = Bytes(path);
  EXPECT_ERROR(SuffixStore::Load(folder.File("none")), kFileNotFound, "cannot read");
  for (size_t i = 0; i < bytes.size(); ++i) {  // any byte
    std::string other = bytes;
    other[i] = static_cast<char>(other[i] ^ 0x41);
    Write(broken, other);
    EXPECT_ERROR(SuffixStore::Load(broken), kValue, "is no suffix store, or a damaged one");
  }
  for (size_t size = 0; size < bytes.size(); size += 7) {
    Write(broken, bytes.substr(0, size));
    EXPECT_ERROR(SuffixStore::Load(broken), kValue, "a damaged one");
  }
  Write(broken, bytes + "x");
  EXPECT_ERROR(SuffixStore::Load(broken), kValue, "promises");
}

TEST(SuffixFileThatCannotBeWrittenLeavesTheOldOne) {
  const Folder folder;
  const SuffixStore store(50);
  EXPECT_ERROR(store.Save(folder.File("no/such/folder")), kRuntime, "cannot write");
  fs::create_directories(folder.path / "taken");
  EXPECT_ERROR(store.Save(folder.File("taken")), kRuntime, "cannot write");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path), {}), 1);
}
