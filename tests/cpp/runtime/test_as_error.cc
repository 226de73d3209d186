#include <tvm/ffi/error.h>

#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "kvctl/function_table.h"
#include "kvctl/paged_kv_cache.h"
#include "kvctl/recurrent_state.h"
#include "kvctl/verify.h"

namespace kvctl {
namespace {

/*! \brief The one catch clause that a program needs. */
template <typename F>
Error Caught(F&& f) {
  try {
    f();
  } catch (const std::exception& caught) {
    return AsError(caught);
  }
  return Error(ErrorKind::kInternal, "nothing was thrown");
}

PagedKVCache MakeCache() {
  PagedKVCacheConfig config;
  config.num_layers = config.num_qo_heads = config.num_kv_heads = 1;
  config.head_dim = 16;
  config.page_size = 4;
  config.num_pages = 2;
  return PagedKVCache::Create(config);
}

}  // namespace

TEST(OneCatchClauseServesEveryPublicFunction) {
  EXPECT(Caught([] { FunctionTable::Load("absent.so"); }).kind() == ErrorKind::kFileNotFound);
  EXPECT(Caught([] { Verify(VerifyBatch()); }).kind() == ErrorKind::kValue);
  EXPECT(Caught([] { PagedKVCache::Create(PagedKVCacheConfig()); }).kind() == ErrorKind::kValue);
  EXPECT(Caught([] { RecurrentState::Create(RecurrentStateConfig()); }).kind() ==
         ErrorKind::kValue);

  const PagedKVCache cache = MakeCache();
  const Error missing = Caught([&] { cache->PopN(7, 1); });
  EXPECT(missing.kind() == ErrorKind::kKey);
  EXPECT(std::string(missing.what()).find("7") != std::string::npos);
  cache->AddSequence(0);
  EXPECT(Caught([&] { cache->PopN(0, 1); }).kind() == ErrorKind::kValue);
  EXPECT(Caught([&] { cache->BeginForward({0}, {9}); }).kind() == ErrorKind::kOutOfPages);
  EXPECT(Caught([&] { cache->EndForward(); }).kind() == ErrorKind::kRuntime);
}

TEST(AsErrorKeepsKindMessageAndPlace) {
  const int line = __LINE__ + 1;
  const Error own = Caught([] { Throw(ErrorKind::kIndex, "row ", 3); });
  EXPECT(own.kind() == ErrorKind::kIndex && own.where().line == line);
  EXPECT_EQ(std::string(own.what()), "row 3");
  const Error theirs = Caught([] { throw tvm::ffi::Error("TypeError", "no float", ""); });
  EXPECT(theirs.kind() == ErrorKind::kType && theirs.where().ShortFile().empty());
  EXPECT_EQ(std::string(theirs.what()), "no float");
  const Error unknown = Caught([] { throw tvm::ffi::Error("OverflowError", "too large", ""); });
  EXPECT(unknown.kind() == ErrorKind::kRuntime);
  EXPECT_EQ(std::string(unknown.what()), "OverflowError: too large");
  EXPECT_EQ(std::string(Caught([] { throw std::bad_alloc(); }).what()),
            "MemoryError: kvctl could not allocate host memory");
  EXPECT_EQ(std::string(Caught([] { throw std::logic_error("odd"); }).what()), "odd");
}

}  // namespace kvctl
