#include "check.h"
#include "core/support/ref_counted_pool.h"

using kvctl::RefCountedPool;

TEST(RefCountedPoolFreesAnIndexWithoutReferences) {
  RefCountedPool pool(2);
  const int32_t index = pool.Take();
  pool.Retain(index);
  EXPECT(pool.shared(index));
  pool.Release(index);
  EXPECT_EQ(pool.num_free(), 1);
  pool.Release(index);
  EXPECT_EQ(pool.num_free(), 2);
}

TEST(RefCountedPoolClearFreesEveryIndex) {
  RefCountedPool pool(3);
  pool.Retain(pool.Take());
  pool.Take();
  pool.Clear();
  EXPECT_EQ(pool.num_free(), 3);
  EXPECT_EQ(pool.Take(), 0);
  EXPECT_EQ(pool.ref_count(0), 1);
}
