#include "check.h"
#include "core/support/narrow.h"
#include "kvctl/error.h"

using kvctl::ErrorKind;

namespace {

template <typename F>
kvctl::Error Caught(F&& f) {
  try {
    f();
  } catch (const kvctl::Error& error) {
    return error;
  }
  return kvctl::Error(ErrorKind::kInternal, "nothing was thrown");
}

}  // namespace

TEST(ErrorCarriesKindAndStreamedMessage) {
  EXPECT_ERROR(kvctl::Throw(ErrorKind::kKey, "sequence ", 7, " does not exist"), kKey,
               "sequence 7 does not exist");
}

TEST(ErrorNamesThePlaceThatThrew) {
  const int line = __LINE__ + 1;
  const kvctl::Error error = Caught([] { kvctl::Throw(ErrorKind::kKey, "no"); });
  EXPECT_EQ(error.where().line, line);
  EXPECT_EQ(error.where().ShortFile(), "core/support/test_error.cc");
}

TEST(NarrowBlamesItsCaller) {
  const int line = __LINE__ + 1;
  const kvctl::Error error = Caught([] { kvctl::Narrow(int64_t{1} << 40, "n"); });
  EXPECT_EQ(std::string(error.what()), "n must fit 32 bits, got 1099511627776");
  EXPECT_EQ(error.where().line, line);
  EXPECT_EQ(error.where().ShortFile(), "core/support/test_error.cc");
}

TEST(ShortFileIsBelowCpp) {
  const auto shorten = [](const char* file) {
    return kvctl::SourceLocation{file, 1, "f"}.ShortFile();
  };
  EXPECT_EQ(shorten("/home/me/cpp/kvctl/cpp/core/mask/mask.cc"), "core/mask/mask.cc");
  EXPECT_EQ(shorten("../../cpp/ffi/cache.cc"), "ffi/cache.cc");
  EXPECT_EQ(shorten("/home/me/cpp/kvctl/build/rooms/room_core_cache/core/cache/sequence.h"),
            "core/cache/sequence.h");
  EXPECT_EQ(shorten("/usr/include/kvctl/error.h"), "error.h");
}
