#include "check.h"
#include "kvctl/error.h"

TEST(ErrorCarriesKindAndStreamedMessage) {
  EXPECT_ERROR(kvctl::Throw(kvctl::ErrorKind::kKey, "sequence ", 7, " does not exist"), kKey,
               "sequence 7 does not exist");
}
