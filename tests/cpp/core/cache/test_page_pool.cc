#include "check.h"
#include "core/cache/page_pool.h"

using kvctl::PagePool;

TEST(PagePoolFreesAPageWithItsLastReference) {
  PagePool pool(2);
  const int32_t page = pool.Take();
  pool.Retain(page);
  EXPECT(pool.shared(page));
  pool.Release(page);
  EXPECT_EQ(pool.num_free(), 1);
  pool.Release(page);
  EXPECT_EQ(pool.num_free(), 2);
}

TEST(PagePoolClearFreesEveryPage) {
  PagePool pool(3);
  pool.Retain(pool.Take());
  pool.Take();
  pool.Clear();
  EXPECT_EQ(pool.num_free(), 3);
  EXPECT_EQ(pool.Take(), 0);
  EXPECT_EQ(pool.ref_count(0), 1);
}
